"""A dataset of any size goes through in the same memory: the service's own peak, as the kernel counted it."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pyarrow as pa
import pytest

from bench.datasets_world import TENANT, DatasetsWorld, peak_resident_bytes
from casemate.client.dataset_files import CutChunk, DatasetFile
from casemate.signing.arrow_form import arrow_schema
from casemate.signing.columns import Column

MIB = 1 << 20
LIMIT = 256 * MIB
ARROW = (Column(name="id", type="integer"), Column(name="blob", type="bytes"))
LINES = (Column(name="id", type="integer"), Column(name="text", type="text"))


def made_up_arrow(total_bytes: int, *, chunk_bytes: int, row_bytes: int) -> DatasetFile:
    """Record batches of one record out of nothing: the same chunks each time, and no file."""
    noise, schema = os.urandom(row_bytes - 1024), arrow_schema(ARROW)
    rows_each = chunk_bytes // row_bytes

    def chunks() -> Iterator[CutChunk]:
        for number in range(total_bytes // chunk_bytes):
            columns = [pa.array([number]), pa.array([noise], pa.binary())]
            row = pa.record_batch(columns, schema=schema).serialize().to_pybytes()
            yield CutChunk(row * rows_each, rows_each, rows_each)

    return DatasetFile("arrow", ARROW, chunks)


def made_up_lines(total_bytes: int, *, chunk_bytes: int, row_bytes: int) -> DatasetFile:
    """JSON Lines out of nothing."""

    def chunks() -> Iterator[CutChunk]:
        frame = '{"id":%d,"text":"%s"}\n'
        for number in range(total_bytes // chunk_bytes):
            line = (frame % (number, "x" * (row_bytes - len(frame) + 4 - len(str(number))))).encode()
            yield CutChunk(line * (chunk_bytes // row_bytes), chunk_bytes // row_bytes)

    return DatasetFile("jsonl", LINES, chunks)


def cpu_seconds(pid: int) -> float:
    """What a process has spent of the processor, its own time and the kernel's for it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@asynccontextmanager
async def service(postgres, directory: Path):
    """Pushes files into a service in a process of its own, and says what that had resident at most."""
    world = DatasetsWorld(directory, postgres)
    async with world.serve(f"memory_{directory.name[-8:].lower().replace('-', '_')}") as (datasets, pid):

        async def push(file: DatasetFile, name: str) -> int:
            manifest = await asyncio.to_thread(datasets.manifest_of, file, tenant=TENANT, dataset=name)
            push = asyncio.to_thread(datasets.push_file, file, manifest=manifest, signing_key=world.supplier)
            assert (await push).rows == manifest.rows
            return peak_resident_bytes(pid)

        yield push


async def test_128_mib_of_every_shape_stay_under_256_mib(embedded_postgres, tmp_path):
    """Large chunks of large rows, which are in memory several times over, and many small rows."""
    async with service(embedded_postgres, tmp_path) as push:
        assert await push(made_up_arrow(64 * MIB, chunk_bytes=8 * MIB, row_bytes=8 * MIB), "images") < LIMIT
        assert await push(made_up_arrow(32 * MIB, chunk_bytes=1 * MIB, row_bytes=MIB // 4), "batches") < LIMIT
        assert await push(made_up_lines(32 * MIB, chunk_bytes=8 * MIB, row_bytes=256), "lines") < LIMIT


@pytest.mark.parametrize(
    "gib", [pytest.param(1, marks=pytest.mark.timeout(300)), pytest.param(10, marks=pytest.mark.long)]
)
async def test_gibibytes_stay_under_256_mib(embedded_postgres, tmp_path, gib, tell_record):
    """What a tenth of it needs, the whole needs too."""
    async with service(embedded_postgres, tmp_path) as push:
        shape = {"chunk_bytes": MIB, "row_bytes": MIB // 4}
        small = await push(made_up_arrow(gib * 1024 * MIB // 16, **shape), "small")
        peak = await push(made_up_arrow(gib * 1024 * MIB, **shape), "whole")
    tell_record(f"{gib} GiB: peak {peak / MIB:.0f} MiB, a sixteenth of it {small / MIB:.0f} MiB")
    assert peak < LIMIT


@pytest.mark.long
@pytest.mark.parametrize("rows", [1_000_000, 10_000_000])
async def test_millions_of_rows_of_a_kibibyte_become_one_version_in_the_same_memory(
    embedded_postgres, tmp_path, rows, tell_record
):
    """What is counted, compared and committed at the end grows with the rows; what is in memory does not."""
    world = DatasetsWorld(tmp_path, embedded_postgres)
    async with world.serve(f"rows_{rows}") as (datasets, pid):
        file = made_up_lines(rows * 1024, chunk_bytes=MIB, row_bytes=1024)
        manifest = await asyncio.to_thread(datasets.manifest_of, file, tenant=TENANT, dataset="rows")
        begun = time.monotonic()
        pushed = await asyncio.to_thread(datasets.push_file, file, manifest=manifest, signing_key=world.supplier)
        took, spent, peak = time.monotonic() - begun, cpu_seconds(pid), peak_resident_bytes(pid)
        described = await asyncio.to_thread(datasets.describe, "rows")
    tell_record(
        f"{rows:,} rows of 1 KiB in one version: peak {peak / MIB:.0f} MiB, {spent * 1e6 / rows:.1f} µs"
        f" of the service's CPU a row, {took:.0f} s"
    )
    assert (pushed.rows, described.rows, described.version) == (manifest.rows, manifest.rows, 1)
    assert peak < LIMIT
