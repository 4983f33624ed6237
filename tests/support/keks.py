"""Every provider of key-encryption keys, each with its faults, behind one interface for one suite."""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import json
import os
import secrets
import shutil
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Protocol

import aioboto3
import pytest

from casemate.clock import SystemClock
from casemate.sealing.aws_kms import AwsKmsKey, AwsKmsLimits
from casemate.sealing.kek import KeyEncryptionKey
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.pkcs11 import Pkcs11Key
from casemate.sealing.pkcs11_token import Pkcs11Token
from casemate.secret import Secret
from tests.support.kms_double import FaultyKms, faulty_kms

CHECKOUT = Path(__file__).parents[2]
NO_SOFTHSM = "no SoftHSM on this machine: deploy/install-softhsm, as root on Debian"
_SOFTHSM = "softhsm/libsofthsm2.so"
_FOLDERS = ("/usr/lib", "/usr/lib64", "/usr/local/lib", "/opt/homebrew/lib")
_skipped: list[str] = []


class Fault(Enum):
    """What can happen to a provider or to a key in it."""

    DISABLED = "disabled"
    PENDING_DELETION = "pending deletion"
    DESTROYED = "destroyed"
    DENIED = "denied"
    THROTTLED = "throttled"
    TIMED_OUT = "timed out"
    FAILING = "failing"
    UNREACHABLE = "unreachable"


class Provider(Protocol):
    """One key-encryption key under test, and what can be done to it from outside."""

    impossible: ClassVar[dict[Fault, str]]
    kek: KeyEncryptionKey

    async def other(self) -> KeyEncryptionKey:
        """Another key of the same provider."""

    async def rotate(self) -> KeyEncryptionKey:
        """The same key with a version more, as the next reader sees it."""

    async def impostor(self) -> KeyEncryptionKey:
        """What has the same name and opens with another key."""

    async def without_old_versions(self) -> KeyEncryptionKey | None:
        """The same key, rotated, its first version gone; None where a provider keeps all."""

    def fault(self, fault: Fault) -> Any:
        """A block in which the fault holds; gives the key as it is met then."""


class LocalProvider:
    """A ring in a file. What it can do to a process that has loaded it is nothing."""

    impossible: ClassVar = {
        Fault.DISABLED: "a file has no states",
        Fault.PENDING_DELETION: "a file has no states",
        Fault.DESTROYED: "the ring is in memory; without its file the next start is refused (test_keys)",
        Fault.DENIED: "the file's mode is judged at the start (test_keys)",
        Fault.THROTTLED: "it is a computation in the process",
        Fault.TIMED_OUT: "it is a computation in the process",
        Fault.FAILING: "it is a computation in the process",
        Fault.UNREACHABLE: "it is a computation in the process",
    }

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "kek.json"
        self.kek: KeyEncryptionKey = LocalKeyRing.create(self._path)

    async def other(self) -> KeyEncryptionKey:
        return LocalKeyRing.create(self._folder / "other.json")

    async def rotate(self) -> KeyEncryptionKey:
        return LocalKeyRing.rotate(self._path)

    async def impostor(self) -> KeyEncryptionKey:
        kek_id = json.loads(self._path.read_bytes())["kek_id"]
        return LocalKeyRing(kek_id=kek_id, versions={1: Secret(secrets.token_bytes(32))})

    async def without_old_versions(self) -> KeyEncryptionKey | None:
        LocalKeyRing.rotate(self._path)
        document = json.loads(self._path.read_bytes())
        del document["versions"]["1"]
        self._path.write_text(json.dumps(document))
        return LocalKeyRing.load(self._path)

    def fault(self, fault: Fault) -> Any:
        raise AssertionError(fault)


