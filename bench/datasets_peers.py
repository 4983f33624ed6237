"""What `bench.datasets` stands beside: Arrow Flight on the wire, model-signing over files, COPY into the database.

`python -m bench.datasets_peers` is a Flight server without encryption, names or storage: it
throws away what it is given, and gives it out of memory. It prints its port.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
from pyarrow import flight

if TYPE_CHECKING:
    from uuid import UUID

    from casemate.storage.pool import Connection

ROOT: Final = Path(__file__).parents[1]
MODEL_SIGNING: Final = ROOT / ".foreign" / "model-signing" / "bin" / "python"

_SIGN_AND_VERIFY: Final = """
import sys, time
from pathlib import Path
from model_signing import signing, verifying
folder, data = Path(sys.argv[1]), Path(sys.argv[2])
signature = folder / "model.sig"
for line in sys.stdin:
    begun = time.perf_counter()
    signing.Config().use_elliptic_key_signer(private_key=folder / "key.pem").sign(data, signature)
    signed = time.perf_counter()
    verifying.Config().use_elliptic_key_verifier(public_key=folder / "key.pub").verify(data, signature)
    print(signed - begun, time.perf_counter() - signed, flush=True)
"""

TABLE: Final = """
CREATE TABLE copied (
    upload uuid NOT NULL, batch integer NOT NULL, ordinal bigint NOT NULL, sealed bytea NOT NULL,
    PRIMARY KEY (upload, batch, ordinal)
) WITH (fillfactor = 100);
ALTER TABLE copied ALTER COLUMN sealed SET STORAGE EXTERNAL
"""


class _Sink(flight.FlightServerBase):  # type: ignore[misc]  # pyarrow has no types
    """Takes batches and forgets them; gives the last ones out again."""

    def __init__(self) -> None:
        super().__init__("grpc://127.0.0.1:0")
        self._table: Any = None

    def do_put(self, _context: object, descriptor: Any, reader: Any, _writer: object) -> None:  # noqa: ANN401
        """Reads every batch; keeps them only if they were sent to be kept."""
        if descriptor.path == [b"keep"]:
            self._table = reader.read_all()
            return
        for _chunk in reader:
            pass

    def do_get(self, _context: object, _ticket: object) -> Any:  # noqa: ANN401
        """What was kept."""
        return flight.RecordBatchStream(self._table)


class FlightSide:
    """A Flight client, and its server in a process of its own."""

    def __init__(self, port: int) -> None:
        self._client = flight.connect(f"grpc://127.0.0.1:{port}")

    def put(self, batches: Sequence[Any], *, keep: bool = False) -> None:
        """Sends batches; returns when the server has read them."""
        descriptor = flight.FlightDescriptor.for_path("keep" if keep else "drop")
        writer, reader = self._client.do_put(descriptor, batches[0].schema)
        with writer:
            for batch in batches:
                writer.write_batch(batch)
            writer.done_writing()
            reader.read()  # the end of the call: everything was read

    def get(self) -> int:
        """Reads what was kept; its bytes."""
        return sum(chunk.data.nbytes for chunk in self._client.do_get(flight.Ticket(b"")))


@asynccontextmanager
async def flight_side() -> AsyncIterator[FlightSide]:
    """A server until the block ends."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "bench.datasets_peers", stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert process.stdout is not None
    try:
        yield FlightSide(json.loads(await process.stdout.readline())["port"])
    finally:
        await process.communicate(b"")


class ModelSigning:
    """model-signing with an EC key, in a process that has done its imports."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process

    async def turn(self) -> tuple[float, float]:
        """Seconds to sign, and to verify."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(b"\n")
        signed, verified = (await self._process.stdout.readline()).split()
        return float(signed), float(verified)


@asynccontextmanager
async def model_signing(folder: Path, data: Path) -> AsyncIterator[ModelSigning]:
    """It over one file; `folder` holds `key.pem` and `key.pub`."""
    process = await asyncio.create_subprocess_exec(
        *(MODEL_SIGNING, "-c", _SIGN_AND_VERIFY, folder, data), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    try:
        yield ModelSigning(process)
    finally:
        await process.communicate(b"")


async def copy_rows(connection: Connection, upload: UUID, rows: Sequence[bytes], *, rows_each: int) -> float:
    """Seconds that COPY takes for these rows, so many in a transaction."""
    begun = time.perf_counter()
    for first in range(0, len(rows), rows_each):
        await connection.copy_records_to_table(
            "copied",
            columns=("upload", "batch", "ordinal", "sealed"),
            records=[(upload, first, first + place, row) for place, row in enumerate(rows[first : first + rows_each])],
        )
    return time.perf_counter() - begun


if __name__ == "__main__":
    with _Sink() as server:
        print(json.dumps({"port": server.port}), flush=True)
        sys.stdin.read()
    pa.default_memory_pool().release_unused()
