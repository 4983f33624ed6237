"""Snapshots of any size in messages of a bounded one."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from casemate.auth.v1.trust_service_pb2 import TrustSnapshot

PART_BYTES: Final = 1024 * 1024
"""A quarter of the largest message that anybody takes by default; a record is a few kilobytes at most."""

_RECORDS: Final = ("token_keys", "revocations", "grants", "signers", "releases")


def parts_of(snapshot: TrustSnapshot, *, limit: int = PART_BYTES) -> Iterator[TrustSnapshot]:
    """The snapshot in parts, in order, all but the last marked `more`; itself, if it is small.

    Args:
        snapshot: all there is to know.
        limit: bytes of records in one part; a record that is larger has a part of its own.
    """
    if snapshot.ByteSize() <= limit:
        yield snapshot
        return
    part, size = TrustSnapshot(issuer=snapshot.issuer), 0
    for name in _RECORDS:
        for record in getattr(snapshot, name):
            length = record.ByteSize()
            if size and size + length > limit:
                part.more = True
                yield part
                part, size = TrustSnapshot(issuer=snapshot.issuer), 0
            getattr(part, name).append(record)
            size += length
    yield part
