"""How a proven chunk falls into rows: the bytes are signed, where a row ends in them is the service's word alone.

What a trainer gets is rows. Two services that send the same bytes cut elsewhere
would give two trainings, both under the signed root.

If this fails: a trainer trains on records that begin or end elsewhere than the
supplier's do; every byte of them was signed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.errors import StoredDataUnreadable
from casemate.signing.arrow_rows import require_one_batch
from casemate.signing.framing import join_rows
from casemate.signing.merkle import leaf_hash

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.signing.dataset_manifest import ChunkDigest
    from casemate.signing.framing import Format


def require_signed_rows(rows: Sequence[bytes], chunk: ChunkDigest, *, encoding: Format) -> None:
    """Returns if these rows are the chunk that was signed, and are cut where its format ends a row.

    Args:
        rows: as they came.
        chunk: of the signed manifest.
        encoding: the manifest's format.

    Raises:
        StoredDataUnreadable: they are not.
    """
    data = join_rows(rows, encoding=encoding)
    if len(rows) != chunk.rows or leaf_hash(data) != chunk.leaf_hash:
        raise StoredDataUnreadable("they are not the chunk that was signed")
    if encoding == "arrow":
        if _records_in(rows) != chunk.record_count:
            raise StoredDataUnreadable("its rows hold other records than were signed")
    # As many line feeds as rows: each ends one, and there is one way only to cut them.
    elif data.count(b"\n") != len(rows) and (encoding != "csv" or not all(map(_is_one_record, rows))):
        raise StoredDataUnreadable("its rows are not cut where the records end")


def _records_in(rows: Sequence[bytes]) -> int:
    try:
        return sum(map(require_one_batch, rows))
    except ValueError as error:
        raise StoredDataUnreadable(f"one of its rows is {error}") from error


def _is_one_record(row: bytes) -> bool:
    """Whether every line feed of a row of CSV stands inside quotes, and its end does not."""
    *before, last = row.split(b"\n")
    inside = False
    for line in before:
        inside ^= line.count(b'"') % 2 == 1
        if not inside:
            return False
    return inside == (last.count(b'"') % 2 == 1)
