"""The commands where services are told everything by their environment, as containers are."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from casemate.backup.places import AUTH, DATAKEYS, DATASETS
from casemate.storage.pool import open_connection
from casemate.transport.floor import CIPHER_SUITES, CIPHER_SUITES_VARIABLE
from tests.backup.small import House
from tests.support.up import CASEMATE

pytestmark = pytest.mark.long


def environment(house: House, folder: Path) -> dict[str, str]:
    """What the services of a house are told, the secrets by files."""
    values = {
        CIPHER_SUITES_VARIABLE: CIPHER_SUITES,
        "CASEMATE_AUTH_KEK_FILE": str(house.auth.kek.kek_file),
        "CASEMATE_DATASETS_KEK": f"file:{house.datasets.kek.kek_file}",
        "CASEMATE_INFERENCE_KEK_FILE": str(house.inference_kek),
        "CASEMATE_INFERENCE_REPOSITORY_DIR": str(house.repository),
        "CASEMATE_AUTH_AUTHORITY_KEY_FILE": str(house.auth.authority_key),
        "CASEMATE_DATASETS_AUTHORITY_KEY_FILE": str(house.datasets.authority_key),
    }
    for service in ("AUTH", "DATASETS"):
        values[f"CASEMATE_{service}_IDENTITY_DIR"] = str(house.auth.identity.directory)
        values[f"CASEMATE_{service}_AUDIT_FILE"] = str(folder / f"{service}.jsonl")
    prefixes = {AUTH: "AUTH_DATABASE", DATASETS: "DATASETS_DATABASE", DATAKEYS: "DATASETS_DATAKEYS_DATABASE"}
    folder.mkdir(exist_ok=True)
    for name, prefix in prefixes.items():
        database = house.places.databases[name]
        file = folder / name
        file.touch(mode=0o600)
        file.write_text(database.password.reveal())
        values |= {
            f"CASEMATE_{prefix}_HOST": database.host,
            f"CASEMATE_{prefix}_PORT": str(database.port),
            f"CASEMATE_{prefix}_NAME": database.name,
            f"CASEMATE_{prefix}_USER": database.user,
            f"CASEMATE_{prefix}_PASSWORD_FILE": str(file),
        }
    return {**{name: value for name, value in os.environ.items() if not name.startswith("CASEMATE_")}, **values}


def casemate(told: dict[str, str], *arguments: object, status: int = 0) -> dict:
    done = subprocess.run(
        [CASEMATE, "backup", *map(str, arguments), "--from-environment", "--json"],
        env=told,
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == status, done.stderr
    return json.loads(done.stdout) if status == 0 else {"why": done.stderr}


async def test_create_verify_and_restore_take_everything_from_the_services_settings(house, elsewhere, tmp_path):
    here, there = environment(house, tmp_path / "here"), environment(elsewhere, tmp_path / "there")
    made = casemate(here, "create", "--to", tmp_path / "backups")
    folders = {one["class"]: one["folder"] for one in made["backups"]}
    newer = casemate(here, "create", "--to", tmp_path / "backups", "--only", "log")["backups"][0]["folder"]
    assert casemate(here, "verify", folders["rows"])["holds"]
    restore = ("restore", "--rows", folders["rows"], "--datakeys", folders["datakeys"])

    assert "would come back unseen" in casemate(there, *restore, status=1)["why"]
    done = casemate(there, *restore, "--log", newer)
    assert done["auth"]["families_ended"] == 1
    assert elsewhere.auth.authority_key.exists()
    connection = await open_connection(elsewhere.auth.database)
    assert await connection.fetchval("SELECT count(*) FROM client") == 2
    await connection.close()
    assert "is not empty" in casemate(there, *restore, "--log", newer, status=1)["why"]
