"""Settings are read once, typed, and everything that is wrong with them is said together."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import pytest

from casemate.errors import ConfigurationError
from casemate.secret import Secret
from casemate.settings import (
    DatabaseSettings,
    IdentitySettings,
    ListenSettings,
    TrustSettings,
    address,
    boolean,
    duration,
    integer,
    load_settings,
    nested,
    port,
    secret,
    setting,
    text,
    trust_domain,
)


@dataclass(frozen=True, slots=True)
class Oven:
    """A component's settings, small enough to see."""

    heat: int = setting("HEAT", parse=integer(1, 9), help="how hot")
    key: Secret[str] = setting("KEY", parse=secret, help="what opens the door")
    bell: bool = setting("BELL", parse=boolean, default=False, help="whether it rings")


@dataclass(frozen=True, slots=True)
class Everything:
    """What a real service declares."""

    listen: ListenSettings
    identity: IdentitySettings
    trust: TrustSettings
    database: DatabaseSettings
    datakeys: DatabaseSettings = nested("DATAKEYS_")


GOOD = {"CASEMATE_AUTH_HEAT": "3", "CASEMATE_AUTH_KEY": "canary-of-the-door"}
SOCKET = {"HOST": "/run/sockets", "NAME": "datasets", "USER": "datasets", "PASSWORD": "canary-of-the-database"}
EVERYTHING = {
    "CASEMATE_DATASETS_IDENTITY_DIR": "/pki/datasets",
    **{f"CASEMATE_DATASETS_DATABASE_{name}": value for name, value in SOCKET.items()},
    **{f"CASEMATE_DATASETS_DATAKEYS_DATABASE_{name}": value for name, value in SOCKET.items()},
}
TLS_FILES = {f"CASEMATE_DATASETS_DATABASE_{name}_FILE": f"/pki/{name}" for name in ("CA", "CERT", "KEY")}


def refusal(environment: dict[str, str], cls: type = Oven, component: str = "auth") -> str:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(cls, environment, component=component)
    return str(caught.value)


def test_given_values_and_defaults_become_a_typed_object():
    oven = load_settings(Oven, GOOD, component="auth")
    assert (oven.heat, oven.key.reveal(), oven.bell) == (3, "canary-of-the-door", False)


def test_nested_groups_are_filled_and_a_prefix_tells_two_databases_apart():
    settings = load_settings(
        Everything, EVERYTHING | {"CASEMATE_DATASETS_DATAKEYS_DATABASE_NAME": "datakeys"}, component="datasets"
    )
    assert (settings.database.name, settings.datakeys.name) == ("datasets", "datakeys")
    assert settings.trust.staleness == timedelta(minutes=5)
    assert settings.identity == IdentitySettings(directory=Path("/pki/datasets"), trust_domain="casemate.internal")


@pytest.mark.parametrize(
    ("component", "ports"), [("auth", "7401 7411"), ("inference", "7402 7412"), ("datasets", "7403 7413")]
)
def test_each_component_listens_on_its_own_ports_by_default(component: str, ports: str):
    settings = load_settings(ListenSettings, {}, component=component)
    assert f"{settings.address[-4:]} {settings.metrics_address[-4:]}" == ports


def test_shared_settings_have_one_name_for_all_components():
    environment = {"CASEMATE_TRUST_DOMAIN": "example.org", "CASEMATE_AUTH_IDENTITY_DIR": "/pki"}
    assert load_settings(IdentitySettings, environment, component="auth").trust_domain == "example.org"


def test_all_problems_are_reported_at_once_and_no_value_is_repeated():
    message = refusal(
        {"CASEMATE_AUTH_HEAT": "canary-in-the-wrong-place", "CASEMATE_AUTH_BELL": "yes", "CASEMATE_AUTH_HAET": "3"}
    )
    for name in ("CASEMATE_AUTH_HEAT: must be", "CASEMATE_AUTH_KEY (or", "CASEMATE_AUTH_BELL", "CASEMATE_AUTH_HAET"):
        assert name in message
    assert message.startswith("4 problems")
    assert "canary" not in message


