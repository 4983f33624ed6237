"""Data keys in memory for a while, so that not every batch asks the key-encryption key.

How long a key may stay is bounded in time, in uses and in bytes; how many stay, in
number. The bounds are not the cipher's, which are far away (`rows.SALT_BYTES`): they
are how long this process can go on after its right to a key has ended unheard.

A dropped key is forgotten, not overwritten: Python's bytes cannot be. Whoever was
given one keeps it for the batch in hand.

If this fails: a shredded version stays readable in this process until the key's time
is up. The receipt of a shredding counts from when the wrapped key was deleted; whoever
gives one sees to it that the rings are emptied within seconds of that.
"""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Final, NoReturn, TypeAlias

from casemate.clock import Clock
from casemate.errors import CasemateError, FailedPrecondition, Unavailable
from casemate.sealing.kek import KekState, KekStatus, KeyEncryptionKey
from casemate.sealing.keys import DataKey, KeyContext, WrappedKey

_LOGGER = logging.getLogger(__name__)
_ATTEMPTS: Final = 3

_Name: TypeAlias = tuple[str, KeyContext]


@dataclass(frozen=True, slots=True, kw_only=True)
class RingLimits:
    """How much of what a ring may keep.

    Attributes:
        keys: at most so many; the one that was used longest ago goes first.
        age: from the moment that unwrapping began.
        uses: how often one unwrapped key is given out.
        use_bytes: how many bytes one unwrapped key seals and opens.
        wait: how long reading and unwrapping may take together.

    Raises:
        ValueError: a limit is not positive.
    """

    keys: int = 1024
    age: timedelta = timedelta(minutes=5)
    uses: int = 1_000_000
    use_bytes: int = 2**40
    wait: timedelta = timedelta(seconds=10)

    def __post_init__(self) -> None:
        if min(self.keys, self.uses, self.use_bytes) < 1 or min(self.age, self.wait) <= timedelta(0):
            raise ValueError("a limit of a key ring is positive")


@dataclass(slots=True, kw_only=True)
class _Entry:
    key: DataKey
    until: float
    uses_left: int
    bytes_left: int

    @property
    def is_used_up(self) -> bool:
        return self.uses_left < 1 or self.bytes_left < 1


@dataclass(eq=False, slots=True)
class _Wait:
    """One who waits for a flight, and whether the key was dropped meanwhile."""

    name: _Name
    dropped: bool = False


class DataKeyRing:
    """The data keys that one event loop's tasks share. Not for several threads.

    Args:
        kek: unwraps them.
        clock: its monotonic side measures age.
        limits: how much is kept for how long.
    """

    __slots__ = ("_clock", "_entries", "_flights", "_kek", "_limits", "_waits")

    def __init__(self, *, kek: KeyEncryptionKey, clock: Clock, limits: RingLimits | None = None) -> None:
        self._kek = kek
        self._clock = clock
        self._limits = limits or RingLimits()
        self._entries: OrderedDict[_Name, _Entry] = OrderedDict()
        self._flights: dict[_Name, asyncio.Task[_Entry]] = {}
        self._waits: set[_Wait] = set()

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        return f"DataKeyRing({len(self)} keys)"

    def __reduce_ex__(self, _protocol: object) -> NoReturn:
        raise TypeError("a DataKeyRing is not serialized")

    async def key(
        self, identifier: str, context: KeyContext, load: Callable[[], Awaitable[WrappedKey]], *, use_bytes: int = 0
    ) -> DataKey:
        """The data key with this identifier, unwrapped for this context.

        On a miss one task reads and unwraps for all who wait; one that stops waiting
        does not stop it. A failure is given to all of them and is not kept. A key whose
        unwrapping began before a `drop` is not given out after it.

        Args:
            identifier: which stored key.
            context: what it is bound to. The same key under another context is another entry.
            load: reads the wrapped key; called on a miss alone.
            use_bytes: how many bytes the caller is about to seal or open.

        Raises:
            Unavailable: reading and unwrapping took longer than the limit or than a key may
                age, or the key was dropped again and again meanwhile.
            CasemateError: whatever `load` and the key-encryption key raise.
        """
        name = (identifier, context)
        attempts = 0
        while attempts < _ATTEMPTS:
            entry = self._held(name) or await self._waited_for(name, load)
            if entry is None or self._clock.monotonic() >= entry.until:
                attempts += 1
            elif not entry.is_used_up:
                self._count(name, entry, use_bytes)
                return entry.key
            # Otherwise used up by others who waited for the same flight.
        raise Unavailable(f"data key {identifier} was dropped or too old once unwrapped, {_ATTEMPTS} times")

    def drop(self, selects: Callable[[str, KeyContext], bool] | None = None) -> int:
        """Forgets the keys that `selects` names, all of them if it is not given, and says how many.

        To be called on every rotation, revocation and shredding. Whichever of them is being
        unwrapped at this moment is read and unwrapped again; the others are left alone.
        """
        for wait in self._waits:
            wait.dropped = wait.dropped or selects is None or selects(*wait.name)
        # Without a flight's name in here, the next to ask begins a new one.
        for name in [name for name in self._flights if selects is None or selects(*name)]:
            del self._flights[name]
        names = [name for name in self._entries if selects is None or selects(*name)]
        for name in names:
            del self._entries[name]
        return len(names)

    async def _waited_for(self, name: _Name, load: Callable[[], Awaitable[WrappedKey]]) -> _Entry | None:
        """What the flight brings; None if the key was dropped before we heard of it."""
        wait = _Wait(name)
        self._waits.add(wait)
        try:
            entry = await asyncio.shield(self._flight(name, load))
        finally:
            self._waits.discard(wait)
        return None if wait.dropped else entry

    def _held(self, name: _Name) -> _Entry | None:
        flight = self._flights.get(name)
        if flight is not None and flight.done():
            self._landed(name, flight)  # Its own callback is due; waiting for it would not let it run.
        entry = self._entries.get(name)
        if entry is None:
            return None
        if self._clock.monotonic() >= entry.until or entry.is_used_up:
            del self._entries[name]
            return None
        self._entries.move_to_end(name)
        return entry

    def _flight(self, name: _Name, load: Callable[[], Awaitable[WrappedKey]]) -> asyncio.Task[_Entry]:
        flight = self._flights.get(name)
        if flight is None:
            flight = asyncio.create_task(self._unwrap(name, load))
            self._flights[name] = flight
            flight.add_done_callback(partial(self._landed, name))
        return flight

    async def _unwrap(self, name: _Name, load: Callable[[], Awaitable[WrappedKey]]) -> _Entry:
        identifier, context = name
        began = self._clock.monotonic()
        try:
            async with asyncio.timeout(self._limits.wait.total_seconds()):
                key = await self._kek.unwrap(await load(), context)
        except TimeoutError as error:
            raise Unavailable(f"data key {identifier} was not unwrapped in time") from error
        return _Entry(
            key=key,
            until=began + self._limits.age.total_seconds(),
            uses_left=self._limits.uses,
            bytes_left=self._limits.use_bytes,
        )

    def _landed(self, name: _Name, flight: asyncio.Task[_Entry]) -> None:
        # Looked at even if nobody waits any more, or asyncio would complain of an error unseen.
        failed = flight.cancelled() or flight.exception() is not None
        if self._flights.get(name) is not flight:
            return  # a drop came in between
        del self._flights[name]
        if failed:
            return
        self._entries[name] = flight.result()
        while len(self._entries) > self._limits.keys:
            self._entries.popitem(last=False)

    def _count(self, name: _Name, entry: _Entry, use_bytes: int) -> None:
        entry.uses_left -= 1
        entry.bytes_left -= use_bytes
        if entry.is_used_up and self._entries.get(name) is entry:
            del self._entries[name]


