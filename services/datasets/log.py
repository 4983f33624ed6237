"""The transparency log's tree, without its storage.

An append needs only the frontier: the roots of the full subtrees, largest first
(RFC 9162 section 2.1.1 splits at the largest power of two, so there is one for
each bit set in the size).

If this fails: history could be rewritten unseen by this service. Whoever kept a
checkpoint still finds out, by the consistency proof.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from casemate.errors import FieldViolation, InvalidRequest, StoredDataUnreadable
from casemate.signing import merkle, tiles

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

MAXIMUM_BODY_BYTES = 32 * 1024
"""A release that names 256 roots fits."""
_KIND = re.compile(r"[a-z][a-z0-9-]{0,31}")


@dataclass(frozen=True, slots=True)
class LogHead:
    """Size and frontier of the tree."""

    size: int = 0
    frontier: tuple[bytes, ...] = ()

    def appended(self, leaf_hash: bytes) -> LogHead:
        """The head after one more leaf. At most log2(size) hashes."""
        return self.after(self.completed(leaf_hash))

    def completed(self, leaf_hash: bytes) -> list[tuple[int, int, bytes]]:
        """Level, index and hash of every node that one more leaf completes; the leaf is the first."""
        return tiles.completed_nodes(self.size, self.frontier, leaf_hash)

    def after(self, completed: Sequence[tuple[int, int, bytes]]) -> LogHead:
        """The head once these nodes, by `completed`, stand: the last of them has taken in the ones before it."""
        kept = len(self.frontier) - (len(completed) - 1)
        return LogHead(self.size + 1, (*self.frontier[:kept], completed[-1][2]))

    @property
    def root(self) -> bytes:
        """The RFC 9162 root over all entries."""
        if not self.frontier:
            return merkle.EMPTY_ROOT
        root = self.frontier[-1]
        for subtree in reversed(self.frontier[:-1]):
            root = merkle.node_hash(subtree, root)
        return root

    def to_bytes(self) -> bytes:
        """The frontier, concatenated."""
        return b"".join(self.frontier)

    @classmethod
    def parse(cls, size: int, frontier: bytes) -> LogHead:
        """Reads what `to_bytes` wrote.

        Raises:
            StoredDataUnreadable: as many hashes as bits set in the size are expected.
        """
        if len(frontier) != merkle.HASH_BYTES * size.bit_count():
            raise StoredDataUnreadable("the log's frontier does not fit its size")
        return cls(
            size, tuple(frontier[at : at + merkle.HASH_BYTES] for at in range(0, len(frontier), merkle.HASH_BYTES))
        )


def parse_body(kind: str, body: bytes) -> Mapping[str, object]:
    """Checks what a peer service asks to append.

    Raises:
        InvalidRequest: the kind is no name, or the body is not a canonical JSON
            object (keys sorted, no spaces, UTF-8) of at most 32 KiB.
    """
    if not _KIND.fullmatch(kind):
        raise _invalid("kind", "not a lower-case name of at most 32 characters")
    if not 0 < len(body) <= MAXIMUM_BODY_BYTES:
        raise _invalid("body", "empty, or above 32 KiB")
    try:
        found = json.loads(body)
        canonical = isinstance(found, dict) and canonical_json(found) == body
    except (ValueError, RecursionError):
        canonical = False
    if not canonical:
        raise _invalid("body", "not a JSON object in canonical form")
    return dict(found)


def entry_bytes(kind: str, body: Mapping[str, object], *, by: str, at: datetime, salt: bytes) -> bytes:
    """The bytes of an entry: who said what when, as canonical JSON.

    Its hash is shown to all tenants, and what it says could be guessed: `salt`, random each time, is what keeps a
    guess from being confirmed.
    """
    return canonical_json({"at": at.isoformat(), "body": dict(body), "by": by, "kind": kind, "salt": salt.hex()})


def is_readable_by(tenant: str | None, entry: bytes, *, house: str) -> bool:
    """Whether an entry is for callers of a tenant: it names theirs, or they are of the house tenant."""
    return tenant is not None and (tenant == house or json.loads(entry)["body"].get("tenant") == tenant)


def canonical_json(value: Mapping[str, object]) -> bytes:
    """Keys sorted, no spaces, UTF-8: one spelling for one value."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def _invalid(field: str, text: str) -> InvalidRequest:
    return InvalidRequest(f"log entry: {field}: {text}", violations=(FieldViolation(field, text),))