def test_missing_setting_is_named_with_what_it_is_for():
    assert "CASEMATE_AUTH_KEY (or CASEMATE_AUTH_KEY_FILE): required: what opens the door" in refusal(
        {"CASEMATE_AUTH_HEAT": "3"}
    )


def test_unknown_name_is_refused_and_the_nearest_is_suggested():
    assert "CASEMATE_AUTH_BEL: no such setting; did you mean CASEMATE_AUTH_BELL?" in refusal(
        GOOD | {"CASEMATE_AUTH_BEL": "true"}
    )
    assert load_settings(Oven, GOOD | {"CASEMATE_AUTH_BELL": "true"}, component="auth").bell


def test_misspelt_shared_name_is_refused():
    assert "did you mean CASEMATE_TRUST_DOMAIN?" in refusal(GOOD | {"CASEMATE_TRUST_DOMIAN": "example.org"})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CASEMATE_DATASETS_ANYTHING", "of another component"),
        ("CASEMATE_TRUST_STALENESS", "30s"),
        ("CASEMATE_TRUST_POST_QUANTUM", "true"),
        ("CASEMATE_VECTORS", "/vectors"),
        ("CASEMATE_AUTH_SERVICE_HOST", "10.0.0.7"),
        ("CASEMATE_AUTH_SERVICE_PORT", "7401"),
        ("CASEMATE_AUTH_SERVICE_PORT_GRPC", "7401"),
        ("CASEMATE_AUTH_PORT", "tcp://10.0.0.7:7401"),
        ("CASEMATE_AUTH_PORT_7401_TCP", "tcp://10.0.0.7:7401"),
        ("CASEMATE_AUTH_PORT_7401_TCP_ADDR", "10.0.0.7"),
        ("CASEMATE_GATEWAY_PORT_443_TCP_PROTO", "tcp"),
        ("PATH", "/usr/bin"),
    ],
)
def test_names_of_others_are_left_alone(name: str, value: str):
    assert load_settings(Oven, GOOD | {name: value}, component="auth").heat == 3


def test_name_that_ends_like_a_service_link_but_holds_a_number_is_refused():
    assert "CASEMATE_AUTH_DATABAS_PORT: no such setting" in refusal(GOOD | {"CASEMATE_AUTH_DATABAS_PORT": "5432"})


def test_service_link_in_place_of_a_setting_is_explained():
    environment = EVERYTHING | {"CASEMATE_DATASETS_DATABASE_PORT": "tcp://10.0.0.7:5432"}
    assert "enableServiceLinks" in refusal(environment, Everything, "datasets")


@pytest.mark.parametrize("name", ["GRPC_TRACE", "SSLKEYLOGFILE"])
def test_variable_that_makes_libraries_write_secrets_down_is_refused(name: str):
    assert f"{name}: must not be set" in refusal(GOOD | {name: "all"})
    assert load_settings(Oven, GOOD | {name: ""}, component="auth").heat == 3


def test_empty_value_is_refused():
    assert "CASEMATE_AUTH_KEY: is empty" in refusal(GOOD | {"CASEMATE_AUTH_KEY": ""})


def secret_file(folder: Path, *, mode: int = 0o600, content: bytes = b"canary-in-a-file\n") -> dict[str, str]:
    file = folder / "key"
    file.write_bytes(content)
    file.chmod(mode)
    return {"CASEMATE_AUTH_HEAT": "3", "CASEMATE_AUTH_KEY_FILE": str(file)}


@pytest.mark.parametrize("mode", [0o600, 0o400, 0o440])
def test_secret_is_read_from_a_closed_file_without_its_newline(tmp_path: Path, mode: int):
    oven = load_settings(Oven, secret_file(tmp_path, mode=mode), component="auth")
    assert oven.key == Secret("canary-in-a-file")