class AwsProvider:
    """A key of moto's KMS behind the double, met by the real client."""

    impossible: ClassVar[dict[Fault, str]] = {}
    LIMITS: ClassVar = AwsKmsLimits(call=timedelta(seconds=30), attempt=timedelta(seconds=20), attempts=1)
    HASTY: ClassVar = AwsKmsLimits(call=timedelta(milliseconds=300), attempts=1)
    _REFUSALS: ClassVar = {
        Fault.DESTROYED: ("NotFoundException", 400),
        Fault.DENIED: ("AccessDeniedException", 400),
        Fault.THROTTLED: ("ThrottlingException", 400),
        Fault.FAILING: ("KMSInternalException", 500),
    }

    def __init__(self, *, stack: AsyncExitStack, admin: Any, double: FaultyKms) -> None:
        self._stack = stack
        self.admin = admin
        self.double = double
        self.arn = ""

    async def start(self) -> None:
        self.arn = await self.make_key()
        self.kek: KeyEncryptionKey = await self.open(self.arn)

    async def make_key(self) -> str:
        return str((await self.admin.create_key())["KeyMetadata"]["Arn"])

    async def open(self, arn: str, *, url: str | None = None, limits: AwsKmsLimits = LIMITS) -> AwsKmsKey:
        opened = AwsKmsKey.open(
            arn, clock=SystemClock(), limits=limits, endpoint_url=url or self.double.url, session=session()
        )
        return await self._stack.enter_async_context(opened)

    async def other(self) -> KeyEncryptionKey:
        return await self.open(await self.make_key())

    async def rotate(self) -> KeyEncryptionKey:
        await self.admin.rotate_key_on_demand(KeyId=self.arn)
        await self.kek.state()  # Otherwise it would learn of the new version within a minute.
        return self.kek

    async def impostor(self) -> KeyEncryptionKey:
        self.double.give_another_plaintext()
        return self.kek

    async def without_old_versions(self) -> KeyEncryptionKey | None:
        return None

    @asynccontextmanager
    async def fault(self, fault: Fault) -> AsyncIterator[KeyEncryptionKey]:
        key_id = self.arn.rpartition("/")[2]  # moto wants the bare name here
        if fault is Fault.DISABLED:
            await self.admin.disable_key(KeyId=key_id)
            yield self.kek
            await self.admin.enable_key(KeyId=key_id)
        elif fault is Fault.PENDING_DELETION:
            await self.admin.schedule_key_deletion(KeyId=key_id, PendingWindowInDays=7)
            yield self.kek
            await self.admin.cancel_key_deletion(KeyId=key_id)
            await self.admin.enable_key(KeyId=key_id)
        elif fault is Fault.TIMED_OUT:
            self.double.slow = True
            yield await self.open(self.arn, limits=self.HASTY)
            self.double.slow = False
        elif fault is Fault.UNREACHABLE:
            yield await self.open(self.arn, url="http://127.0.0.1:1")  # Nothing listens there.
        else:
            self.double.refusal = self._REFUSALS[fault]
            yield self.kek
            self.double.refusal = None


class Pkcs11Provider:
    """A key in a SoftHSM token."""

    impossible: ClassVar = {
        Fault.PENDING_DELETION: "C_DestroyObject is at once and for ever",
        Fault.DENIED: "a login may use every key or none",
        Fault.THROTTLED: "a module answers one call after the other",
        Fault.FAILING: "SoftHSM cannot be made to fail; a lost session is (test_pkcs11)",
    }

    def __init__(self, token: Pkcs11Token) -> None:
        self.token = token
        self.label = f"kek-{secrets.token_hex(8)}"

    async def start(self) -> None:
        self.kek: KeyEncryptionKey = await Pkcs11Key.create(token=self.token, label=self.label)

    async def other(self) -> KeyEncryptionKey:
        return await Pkcs11Key.create(token=self.token, label=f"kek-{secrets.token_hex(8)}")

    async def rotate(self) -> KeyEncryptionKey:
        await Pkcs11Key(token=self.token, label=self.label).rotate()
        return self.kek

    async def impostor(self) -> KeyEncryptionKey:
        await self._destroy()
        return await Pkcs11Key.create(token=self.token, label=self.label)

    async def without_old_versions(self) -> KeyEncryptionKey | None:
        await self.rotate()
        await self._destroy(identifier=b"\0\0\0\1")
        return self.kek

    @asynccontextmanager
    async def fault(self, fault: Fault) -> AsyncIterator[KeyEncryptionKey]:
        if fault is Fault.DISABLED:
            await self.set_usable(usable=False)
            yield self.kek
            await self.set_usable(usable=True)
        elif fault is Fault.DESTROYED:
            await self._destroy()
            yield self.kek
        elif fault is Fault.UNREACHABLE:
            # The session is gone and the module no longer there to open another.
            hidden = Pkcs11Token(
                module=Path("/nowhere.so"), label=self.token.label, pin=Secret("0"), timeout=timedelta(seconds=20)
            )
            yield Pkcs11Key(token=hidden, label=self.label)
            hidden.close()
        else:
            release = threading.Event()
            blocked = asyncio.ensure_future(self.token.run(lambda _: release.wait()))
            yield self.kek
            release.set()
            await asyncio.wait([blocked])
            blocked.exception()

    async def set_usable(self, *, usable: bool) -> None:
        from pkcs11 import Attribute

        def change(session: Any) -> None:
            for kek in session.get_objects({Attribute.LABEL: self.label}):
                kek[Attribute.ENCRYPT] = kek[Attribute.DECRYPT] = usable

        await self.token.run(change, writing=True)

    async def _destroy(self, *, identifier: bytes | None = None) -> None:
        from pkcs11 import Attribute

        def destroy(session: Any) -> None:
            for kek in list(session.get_objects({Attribute.LABEL: self.label})):
                if identifier in {None, bytes(kek[Attribute.ID])}:
                    kek.destroy()

        await self.token.run(destroy, writing=True)


