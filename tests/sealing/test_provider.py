"""The setting that chooses a provider, and what it opens."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from casemate.clock import SystemClock
from casemate.errors import ConfigurationError
from casemate.sealing.keys import KeyContext
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.pkcs11 import Pkcs11Key
from casemate.sealing.pkcs11_token import Pkcs11Token
from casemate.sealing.provider import AwsKmsKek, FileKek, KekSettings, Pkcs11Kek, kek_location, load_kek
from casemate.settings import load_settings
from tests.support.keks import AwsProvider, SoftHsm

CONTEXT = KeyContext(purpose="dataset-rows", tenant="acme", name="digits", version=1)
ARN = "arn:aws:kms:eu-central-1:123456789012:key/4f4e12d3-c447-4f3e-a821-dcaf485744ec"
MRK = "arn:aws-us-gov:kms:us-gov-west-1:123456789012:key/mrk-4f4e12d3c4474f3ea821dcaf485744ec"
TOKEN = "pkcs11:token=HSM%20one;object=kek?module-path=/usr/lib/m.so&pin-source=file:/run/pin"


@pytest.mark.parametrize(
    ("value", "location"),
    [
        ("file:/var/lib/kek.json", FileKek(path=Path("/var/lib/kek.json"))),
        (f"aws-kms:{ARN}", AwsKmsKek(key_arn=ARN, endpoint_url=None)),
        (f"aws-kms:{MRK}", AwsKmsKek(key_arn=MRK, endpoint_url=None)),
        (f"aws-kms:{ARN}?endpoint=https://kms.vpc", AwsKmsKek(key_arn=ARN, endpoint_url="https://kms.vpc")),
        (
            f"aws-kms:{ARN}?endpoint=http://127.0.0.1:5000",
            AwsKmsKek(key_arn=ARN, endpoint_url="http://127.0.0.1:5000"),
        ),
        (
            TOKEN,
            Pkcs11Kek(token="HSM one", label="kek", module=Path("/usr/lib/m.so"), pin_file=Path("/run/pin")),
        ),
    ],
)
def test_setting_names_its_provider(value: str, location: object) -> None:
    """As written in the module's docstring."""
    assert kek_location(value) == location


@pytest.mark.parametrize(
    "value",
    [
        "",
        "/var/lib/kek.json",
        "file",
        "file:kek.json",
        "file://host/kek.json",
        "vault:CANARY",
        "aws-kms:",
        "aws-kms:CANARY",
        "aws-kms:arn:aws:kms:eu-central-1:123456789012:alias/CANARY",
        f"aws-kms:{ARN}?endpoint=http://CANARY",
        f"aws-kms:{ARN}?endpoint=https://user:CANARY@kms",
        f"aws-kms:{ARN}?endpoint=CANARY",
        f"aws-kms:{ARN}?region=CANARY",
        "pkcs11:",
        "pkcs11:token=a;object=b",
        TOKEN.replace("object=kek", "object="),
        TOKEN.replace("object=kek", "object=kek;object=CANARY"),
        TOKEN.replace("/usr/lib/m.so", "CANARY.so"),
        TOKEN.replace("file:/run/pin", "CANARY"),
        TOKEN.replace("pin-source=file:/run/pin", "pin-value=CANARY"),
        TOKEN + "&pin-value=CANARY",
        TOKEN.replace("kek", "CANARY%00"),
        TOKEN.replace("kek", "CANARY%ff%0a"),
    ],
)
def test_anything_else_is_refused_without_quoting_it(value: str) -> None:
    """It may be a PIN or a key, pasted into the wrong place."""
    with pytest.raises(ValueError, match=r".") as refused:
        kek_location(value)
    assert "CANARY" not in str(refused.value)
    assert refused.value.__cause__ is None


def test_settings_come_from_the_environment_in_either_spelling() -> None:
    """The older name keeps its meaning; both, or neither, is a mistake."""
    both = {"CASEMATE_AUTH_KEK": "file:/a", "CASEMATE_AUTH_KEK_FILE": "/b"}
    new = load_settings(KekSettings, {"CASEMATE_AUTH_KEK": "file:/a"}, component="auth")
    old = load_settings(KekSettings, {"CASEMATE_AUTH_KEK_FILE": "/b"}, component="auth")
    assert (new.location(), old.location()) == (FileKek(path=Path("/a")), FileKek(path=Path("/b")))
    for environment in ({}, both):
        with pytest.raises(ConfigurationError, match="CASEMATE_AUTH_KEK or CASEMATE_AUTH_KEK_FILE"):
            load_settings(KekSettings, environment, component="auth")
    with pytest.raises(ConfigurationError, match="one of the settings"):
        KekSettings().location()


