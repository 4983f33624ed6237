"""Profiles: a deployment and who calls it, named once instead of by five options a command."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from casemate.cli.main import command
from casemate.cli.profiles import Profile, Profiles
from casemate.client.session import Endpoints
from casemate.errors import ConfigurationError

PLACES = {"auth": "127.0.0.1:1", "inference": "127.0.0.1:2", "datasets": "127.0.0.1:3"}


@pytest.fixture
def leaf(tmp_path):
    """A client's leaf, as `casemate pki issue` gives it."""
    state = tmp_path / "state"
    asked(tmp_path, "--state", state, "pki", "init")
    return state, asked(tmp_path, "--state", state, "pki", "issue", "acme/trainer").strip()


def asked(tmp_path, *arguments: object, error: type[Exception] | None = None) -> str:
    words = ["--profiles", tmp_path / "profiles", *arguments]
    done = CliRunner().invoke(command, [str(word) for word in words])
    if error is None:
        assert done.exit_code == 0, (done.output, done.exception)
        return done.stdout
    assert isinstance(done.exception, error), done.output
    return str(done.exception)


def test_a_profile_needs_no_more_than_an_identity(tmp_path, leaf):
    _, identity = leaf
    said = asked(tmp_path, "profile", "create", "prod", "--identity", identity)
    [listed] = map(json.loads, asked(tmp_path, "profile", "list", "--json").splitlines())
    assert said == "prod: spiffe://casemate.internal/t/acme/trainer, by way of auth.casemate.internal:7401\n"
    assert listed == {
        "name": "prod",
        "identity": identity,
        "trust_domain": "casemate.internal",
        "auth": "auth.casemate.internal:7401",
        "inference": "inference.casemate.internal:7402",
        "datasets": "datasets.casemate.internal:7403",
    }


def test_a_profile_is_replaced_only_when_that_is_said(tmp_path, leaf):
    _, identity = leaf
    create = ("profile", "create", "prod", "--identity", identity)
    asked(tmp_path, *create)
    again = (*create, "--auth", "other:7401")
    assert "--replace" in asked(tmp_path, *again, error=ConfigurationError)
    assert "auth.casemate.internal:7401" in asked(tmp_path, "profile", "list")
    asked(tmp_path, *again, "--replace")
    assert "other:7401" in asked(tmp_path, "profile", "list")


def test_a_profile_that_is_removed_is_named_no_more_and_its_key_stays(tmp_path, leaf):
    state, identity = leaf
    asked(tmp_path, "profile", "create", "prod", "--identity", identity)
    asked(tmp_path, "profile", "remove", "prod")
    assert asked(tmp_path, "profile", "list") == ""
    assert (state / "pki/leaves/t/acme/trainer/key.pem").is_file()
    assert "there are: none" in asked(tmp_path, "--profile", "prod", "tenant", "list", error=ConfigurationError)


@pytest.mark.parametrize("name", ["../prod", "Prod", "", "a" * 64, ".prod"])
def test_a_name_that_is_no_name_is_refused(tmp_path, leaf, name):
    _, identity = leaf
    refused = asked(tmp_path, "profile", "create", name, "--identity", identity, error=ConfigurationError)
    assert "is no name of a profile" in refused
    assert not (tmp_path / "profiles").exists()


@pytest.mark.parametrize("place", ["nowhere", ":7401", "host:", "host:0", "host:65536", "host:seven"])
def test_an_address_that_is_none_is_refused_by_its_option(tmp_path, leaf, place):
    _, identity = leaf
    create = ("profile", "create", "prod", "--identity", identity)
    assert asked(tmp_path, *create, "--datasets", place, error=ConfigurationError).startswith("--datasets: ")
    asked(tmp_path, *create, "--datasets", "host:7403")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"identity": 1}', "not json"])
def test_a_file_that_is_no_profile_is_told_by_its_path(tmp_path, content):
    folder = tmp_path / "profiles"
    profiles = Profiles(folder)
    profiles.keep("prod", Profile(identity=tmp_path, trust_domain="example.org", endpoints=Endpoints(**PLACES)))
    assert profiles.load("prod").trust_domain == "example.org"
    (folder / "prod.json").write_text(content)
    with pytest.raises(ConfigurationError, match=r"prod\.json is not a profile"):
        profiles.load("prod")


def test_a_client_of_the_state_directory_is_not_also_one_of_a_profile(tmp_path, leaf):
    state, identity = leaf
    asked(tmp_path, "profile", "create", "prod", "--identity", identity)
    words = ("--state", state, "--profile", "prod", "tenant", "list", "--as", "acme/trainer")
    assert "--as" in asked(tmp_path, *words, error=ConfigurationError)