class KekWatch:
    """Empties rings when the key-encryption key rotates, is disabled, denied to us, or is to be deleted.

    A provider that cannot be asked, or answers what nobody understands, empties nothing: what
    is in memory stays for its age, and nothing new unwraps. One that refuses us empties them.

    Args:
        kek: asked for its state.
        rings: emptied on a change.
        interval: between two looks; also how long one may take. Twice this, four seconds by
            default, is the longest that an event goes unseen while the provider answers.
    """

    def __init__(
        self, *, kek: KeyEncryptionKey, rings: tuple[DataKeyRing, ...], interval: timedelta = timedelta(seconds=2)
    ) -> None:
        self._kek = kek
        self._rings = rings
        self._interval_seconds = interval.total_seconds()
        self._seen: KekState | FailedPrecondition | None = None
        self._unknown = ""

    async def look(self) -> bool:
        """Asks once; true if the rings were emptied."""
        try:
            async with asyncio.timeout(self._interval_seconds):
                state = await self._kek.state()
        except FailedPrecondition as error:
            return self._refused(error)
        except (TimeoutError, CasemateError) as error:
            self._is_unknown(error, logging.WARNING)
            return False
        except Exception as error:  # noqa: BLE001  # a provider's fault that nobody foresaw must not end the looking
            self._is_unknown(error, logging.CRITICAL)
            return False
        self._unknown = ""
        before, self._seen = self._seen, state
        if state == before or (before is None and state.status is KekStatus.ENABLED):
            return False
        _LOGGER.info(
            "%s is %s at version %d: %d data keys dropped",
            *(state.kek_id, state.status.value, state.current_version, self._empty()),
        )
        return True

    async def run(self) -> None:
        """Looks until it is cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(self._interval_seconds)

    def _refused(self, error: FailedPrecondition) -> bool:
        """Once for each time that it begins: what is unwrapped later was allowed later."""
        self._unknown = ""
        before, self._seen = self._seen, error
        if isinstance(before, FailedPrecondition):
            return False
        _LOGGER.critical("the key-encryption key is refused to us, %d data keys dropped: %s", self._empty(), error)
        return True

    def _is_unknown(self, error: Exception, level: int) -> None:
        """Says so once and not at every look. Without the error's text: it may be anybody's."""
        if type(error).__name__ != self._unknown:
            self._unknown = type(error).__name__
            _LOGGER.log(level, "the key-encryption key's state is unknown: %s", self._unknown)

    def _empty(self) -> int:
        return sum(ring.drop() for ring in self._rings)
