"""What `casemate up` remembers of other teams' services."""

from __future__ import annotations

import pytest

from casemate.cli.audiences import RememberedAudiences
from casemate.errors import ConfigurationError


def said(file, *words):
    found = RememberedAudiences(file, words)
    found.keep()
    return found.setting


def test_what_was_said_once_is_known_until_it_is_said_otherwise_or_forgotten(tmp_path):
    file = tmp_path / "audiences"
    assert said(file) == ""
    assert not file.exists()
    assert said(file, "greeter=greetings.read") == "greeter=greetings.read"
    assert said(file) == "greeter=greetings.read"
    assert said(file, "billing=bills.read") == "greeter=greetings.read;billing=bills.read"
    assert said(file, "greeter=greetings.read,greetings.write") == (
        "greeter=greetings.read,greetings.write;billing=bills.read"
    )
    assert said(file, "greeter=") == "billing=bills.read"
    assert said(file, "a=x;b=y") == said(file) == "billing=bills.read;a=x;b=y"


def test_what_auth_has_not_taken_is_not_remembered(tmp_path):
    file = tmp_path / "audiences"
    assert said(file, "greeter=greetings.read")
    assert RememberedAudiences(file, ["billing=not a scope"]).setting.endswith("billing=not a scope")
    assert said(file) == "greeter=greetings.read"


@pytest.mark.parametrize("odd", ["greeter", "=greetings.read", ""])
def test_what_is_no_audience_is_refused_in_one_line(tmp_path, odd):
    with pytest.raises(ConfigurationError, match="NAME=SCOPE"):
        RememberedAudiences(tmp_path / "audiences", [odd])
    assert RememberedAudiences(tmp_path / "audiences", ["greeter=x"]).scopes == {"greeter": "x"}
