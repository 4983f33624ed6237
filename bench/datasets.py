"""What a dataset costs from a file to sealed rows and back: `make bench-datasets`.

A push is measured whole: the file is read and digested, the manifest signed, the file read
again, sent over mutual TLS, checked against its signature and its leaves, every record
checked against its column, sealed, copied, committed and promoted. Every side runs once in
each turn, and ratios are medians of the ratios within a turn. All on one machine: client,
service and database share its cores.
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import statistics
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from uuid import uuid4

import pyarrow as pa
from cryptography.hazmat.primitives import serialization

from bench.datasets_costs import Costs
from bench.datasets_peers import MODEL_SIGNING, TABLE, copy_rows, flight_side, model_signing
from bench.datasets_server import trust_of
from bench.datasets_world import DOMAIN, TENANT, DatasetsWorld, peak_resident_bytes
from bench.report import Result, publish
from casemate.client.dataset_files import DatasetFile, open_dataset_file
from casemate.client.datasets_push import MANIFEST_LIFETIME
from casemate.client.digesting import digest_chunks
from casemate.clock import SystemClock
from casemate.settings import load_settings
from casemate.signing.batch_order import BatchOrder
from casemate.signing.keys import SigningKey
from casemate.signing.merkle import root
from casemate.signing.signers import Signer
from casemate.signing.statements import DatasetManifest, sign_dataset_manifest, verify_dataset_manifest
from casemate.storage.embedded import EmbeddedPostgres
from casemate.storage.pool import open_connection
from casemate.transport.metrics import Metrics
from services.datasets.app import open_stores
from services.datasets.pull import Reader
from services.datasets.settings import DatasetsSettings

if TYPE_CHECKING:
    from casemate.client.datasets import Datasets

MIB: Final = 1 << 20
ROWS: Final = 50_000
ARROW_ROWS: Final = 75_000
ROW_BYTES: Final = 1024
SIGNED_MIB: Final = 128
TURNS: Final = 5
READ_TURNS: Final = 5
SERIES_SECONDS: Final = 60.0
"""No turn of a series begins later: four series and their start-up stay within five minutes."""
_FEWEST_TURNS: Final = 2

Samples = dict[str, list[float]]
"""Seconds by side, one figure a turn."""


async def measure() -> list[Result]:
    """All figures, in one to five minutes."""
    results = [_load("before")]
    with tempfile.TemporaryDirectory(prefix="casemate-bench-") as scratch:
        directory = Path(scratch)
        if os.geteuid() == 0:
            os.chmod(directory, 0o711)  # noqa: PTH101, S103  # PostgreSQL is another user, and only passes through
        lines, arrow = write_jsonl(directory / "lines.jsonl", ROWS), write_arrow(directory / "rows.arrow", ARROW_ROWS)
        postgres = EmbeddedPostgres(directory=directory / "postgres")
        try:
            await postgres.start()
            async with AsyncExitStack() as stack:
                bench = _Bench(DatasetsWorld(directory, postgres), postgres, stack)
                await bench.open()
                results += await bench.json_lines(lines)
                results += await bench.arrow(arrow)
                results += await bench.read(directory)
                results += bench.memory()
        finally:
            await postgres.erase()
        results += await _beside_model_signing(directory)
    return [*results, _load("after")]


def write_jsonl(path: Path, rows: int) -> Path:
    """A file of records of a KiB: an integer, a number, a label and a text."""
    with path.open("w") as file:
        for number in range(rows):
            record = {"id": number, "score": number / 7, "label": "cat" if number % 2 else "dog", "text": ""}
            record["text"] = "x" * (ROW_BYTES - 1 - len(json.dumps(record)))
            file.write(json.dumps(record) + "\n")
    return path


def write_arrow(path: Path, rows: int) -> Path:
    """A file of records of a KiB: two numbers and bytes."""
    noise = os.urandom(MIB)
    with pa.OSFile(str(path), "wb") as sink:
        schema = pa.schema(
            [
                pa.field("id", pa.int64(), nullable=False),
                pa.field("score", pa.float32(), nullable=False),
                pa.field("blob", pa.binary(), nullable=False),
            ]
        )
        with pa.ipc.new_file(sink, schema) as writer:
            for begun in range(0, rows, 4096):
                ids = range(begun, min(begun + 4096, rows))
                blobs = [noise[each % 1000 : each % 1000 + ROW_BYTES - 16] for each in ids]
                columns = [pa.array(ids, pa.int64()), pa.array([each / 7 for each in ids], pa.float32())]
                writer.write_batch(pa.record_batch([*columns, pa.array(blobs)], schema=schema))
    return path


class _Bench:
    """Two services, one of which seals nothing, and what they are measured against."""

    def __init__(self, world: DatasetsWorld, postgres: EmbeddedPostgres, stack: AsyncExitStack) -> None:
        self._world = world
        self._postgres = postgres
        self._stack = stack
        self._pushed = 0

    async def open(self) -> None:
        """Starts them."""
        self._sealed, self._pid = await self._stack.enter_async_context(self._world.serve("sealed"))
        self._plain, _ = await self._stack.enter_async_context(self._world.serve("plain", "plain"))
        self._flight = await self._stack.enter_async_context(flight_side())
        database = await self._world.database("copied")
        self._connection = await open_connection(database)
        self._stack.push_async_callback(self._connection.close)
        await self._connection.execute(TABLE)

    async def json_lines(self, path: Path) -> list[Result]:
        """Records of a KiB, sealed, and through the same service with neither digests nor seals."""
        file = open_dataset_file(path)
        samples = await _interleave(
            {"sealed": lambda: self._push(file), "plain": lambda: self._push_plainly(file)}, TURNS
        )
        rate = ROWS / statistics.median(samples["sealed"])
        cost = (_ratio(samples, "sealed", "plain") - 1) * 100
        return [
            Result("JSON Lines, file to sealed rows", rate, "rows/s", "≥ 50000", rate >= 50_000),
            Result("… best turn", ROWS / min(samples["sealed"]), "rows/s"),
            Result("… without signing and sealing", ROWS / statistics.median(samples["plain"]), "rows/s"),
            Result("… signing and sealing cost", cost, "%", "≤ 25", cost <= 25),
        ]

    async def arrow(self, path: Path) -> list[Result]:
        """The same bytes by our service, by a bare COPY, and by Flight, which stores nothing."""
        file = open_dataset_file(path)
        chunks = [chunk.data for chunk in file.chunks()]
        rows = [row for chunk in chunks for row in _messages(chunk)]
        size, batches = sum(map(len, chunks)) / MIB, [_batch(row, file) for row in rows]
        costs = Costs(self._pid, self._postgres.pid or 0)
        samples = await _interleave(
            {
                "sealed": costs.counted("push", lambda: self._push(file)),
                "plain": lambda: self._push_plainly(file),
                "copy": costs.counted("COPY", lambda: self._copy(rows, len(rows))),
                "copy by the chunk": lambda: self._copy(rows, max(1, len(rows) // len(chunks))),
                "flight": lambda: asyncio.to_thread(self._flight.put, batches),
            },
            TURNS,
        )
        share, cost = _ratio(samples, "copy", "sealed"), (_ratio(samples, "sealed", "plain") - 1) * 100
        return [
            Result("Arrow, file to sealed rows", size / statistics.median(samples["sealed"]), "MiB/s"),
            Result("bare COPY of the same bytes, one transaction", size / statistics.median(samples["copy"]), "MiB/s"),
            Result("… ours, of its speed", share, "×", "≥ 0.7", share >= 0.7),
            Result("… ours, of COPY with a transaction a chunk", _ratio(samples, "copy by the chunk", "sealed"), "×"),
            *(result for side in ("push", "COPY") for result in costs.results(side, size)),
            Result("… signing and sealing cost", cost, "%", "≤ 25", cost <= 25),
            Result("Arrow Flight, plaintext, nothing stored", size / statistics.median(samples["flight"]), "MiB/s"),
            Result("… ours, of its speed", _ratio(samples, "flight", "sealed"), "×"),
        ]

    async def read(self, directory: Path) -> list[Result]:
        """Rows out of the store, in process and over the wire, and Flight out of memory."""
        names = [await self._pushed_once(directory / name) for name in ("lines.jsonl", "rows.arrow")]
        async with self._reader(directory) as reader:
            samples = await _interleave(
                {
                    "store": lambda: _read_store(reader, names[0]),
                    "store, Arrow": lambda: _read_store(reader, names[1]),
                    "wire": lambda: asyncio.to_thread(self._pull, names[0]),
                    "wire, Arrow": lambda: asyncio.to_thread(self._pull, names[1]),
                },
                READ_TURNS,
            )
        rate = ROWS / statistics.median(samples["store"])
        size = ARROW_ROWS * ROW_BYTES / MIB
        return [
            Result("store to verified plaintext, in process", rate, "rows/s", "≥ 150000", rate >= 150_000),
            Result("… Arrow", size / statistics.median(samples["store, Arrow"]), "MiB/s"),
            Result("… over the wire, verified again", ROWS / statistics.median(samples["wire"]), "rows/s"),
            Result("… over the wire, Arrow", size / statistics.median(samples["wire, Arrow"]), "MiB/s"),
        ]

    def memory(self) -> list[Result]:
        """What the service had resident at most, pulls included."""
        peak = peak_resident_bytes(self._pid) / MIB
        return [Result("peak memory of the service", peak, "MiB", "≤ 256", peak <= 256)]

    async def _pushed_once(self, path: Path) -> str:
        await self._push(open_dataset_file(path))
        return f"d{self._pushed}"

    async def _push(self, file: DatasetFile) -> None:
        self._pushed += 1
        await asyncio.to_thread(_push, self._sealed, file, f"d{self._pushed}", self._world.supplier)

    async def _push_plainly(self, file: DatasetFile) -> float:
        """Seconds without what is left out: the manifest is made before."""
        self._pushed += 1
        manifest = await asyncio.to_thread(self._plain.manifest_of, file, tenant=TENANT, dataset=f"d{self._pushed}")
        begun = time.perf_counter()
        await asyncio.to_thread(self._plain.push_file, file, manifest=manifest, signing_key=self._world.supplier)
        return time.perf_counter() - begun

    async def _copy(self, rows: list[bytes], rows_each: int) -> float:
        await self._connection.execute("TRUNCATE copied")
        return await copy_rows(self._connection, uuid4(), rows, rows_each=rows_each)

    def _pull(self, name: str) -> None:
        pulled = self._sealed.pull(name, tenant=TENANT, trusted=[self._world.supplier.public])
        assert sum(len(batch.records) for batch in pulled) > 0

    @asynccontextmanager
    async def _reader(self, directory: Path) -> AsyncIterator[Reader]:
        """The reader of the service, on the service's databases, in this process."""
        settings = load_settings(DatasetsSettings, self._world.environment("sealed"), component="datasets")
        async with AsyncExitStack() as stack:
            stores, _ = await open_stores(settings, stack, Metrics("bench"), SystemClock())
            trust = trust_of(directory / "trust.json")
            yield Reader(
                audience=f"datasets.{DOMAIN}",
                store=stores.versions,
                shreds=stores.shreds,
                keys=stores.keys,
                resolve=trust.current.signers.get,
                alarms=stores.alarms,
            )


