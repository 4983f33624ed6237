"""The compose file as it is parsed: every line of hardening stands on every service."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from casemate.cli.deployment import ROLES
from casemate.cli.state import SERVICES
from casemate.settings import load_settings
from services.auth.settings import AuthSettings
from services.datasets.settings import DatasetsSettings
from services.inference.settings import InferenceSettings

CHECKOUT = Path(__file__).resolve().parents[2]
FILE = yaml.safe_load((CHECKOUT / "docker-compose.yml").read_text())
DOCKERFILE = (CHECKOUT / "Dockerfile").read_text()
EVERY = sorted(FILE["services"])
SETTINGS = {"auth": AuthSettings, "datasets": DatasetsSettings, "inference": InferenceSettings}
ONCE = {"bootstrap", "migrate"}


def service(name: str) -> dict:
    return FILE["services"][name]


def networks(name: str) -> set[str]:
    return set(service(name).get("networks", ()))


@pytest.mark.parametrize("name", EVERY)
def test_service_is_hardened(name: str):
    found = service(name)
    assert found["read_only"] is True
    assert found["cap_drop"] == ["ALL"]
    assert not {"cap_add", "privileged", "devices", "pid", "ipc", "userns_mode"} & set(found)
    assert found["security_opt"] == ["no-new-privileges:true"]
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", found["user"])
    assert 0 < found["pids_limit"] <= 256
    assert found["mem_limit"] in {"512m", "1g"}
    assert 0 < found["cpus"] <= 2
    assert found["ulimits"] == {"core": 0}
    assert found["stop_grace_period"] == "30s"
    assert found["restart"] == ("no" if name in {"tools", "backup"} else "on-failure")
    for mount in found["tmpfs"]:
        assert {"noexec", "nosuid", "nodev"} <= set(mount.partition(":")[2].split(",")), mount
        assert "size=" in mount


@pytest.mark.parametrize("name", EVERY)
def test_logs_rotate(name: str):
    assert service(name)["logging"] == {"driver": "json-file", "options": {"max-size": "10m", "max-file": "5"}}


@pytest.mark.parametrize("name", EVERY)
def test_ports_are_on_loopback_alone(name: str):
    assert all(str(port).startswith("127.0.0.1:") for port in service(name).get("ports", ()))


@pytest.mark.parametrize("name", EVERY)
def test_no_secret_is_in_the_environment(name: str):
    environment = service(name).get("environment", {})
    assert not [key for key in environment if re.search(r"PASSWORD$|SECRET$|TOKEN$|_KEK$", key)]


@pytest.mark.parametrize("name", EVERY)
def test_what_was_issued_is_read_only_to_all_but_the_authority(name: str):
    for volume in service(name).get("volumes", ()):
        source, target, *mode = volume.split(":")
        assert not source.startswith((".", "/")), "nothing of the machine's own is mounted"
        if source.startswith("issued-") and name != "pki":
            below = f"/{source.removeprefix('issued-')}" if name == "backup" else ""
            assert (target, mode) == (f"/run/casemate{below}", ["ro"])


def test_each_service_is_given_its_own_secrets_and_nobody_the_authoritys():
    given = {
        name: {volume.split(":")[0] for volume in service(name).get("volumes", ()) if volume.startswith("issued-")}
        for name in EVERY
    }
    sees_authority = [name for name in EVERY if "authority:" in " ".join(service(name).get("volumes", ()))]
    assert sees_authority == ["pki"]
    for name in ("auth", "auth-2", "bootstrap"):
        assert given[name] == {"issued-auth"}
    for name in ("datasets", "datasets-2", "migrate"):
        assert given[name] == {"issued-datasets"}
    for name in ("inference", "inference-2"):
        assert given[name] == {"issued-inference"}
    assert given["postgres"] == {"issued-postgres"}
    # It runs as long as one command, and serves nothing.
    assert given["backup"] == {"issued-auth", "issued-datasets", "issued-inference"}
    assert service("backup")["profiles"] == ["tools"]


def test_networks_are_split():
    assert FILE["networks"] == {"edge": {}, "internal": {"internal": True}, "db": {"internal": True}}
    assert service("pki")["network_mode"] == "none"
    on_db = {name for name in EVERY if "db" in networks(name)}
    assert on_db == {"postgres", "bootstrap", "migrate", "backup", "auth", "auth-2", "datasets", "datasets-2"}
    assert all(networks(name) == {"db"} for name in ("postgres", "bootstrap", "migrate", "backup"))
    published = {name for name in EVERY if service(name).get("ports")}
    assert {name for name in EVERY if "edge" in networks(name)} == published


def test_order_is_gated_by_health():
    for name in EVERY:
        waits = service(name).get("depends_on", {})
        if isinstance(waits, dict):
            for other, how in waits.items():
                wanted = "service_completed_successfully" if other in ONCE else "service_healthy"
                assert how == {"condition": wanted}, (name, other)
    assert set(service("auth")["depends_on"]) == {"pki", "postgres", "bootstrap"}
    assert set(service("datasets")["depends_on"]) == {"pki", "postgres", "migrate", "auth"}
    assert set(service("inference")["depends_on"]) == {"pki", "auth", "datasets"}


def test_profiles_are_those_of_the_documentation():
    by_profile: dict[str, set[str]] = {}
    for name in EVERY:
        for profile in service(name).get("profiles", ["default"]):
            by_profile.setdefault(profile, set()).add(name)
    assert by_profile == {
        "default": {"pki", "postgres", "bootstrap", "migrate", "auth", "datasets", "inference"},
        "scale": {"auth-2", "datasets-2", "inference-2"},
        "observability": {"collector", "prometheus", "grafana"},
        "tools": {"tools", "backup"},
    }


@pytest.mark.parametrize("name", SERVICES)
def test_a_second_replica_differs_in_ports_and_audit_alone(name: str):
    first, second = service(name), service(f"{name}-2")
    differing = {key for key in {*first, *second} if first.get(key) != second.get(key)}
    assert differing <= {"ports", "volumes", "profiles", "build"}
    moved = set(first["volumes"]) ^ set(second["volumes"])
    assert moved == {f"{name}-audit:/var/lib/casemate/audit", f"{name}-2-audit:/var/lib/casemate/audit"}


@pytest.mark.parametrize("name", SERVICES)
def test_settings_are_all_known_and_the_database_is_reached_by_both_proofs(name: str, tmp_path: Path):
    given = dict(service(name)["environment"])
    for key in [key for key in given if key.endswith("_PASSWORD_FILE")]:
        (tmp_path / key).write_text("password")
        (tmp_path / key).chmod(0o600)
        given[key] = str(tmp_path / key)
    loaded = load_settings(SETTINGS[name], given, component=name)
    assert loaded.listen.address.startswith("0.0.0.0:")
    for role in ROLES.get(name, ()):
        database = loaded.data_keys if role == "casemate_datakeys" else loaded.database
        assert (database.name, database.user, database.host) == (role, role, "postgres.casemate.internal")
        assert str(database.cert_file) == f"/run/casemate/database/{role}/cert.pem"


def test_a_backup_holds_what_each_service_keeps_where_that_service_keeps_it():
    """The same database, login and folder, each below the service's own name."""
    told = service("backup")["environment"]
    for name in SERVICES:
        volumes = {volume.split(":")[1]: volume.split(":")[0] for volume in service(name)["volumes"]}
        here = {volume.split(":")[1]: volume.split(":")[0] for volume in service("backup")["volumes"]}
        for key, value in service(name)["environment"].items():
            if key.startswith(f"CASEMATE_{name.upper()}_DATA") and "ADDRESS" not in key and not key.endswith("_FILE"):
                assert told[key] == value, key
            if key.endswith(("KEK_FILE", "AUTHORITY_KEY_FILE", "REPOSITORY_DIR", "_PASSWORD_FILE", "_CERT_FILE")):
                own = next(path for path in volumes if f"{value}/".startswith(f"{path}/"))
                other = next(path for path in here if f"{told[key]}/".startswith(f"{path}/"))
                assert (volumes[own], value.removeprefix(own)) == (here[other], told[key].removeprefix(other)), key


