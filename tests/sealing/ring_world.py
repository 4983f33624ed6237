"""What the tests beside this share."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import io
import traceback
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from casemate.errors import FailedPrecondition, Reason, Unavailable
from casemate.sealing.kek import KekState, KekStatus
from casemate.sealing.key_ring import DataKeyRing, RingLimits
from casemate.sealing.keys import DataKey, KeyContext, WrappedKey
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.rows import BatchContext

CONTEXT = KeyContext(purpose="dataset-rows", tenant="acme", name="digits", version=1)


OTHER = dataclasses.replace(CONTEXT, version=2)


class HandClock:
    """Time that the test moves."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def now(self) -> datetime:
        return datetime.fromtimestamp(self.seconds, UTC)

    def monotonic(self) -> float:
        return self.seconds


class Provider:
    """A real local ring behind a gate: it can be held, made to refuse, and counts what it unwraps."""

    def __init__(self, path: Path) -> None:
        self.local = LocalKeyRing.create(path)
        self.unwrapped = 0
        self.open = asyncio.Event()
        self.open.set()
        self.asked = asyncio.Event()
        self.status = KekStatus.ENABLED
        self.version = 1
        self.reachable = True
        self.denied = False
        self.odd: Exception | None = None

    async def generate_data_key(self, context: KeyContext) -> tuple[DataKey, WrappedKey]:
        return await self.local.generate_data_key(context)

    async def wrap(self, key: DataKey, context: KeyContext) -> WrappedKey:
        return await self.local.wrap(key, context)

    async def rewrap(self, wrapped: WrappedKey, context: KeyContext) -> WrappedKey:
        return await self.local.rewrap(wrapped, context)

    async def unwrap(self, wrapped: WrappedKey, context: KeyContext) -> DataKey:
        self.unwrapped += 1
        self.asked.set()
        await self.open.wait()
        if self.status is not KekStatus.ENABLED:
            raise FailedPrecondition("disabled", reason=Reason.KEY_NOT_ACTIVE)
        return await self.local.unwrap(wrapped, context)

    async def state(self) -> KekState:
        if not self.reachable:
            raise Unavailable("no route")
        if self.denied:
            raise FailedPrecondition("denied", reason=Reason.KEY_NOT_ACTIVE)
        if self.odd is not None:
            raise self.odd
        return KekState(kek_id="local", current_version=self.version, status=self.status)


class Stored:
    """One wrapped key and how it is read."""

    def __init__(self, key: DataKey, wrapped: WrappedKey) -> None:
        self.key, self.wrapped = key, wrapped
        self.reads = 0

    async def load(self) -> WrappedKey:
        self.reads += 1
        return self.wrapped


Build = Callable[..., DataKeyRing]


ROWS_CONTEXT = BatchContext(tenant="acme", dataset="digits", version=1, batch=0, schema_sha256=bytes(32))


CANARY = b"canary-canary-canary-canary-0001"


def forms(canary: bytes) -> list[str]:
    """Every spelling in which a key might turn up."""
    return [
        canary.decode(),
        repr(canary),
        canary.hex(),
        canary.hex(" "),
        base64.b64encode(canary).decode().rstrip("="),
        base64.urlsafe_b64encode(canary).decode().rstrip("="),
        str(list(canary)),
        str(int.from_bytes(canary)),
    ]


async def _attempt(action: Callable[[], Awaitable[object]], said: io.StringIO) -> None:
    """Writes down what a failure says, as `%r`, as `%s` and as a traceback."""
    try:
        print(repr(await action()), file=said)
    except Exception as error:  # noqa: BLE001  # whatever it is, it is searched
        print(repr(error), str(error), vars(error), file=said)
        said.write("".join(traceback.format_exception(error)))


@pytest.fixture
def clock() -> HandClock:
    return HandClock()


@pytest.fixture
async def provider(tmp_path: Path) -> Provider:
    return Provider(tmp_path / "kek.json")


@pytest.fixture
async def stored(provider: Provider) -> Stored:
    return Stored(*await provider.generate_data_key(CONTEXT))


@pytest.fixture
def build(provider: Provider, clock: HandClock) -> Build:
    return lambda **limits: DataKeyRing(kek=provider, clock=clock, limits=RingLimits(**limits))