def _push(datasets: Datasets, file: DatasetFile, name: str, key: SigningKey) -> None:
    manifest = datasets.manifest_of(file, tenant=TENANT, dataset=name)
    datasets.push_file(file, manifest=manifest, signing_key=key)


async def _read_store(reader: Reader, name: str) -> None:
    readable = await reader.readable(tenant=TENANT, dataset=name, version=0)
    rows = 0
    async for batch in reader.batches(readable, BatchOrder()):
        rows += len(batch.records)
    assert rows == readable.upload.row_count


def _messages(chunk: bytes) -> list[bytes]:
    from services.datasets.arrow_records import split_messages  # noqa: PLC0415  # beside what else it imports

    return [bytes(row) for row in split_messages(chunk)]


def _batch(row: bytes, file: DatasetFile) -> Any:  # noqa: ANN401  # pyarrow has no types
    from casemate.signing.arrow_form import arrow_schema  # noqa: PLC0415  # as above

    return pa.ipc.read_record_batch(pa.ipc.read_message(row), arrow_schema(file.schema))


async def _beside_model_signing(directory: Path) -> list[Result]:
    """Signing and verifying one file, both from the disk's cache."""
    if not MODEL_SIGNING.exists():
        return [Result("model-signing", 0.0, "(not measured: make bench-datasets installs it)")]
    path = write_jsonl(directory / "large.jsonl", SIGNED_MIB * MIB // ROW_BYTES)
    key = SigningKey.generate("ecdsa-p256")
    (directory / "key.pem").write_bytes(key.to_pem().reveal())
    public = serialization.load_der_public_key(key.public.der)
    form = (serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    (directory / "key.pub").write_bytes(public.public_bytes(*form))
    file = replace(open_dataset_file(directory / "lines.jsonl"), chunks=open_dataset_file(path).chunks)
    samples: Samples = {"sign": [], "verify": [], "their sign": [], "their verify": []}
    async with model_signing(directory, path) as theirs:
        started = time.perf_counter()
        for turn in range(1 + READ_TURNS):
            if turn > _FEWEST_TURNS and time.perf_counter() - started > SERIES_SECONDS:
                break
            begun = time.perf_counter()
            envelope = _sign(file, key)
            signed = time.perf_counter()
            _verify(file, envelope, key)
            ours = signed - begun, time.perf_counter() - signed
            if turn:
                for side, seconds in zip(samples, (*ours, *await theirs.turn()), strict=True):
                    samples[side].append(seconds)
    faster = {what: _ratio(samples, f"their {what}", what) for what in ("sign", "verify")}
    return [
        *(
            Result(f"{what}ing {SIGNED_MIB} MiB", SIGNED_MIB / statistics.median(samples[what]), "MiB/s")
            for what in ("sign", "verify")
        ),
        *(
            Result(f"… beside model-signing 1.1.1, to {what}", times, "× its speed", "≥ 1", times >= 1)
            for what, times in faster.items()
        ),
    ]


def _sign(file: DatasetFile, key: SigningKey) -> bytes:
    digests = digest_chunks(file.chunks())
    manifest = DatasetManifest(
        audience=f"datasets.{DOMAIN}",
        tenant=TENANT,
        dataset="signed",
        version=1,
        previous_root=None,
        format=file.format,
        schema=file.schema,
        rows=sum(digest.rows for digest in digests),
        bytes=sum(digest.bytes for digest in digests),
        chunks=digests,
        root=root([digest.leaf_hash for digest in digests]),
        upload_id=uuid4().hex,
        expires_at=datetime.now(UTC) + MANIFEST_LIFETIME,
    )
    return sign_dataset_manifest(manifest, key)


def _verify(file: DatasetFile, envelope: bytes, key: SigningKey) -> None:
    now = datetime.now(UTC)
    signer = Signer(
        key_id=key.public.key_id,
        tenant=TENANT,
        role="supplier",
        public_key=key.public,
        valid_from=now - timedelta(days=1),
        valid_until=now + timedelta(days=1),
    )
    verified = verify_dataset_manifest(
        envelope,
        audience=f"datasets.{DOMAIN}",
        tenant=TENANT,
        dataset="signed",
        resolve={signer.key_id: signer}.get,
        now=now,
    )
    assert digest_chunks(file.chunks()) == verified.manifest.chunks


async def _interleave(sides: dict[str, Callable[[], Awaitable[float | None]]], turns: int) -> Samples:
    """What every side takes, once a turn, the order turning; the first turn warms up. A side may time itself.

    Two turns at least, and no new one once the time is up: a loaded machine takes several times as long.
    """
    samples: Samples = {name: [] for name in sides}
    names = list(sides)
    started = time.perf_counter()
    for turn in range(1 + turns):
        if turn > _FEWEST_TURNS and time.perf_counter() - started > SERIES_SECONDS:
            break
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            gc.collect()
            begun = time.perf_counter()
            own = await sides[name]()
            spent = time.perf_counter() - begun
            if turn:
                samples[name].append(spent if own is None else own)
    return samples


def _ratio(samples: Samples, one: str, other: str) -> float:
    return statistics.median(a / b for a, b in zip(samples[one], samples[other], strict=True))


def _load(when: str) -> Result:
    return Result(f"load of the machine {when}", os.getloadavg()[0], f"processes on {os.cpu_count()} cores")


if __name__ == "__main__":
    publish("datasets", asyncio.run(measure()), as_json=bool(os.environ.get("JSON")))  # noqa: TID251  # its __main__
