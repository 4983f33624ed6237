"""What sealing rows costs beside PostgreSQL itself, and beside pgcrypto: `make bench-sealing`.

Every ratio is the median of the ratios within a turn; a turn runs every side once, in
a new random order, so that a machine that slows down slows all of them and no side
always inherits the memory of the same other. The comparison with pgcrypto runs on
Debian's PostgreSQL, the rest on the embedded one.

What bounds what is not reached, as measured on two cores that other work shared:

- Fifty times pgcrypto, on writes of 1 KiB and on anything of 16 KiB: PostgreSQL. COPY of
  plaintext is not fifty times as fast either; the line below each ratio says how fast it is.
- What reached nine tenths of plaintext's read at 16 KiB: turns. The next batch is asked for before
  this one opens, but a socket holds 208 KiB, and a loop that opens a megabyte at once lets the server
  wait with the rest. A turn of the loop after each 64 KiB keeps it sending ("at once": without).
- Threads do not help: two of them sealed no more than one, on rows or on a megabyte at once.
  Larger queries do not either: a batch of a megabyte fits into a cache, four do not.
"""

from __future__ import annotations

import asyncio
import gc
import os
import resource
import secrets
import shutil
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.report import Result, publish
from bench.sealed_table import SIDES, Batches, PgCrypto, Plain, Sealed, Side
from casemate.sealing.keys import DataKey, KeyContext, WrappedKey
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.rows import BatchContext, open_batch, seal_batch
from casemate.storage.embedded import EmbeddedPostgres
from casemate.storage.pool import open_connection

if TYPE_CHECKING:
    from casemate.storage.pool import Connection

MIB: Final = 1024 * 1024
SIZES: Final = {256: "256 B", 1024: "1 KiB", 16 * 1024: "16 KiB"}
BATCHES: Final = 8
WARM_UP: Final = 2
TURNS: Final = 25
SLOW_TURNS: Final = 9
SLOW_ROWS: Final = 256  # pgcrypto takes a third of a millisecond for each
WRAPPED_KEYS: Final = 2000

_BOTH: Final = ("seal and COPY", "read and open")

Samples = dict[str, list[float]]
"""Microseconds a row, by side, one figure a turn."""


async def measure() -> list[Result]:
    """All figures, in about two minutes."""
    results = [_load("before")]
    with tempfile.TemporaryDirectory(prefix="casemate-bench-") as scratch:
        directory = Path(scratch)
        if os.geteuid() == 0:
            os.chmod(directory, 0o711)  # noqa: PTH101, S103  # PostgreSQL is another user, and only passes through
        async with _server(directory / "embedded") as connection:
            for size in SIZES:
                results += await _beside_plaintext(connection, size)
        results += await _beside_pgcrypto(directory)
        results += await _rewrapping(directory)
    return [*results, *_in_process(), _load("after")]


@asynccontextmanager
async def _server(directory: Path, programs: Path | None = None) -> AsyncIterator[Connection]:
    server = EmbeddedPostgres(directory=directory, programs=programs)
    try:
        await server.start()
        connection = await open_connection(server.superuser)
        try:
            yield connection
        finally:
            await connection.close()
    finally:
        await server.erase()


async def _beside_plaintext(connection: Connection, size: int) -> list[Result]:
    rows_each = MIB // size
    batches = [[secrets.token_bytes(size) for _ in range(rows_each)] for _ in range(BATCHES)]
    sides = {name: build(connection, f"{name.replace(' ', '_')}_{size}") for name, build in SIDES.items()}
    writes, reads = await _interleave({name: (side, batches) for name, side in sides.items()}, TURNS)
    label, floor = SIZES[size], 0.7 if size == 256 else 0.8
    write, read = _ratio(writes, "plain", "sealed"), _ratio(reads, "plain", "sealed")
    added = statistics.median(b - a for a, b in zip(reads["plain"], reads["sealed"], strict=True))
    small = size < 16 * 1024
    return [
        Result(f"plaintext COPY, {label}", statistics.median(writes["plain"]), "µs a row"),
        Result(f"seal and COPY, {label}", statistics.median(writes["sealed"]), "µs a row"),
        Result(f"… of plaintext's speed, {label}", write, "×", f"≥ {floor}", write >= floor),
        Result(f"… best turn by best turn, {label}", min(writes["plain"]) / min(writes["sealed"]), "×"),
        Result(f"… sealing in a thread meanwhile, {label}", _ratio(writes, "plain", "threaded"), "×"),
        Result(f"… sealing all of a batch first, {label}", _ratio(writes, "plain", "in turn"), "×"),
        Result(f"plaintext read, {label}", statistics.median(reads["plain"]), "µs a row"),
        Result(f"read and open, {label}", statistics.median(reads["sealed"]), "µs a row"),
        Result(f"… opening adds, {label}", added, "µs a row", *(("≤ 3", added <= 3) if small else ())),
        Result(f"… of plaintext's speed, {label}", read, "×", *(() if small else ("≥ 0.9", read >= 0.9))),
        Result(f"… best turn by best turn, {label}", min(reads["plain"]) / min(reads["sealed"]), "×"),
        Result(f"… opening a batch at once meanwhile, {label}", _ratio(reads, "plain", "at once"), "×"),
        Result(f"… opening in a thread meanwhile, {label}", _ratio(reads, "plain", "threaded"), "×"),
        Result(f"… fetching nothing meanwhile, {label}", _ratio(reads, "plain", "in turn"), "×"),
        Result(f"… four batches a query, {label}", _ratio(reads, "plain", "fetched together"), "×"),
    ]