async def test_file_setting_opens_the_ring(tmp_path: Path) -> None:
    """And a missing one is refused before the block."""
    settings = KekSettings(kek=kek_location(f"file:{tmp_path}/kek.json"))
    with pytest.raises(ConfigurationError, match="missing"):
        async with load_kek(settings, clock=SystemClock()):
            pass
    key, wrapped = await LocalKeyRing.create(tmp_path / "kek.json").generate_data_key(CONTEXT)
    async with load_kek(settings, clock=SystemClock()) as kek:
        assert await kek.unwrap(wrapped, CONTEXT) == key


async def test_key_in_a_file_is_said_once_at_the_start_to_be_for_development(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """And in its state, at each asking; a process that starts without its file says what is missing instead."""
    settings = KekSettings(kek_file=tmp_path / "kek.json")
    with pytest.raises(ConfigurationError, match="missing"):
        async with load_kek(settings, clock=SystemClock()):
            pass
    assert "for development" not in caplog.text
    LocalKeyRing.create(tmp_path / "kek.json")
    async with load_kek(settings, clock=SystemClock()) as kek:
        for _ in range(2):
            assert (await kek.state()).is_for_development
    assert caplog.text.count("for development") == 1


async def test_kms_setting_opens_the_key(aws: AwsProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    """With credentials from where AWS's tools look."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    key, wrapped = await aws.kek.generate_data_key(CONTEXT)
    settings = KekSettings(kek=kek_location(f"aws-kms:{aws.arn}?endpoint={aws.double.url}"))
    async with load_kek(settings, clock=SystemClock()) as kek:
        assert await kek.unwrap(wrapped, CONTEXT) == key


async def test_token_setting_opens_the_key(softhsm: SoftHsm, tmp_path: Path) -> None:
    """The PIN stands in a file, which nobody else may read."""
    pin_file = tmp_path / "pin"
    pin_file.write_text(softhsm.pin.reveal() + "\n")
    pin_file.chmod(0o644)
    value = f"pkcs11:token={softhsm.label};object=by-setting?module-path={softhsm.module}&pin-source=file:{pin_file}"
    settings = KekSettings(kek=kek_location(value))
    with pytest.raises(ConfigurationError, match="chmod 600"):
        async with load_kek(settings, clock=SystemClock()):
            pass
    pin_file.chmod(0o600)
    async with Pkcs11Token.open(module=softhsm.module, label=softhsm.label, pin=softhsm.pin) as token:
        key, wrapped = await (await Pkcs11Key.create(token=token, label="by-setting")).generate_data_key(CONTEXT)
    async with load_kek(settings, clock=SystemClock()) as kek:
        assert await kek.unwrap(wrapped, CONTEXT) == key


@pytest.mark.parametrize(
    ("value", "extra"), [(f"aws-kms:{ARN}", "casemate[aws]"), (TOKEN, "casemate[pkcs11]")], ids=["aws", "pkcs11"]
)
def test_without_its_extra_a_provider_is_refused_by_name_and_the_rest_works(
    value: str, extra: str, tmp_path: Path
) -> None:
    """In a process that can import neither library."""
    program = f"""
import asyncio, pathlib, sys
for name in ("aioboto3", "aiobotocore", "boto3", "botocore", "pkcs11"):
    sys.modules[name] = None
from casemate.clock import SystemClock
from casemate.errors import ConfigurationError
from casemate.sealing import authority_rows, files, kek, keys, local, provider, rows
async def load(value):
    settings = provider.KekSettings(kek=provider.kek_location(value))
    async with provider.load_kek(settings, clock=SystemClock()) as kek:
        print((await kek.state()).status)
local.LocalKeyRing.create(pathlib.Path({str(tmp_path / "kek.json")!r}))
asyncio.run(load({f"file:{tmp_path}/kek.json"!r}))
try:
    asyncio.run(load({value!r}))
except ConfigurationError as error:
    print(error)
assert not {{"grpc", "asyncpg"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    status, refusal = done.stdout.splitlines()
    assert status == "ENABLED"
    assert extra in refusal