def test_postgresql_takes_certificate_and_password_together_over_tls_1_3_alone():
    folder = CHECKOUT / "deploy" / "compose" / "postgres"
    lines = [line.split() for line in (folder / "pg_hba.conf").read_text().splitlines() if line and line[0] != "#"]
    local, remote = [line for line in lines if line[0] == "local"], [line for line in lines if line[0] != "local"]
    assert local == [["local", "all", "casemate", "peer"]]
    assert [line[:3] for line in remote] == [["hostssl", role, role] for roles in ROLES.values() for role in roles]
    assert all(line[4:] == ["scram-sha-256", "clientcert=verify-full"] for line in remote)
    settings = (folder / "postgresql.conf").read_text()
    for wanted in ("ssl = on", "ssl_min_protocol_version = 'TLSv1.3'", "password_encryption = 'scram-sha-256'"):
        assert f"\n{wanted}\n" in settings
    assert "--data-checksums" in (folder / "start").read_text()


@pytest.mark.parametrize("target", SERVICES)
def test_image_is_started_in_exec_form_by_a_number(target: str):
    stage = re.search(rf"^FROM runtime AS {target}\n(.*?)(?=^FROM |\Z)", DOCKERFILE, re.DOTALL | re.MULTILINE)
    assert stage is not None
    assert "USER 65532:65532\n" in stage[1]
    assert f'ENTRYPOINT ["python3", "-m", "services.{target}"]\n' in stage[1]
    assert (
        f'CMD ["python3", "-m", "casemate.cli", "health", "{target}", "--identity", "/run/casemate/service"]'
        in stage[1]
    )
    assert not re.search(r"^(RUN|ADD) ", stage[1], re.MULTILINE), "a base without a shell must do"


def test_builder_installs_locked_wheels_alone():
    installed = DOCKERFILE + (CHECKOUT / "deploy" / "images" / "builder" / "install-packages").read_text()
    commands = re.findall(r"pip install (?:[^\n]|\\\n)*", installed)
    assert commands
    assert all("--require-hashes --only-binary :all:" in command for command in commands)


@pytest.mark.parametrize("name", ["build", "tools", *SERVICES, "aws"])
def test_every_requirement_of_an_image_is_locked_by_hash_and_as_everywhere_else(name: str):
    def versions(file: Path) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        for package, version in re.findall(r"^([a-z0-9._-]+)(?:\[[^]]*\])?==(\S+)", file.read_text(), re.MULTILINE):
            found.setdefault(package, set()).add(version)
        return found

    lock = CHECKOUT / "requirements" / f"{name}.txt"
    everywhere = versions(CHECKOUT / "requirements" / "run.txt")
    assert versions(lock)
    for package, found in versions(lock).items():
        assert found <= everywhere.get(package, found), package
    entries = re.split(r"\n(?=[a-z])", re.sub(r"^\s*#.*\n", "", lock.read_text(), flags=re.MULTILINE).strip())
    assert all("--hash=sha256:" in entry for entry in entries)