async def _beside_pgcrypto(directory: Path) -> list[Result]:
    programs = _debian_programs()
    if programs is None:
        why = "× (not measured: apt-get install postgresql)"
        return [Result(f"{what}, of pgcrypto's speed", 0.0, why, "≥ 50", met=False) for what in _BOTH]
    results = []
    async with _server(directory / "debian", programs) as connection:
        for size, label in SIZES.items():
            # Ours by a chunk, as it is used; theirs by fewer rows, as a row takes as long among any number.
            chunk = [secrets.token_bytes(size) for _ in range(MIB // size)]
            few = chunk[:SLOW_ROWS]
            sides: dict[str, tuple[Side, Batches]] = {
                "plain": (Plain(connection, f"plain_{size}"), [chunk]),
                "sealed": (Sealed(connection, f"sealed_{size}"), [chunk]),
                "pgcrypto": (PgCrypto(connection, f"pgcrypto_{size}"), [few]),
            }
            writes, reads = await _interleave(sides, SLOW_TURNS)
            for what, bare, samples in zip(_BOTH, ("COPY", "read"), (writes, reads), strict=True):
                times = _ratio(samples, "pgcrypto", "sealed")
                results += [
                    Result(f"pgcrypto, {what}, {label}", statistics.median(samples["pgcrypto"]), "µs a row"),
                    Result(f"… {what}, of its speed, {label}", times, "×", "≥ 50", times >= 50),
                    Result(f"… plaintext {bare}, of its speed, {label}", _ratio(samples, "pgcrypto", "plain"), "×"),
                ]
    return results


async def _interleave(sides: dict[str, tuple[Side, Batches]], turns: int) -> tuple[Samples, Samples]:
    """What writing and reading takes, every side once a turn, in random order."""
    writes: Samples = {name: [] for name in sides}
    reads: Samples = {name: [] for name in sides}
    for side, _ in sides.values():
        await side.prepare()
    names = list(sides)
    for turn in range(WARM_UP + turns):
        for samples, reading in ((writes, False), (reads, True)):
            secrets.SystemRandom().shuffle(names)
            for name in names:
                side, batches = sides[name]
                rows = sum(len(batch) for batch in batches)
                act = side.read if reading else _writing(side, batches)
                gc.collect()
                begun = time.perf_counter()
                found = await act()
                spent = time.perf_counter() - begun
                assert found in {None, rows}
                if turn >= WARM_UP:
                    samples[name].append(spent / rows * 1e6)
        for side, _ in sides.values():
            await side.clear()
    return writes, reads


def _writing(side: Side, batches: Batches) -> Callable[[], Awaitable[None]]:
    return lambda: side.write(batches)


def _ratio(samples: Samples, one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(samples[one], samples[other], strict=True))


async def _rewrapping(directory: Path) -> list[Result]:
    """From the stored bytes under the old version to the stored bytes under the new one."""
    path = directory / "kek.json"
    old = LocalKeyRing.create(path)
    contexts = [KeyContext(purpose="rows", tenant="acme", name="digits", version=n) for n in range(WRAPPED_KEYS)]
    stored = [(await old.generate_data_key(context))[1].to_bytes() for context in contexts]
    new = LocalKeyRing.rotate(path)
    rates = []
    for _ in range(7):
        begun = time.perf_counter()
        for context, data in zip(contexts, stored, strict=True):
            (await new.rewrap(WrappedKey.parse(data), context)).to_bytes()
        rates.append(WRAPPED_KEYS / (time.perf_counter() - begun))
    rate = statistics.median(rates)
    return [Result("rewrap, local provider", rate, "data keys/s", "≥ 5000", rate >= 5000)]


def _in_process() -> list[Result]:
    """Sealing and opening with no database, and how often opening makes the kernel hand out memory."""
    results = []
    key = DataKey.generate()
    context = BatchContext(tenant="acme", dataset="digits", version=1, batch=0, schema_sha256=bytes(32))
    for size, label in SIZES.items():
        rows = [secrets.token_bytes(size) for _ in range(MIB // size)]
        sealed = seal_batch(key, context, rows, first_ordinal=0)
        seal = _median_us(lambda rows=rows: seal_batch(key, context, rows, first_ordinal=0)) / len(rows)  # type: ignore[misc]  # mypy cannot infer a lambda's defaults
        faults = _page_faults()
        opened = _median_us(lambda sealed=sealed: open_batch(key, context, sealed)) / len(rows)  # type: ignore[misc]  # as above
        results += [
            Result(f"sealing in memory, {label}", seal, "µs a row"),
            Result(f"opening in memory, {label}", opened, "µs a row"),
            Result(f"… page faults, {label}", (_page_faults() - faults) / len(rows) / 50, "a row"),
        ]
    return results


def _median_us(act: Callable[[], object], times: int = 50) -> float:
    samples = []
    for _ in range(times):
        begun = time.perf_counter()
        act()
        samples.append(time.perf_counter() - begun)
    return statistics.median(samples) * 1e6


def _page_faults() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def _load(when: str) -> Result:
    return Result(f"load of the machine {when}", os.getloadavg()[0], f"processes on {os.cpu_count()} cores")


def _debian_programs() -> Path | None:
    """The newest PostgreSQL of Debian's that has pgcrypto."""
    found = [
        folder / "bin"
        for folder in Path("/usr/lib/postgresql").glob("*")
        if (folder / "lib" / "pgcrypto.so").exists() and shutil.which("postgres", path=str(folder / "bin"))
    ]
    return max(found, key=lambda folder: int(folder.parent.name), default=None)


if __name__ == "__main__":
    publish("sealing", asyncio.run(measure()), as_json=bool(os.environ.get("JSON")))  # noqa: TID251  # its __main__