@pytest.mark.parametrize("mode", [0o604, 0o644, 0o602])
def test_secret_file_that_every_user_can_open_is_refused(tmp_path: Path, mode: int):
    assert "CASEMATE_AUTH_KEY: its file is open to every user" in refusal(secret_file(tmp_path, mode=mode))


@pytest.mark.parametrize(
    ("content", "says"), [(b"", "empty"), (b"\n", "empty"), (b"\xff\xfe", "UTF-8"), (b"k" * 70_000, "too large")]
)
def test_secret_file_with_unfit_content_is_refused(tmp_path: Path, content: bytes, says: str):
    assert says in refusal(secret_file(tmp_path, content=content))


def test_secret_file_that_is_missing_or_a_folder_is_refused(tmp_path: Path):
    for path in (tmp_path / "absent", tmp_path):
        assert "CASEMATE_AUTH_KEY: its file cannot be read" in refusal(
            {"CASEMATE_AUTH_HEAT": "3", "CASEMATE_AUTH_KEY_FILE": str(path)}
        )


def test_secret_given_both_ways_is_refused(tmp_path: Path):
    assert "given twice" in refusal(GOOD | secret_file(tmp_path))


def test_file_suffix_belongs_to_secrets_only():
    assert "CASEMATE_AUTH_HEAT_FILE: no such setting" in refusal(GOOD | {"CASEMATE_AUTH_HEAT_FILE": "/heat"})


def test_secret_does_not_show_in_the_settings_of_a_log_line():
    assert "canary" not in repr(load_settings(Everything, EVERYTHING, component="datasets"))


def test_database_over_tcp_needs_all_three_certificate_files():
    environment = EVERYTHING | {"CASEMATE_DATASETS_DATABASE_HOST": "db.example.org"}
    message = refusal(environment, Everything, "datasets")
    assert re.search(r"CASEMATE_DATASETS_…: DatabaseSettings: CA_FILE, CERT_FILE, KEY_FILE: needed", message)
    assert load_settings(Everything, environment | TLS_FILES, component="datasets").database.key_file == Path(
        "/pki/KEY"
    )


def test_certificate_files_for_a_unix_socket_are_refused():
    assert "a Unix socket has no TLS" in refusal(EVERYTHING | TLS_FILES, Everything, "datasets")


def test_database_on_a_unix_socket_needs_a_password():
    environment = dict(EVERYTHING)
    del environment["CASEMATE_DATASETS_DATABASE_PASSWORD"]
    assert "PASSWORD: needed" in refusal(environment, Everything, "datasets")


@pytest.mark.parametrize(
    ("parse", "given", "value"),
    [
        (text, "plain", "plain"),
        (integer(-5, 5), "-5", -5),
        (port, "65535", 65535),
        (address, "db.example.org:5432", "db.example.org:5432"),
        (address, "[::1]:0", "[::1]:0"),
        (duration, "250ms", timedelta(milliseconds=250)),
        (duration, "30s", timedelta(seconds=30)),
        (duration, "5m", timedelta(minutes=5)),
        (duration, "24h", timedelta(days=1)),
        (boolean, "true", True),
        (trust_domain, "casemate.internal", "casemate.internal"),
    ],
)
def test_parser_takes_what_it_is_for(parse, given: str, value: object):
    assert parse(given) == value


@pytest.mark.parametrize(
    ("parse", "given"),
    [
        (text, "bell\x07"),
        (integer(-5, 5), "6"),
        (integer(-5, 5), "1_0"),
        (integer(-5, 5), "٣"),
        (port, "0"),
        (port, "65536"),
        (address, "localhost"),
        (address, ":7401"),
        (address, "::1:7401"),
        (address, "localhost:99999"),
        (duration, "30"),
        (duration, "-1s"),
        (duration, "1.5h"),
        (duration, "999999999d"),
        (boolean, "1"),
        (trust_domain, "Casemate.Internal"),
        (trust_domain, "casemate..internal"),
        (trust_domain, "casemate.internal/t"),
    ],
)
def test_parser_refuses_the_rest(parse, given: str):
    with pytest.raises(ValueError, match=r"^(must|holds)"):
        parse(given)