@dataclasses.dataclass(frozen=True)
class SoftHsm:
    """An initialised token of SoftHSM."""

    module: Path
    label: str
    pin: Secret[str]


@functools.cache
def session() -> aioboto3.Session:
    """Credentials that only moto takes, whatever this machine has of its own. One, as it is slow to make."""
    return aioboto3.Session(aws_access_key_id="test", aws_secret_access_key="test")


@pytest.fixture(scope="session")
def moto_url() -> Iterator[str]:
    """Where moto's server listens."""
    child = subprocess.Popen(
        [sys.executable, "-m", "tests.support.moto_process"],
        cwd=CHECKOUT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    with child:
        port = child.stdout.readline().strip()
        assert port, "moto's server did not start: .venv/bin/python -m tests.support.moto_process says why"
        yield f"http://127.0.0.1:{port}"
        child.stdin.close()
        child.wait(timeout=30)


@pytest.fixture
async def aws(moto_url: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[AwsProvider]:
    """A key of KMS, with the double to bring faults about."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nowhere")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nowhere")
    async with AsyncExitStack() as stack:
        made = session().client("kms", region_name="eu-central-1", endpoint_url=moto_url)
        admin = await stack.enter_async_context(made)
        double = await stack.enter_async_context(faulty_kms(moto_url))
        provider = AwsProvider(stack=stack, admin=admin, double=double)
        await provider.start()
        yield provider


def find_softhsm() -> Path | None:
    """The library of SoftHSM 2, where this machine has one."""
    folders = [Path(folder) for folder in _FOLDERS] + sorted(Path("/usr/lib").glob("*-linux-gnu"))
    return next((folder / _SOFTHSM for folder in folders if (folder / _SOFTHSM).exists()), None)


@pytest.fixture(scope="session")
def softhsm(tmp_path_factory: pytest.TempPathFactory) -> SoftHsm:
    """A token of SoftHSM in a folder of the test run; skips without the library."""
    module, tool = find_softhsm(), shutil.which("softhsm2-util")
    if module is None or tool is None:
        _skipped.append(NO_SOFTHSM)
        pytest.skip(NO_SOFTHSM)
    folder = tmp_path_factory.mktemp("softhsm")
    (folder / "tokens").mkdir(mode=0o700)
    configuration = folder / "softhsm2.conf"
    configuration.write_text(f"directories.tokendir = {folder}/tokens\nobjectstore.backend = file\nlog.level = ERROR\n")
    os.environ["SOFTHSM2_CONF"] = str(configuration)  # The library reads it once, when it is loaded.
    label, pin = "casemate-test", secrets.token_hex(8)
    command = [tool, "--init-token", "--free", "--label", label, "--pin", pin, "--so-pin", secrets.token_hex(8)]
    subprocess.run(command, check=True, capture_output=True)
    return SoftHsm(module=module, label=label, pin=Secret(pin))


@pytest.fixture
async def pkcs11(softhsm: SoftHsm) -> AsyncIterator[Pkcs11Provider]:
    """A key in the token, with this process logged in."""
    opened = Pkcs11Token.open(module=softhsm.module, label=softhsm.label, pin=softhsm.pin, timeout=timedelta(seconds=2))
    async with opened as token:
        provider = Pkcs11Provider(token)
        await provider.start()
        yield provider


@pytest.fixture
def local(tmp_path: Path) -> LocalProvider:
    """A local ring."""
    return LocalProvider(tmp_path)


@pytest.fixture(params=["local", "aws", "pkcs11"])
def provider(request: pytest.FixtureRequest) -> Provider:
    """Each provider in turn; the suite runs over all of them."""
    return request.getfixturevalue(request.param)


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Says loudly what was not tested, since a quiet run shows a skip as one letter."""
    for reason in sorted(set(_skipped)):
        terminalreporter.write_line(f"NOT TESTED: PKCS#11. {reason}.", yellow=True, bold=True)
