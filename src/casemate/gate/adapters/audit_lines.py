"""Lines of the audit: one JSON object each, bound to the line before it.

If this fails: a changed, removed or inserted line is not noticed. What the cutting
off of the end hides is found by a head that was noted elsewhere.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, Final

from casemate.gate.core.audit import AuditEvent

try:
    import msgspec
except ImportError:  # of the extra `formats`; without it lines are spelled by `json`, alike and at five times the cost
    msgspec = None  # type: ignore[assignment]  # tested for below

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

FIRST: Final = "0" * 64
"""What the first line is bound to."""
HEADS_SUFFIX: Final = ".heads"
"""Of the file beside an audit file that holds its checkpoints."""
_MAX_NAME: Final = 256
_END: Final = b',"sha256":""}'
_NAMES: Final = tuple(each.name for each in fields(AuditEvent))
_VALUES: Final = attrgetter(*_NAMES)
_QUICK: Final = None if msgspec is None else msgspec.json.Encoder(order="deterministic")


@dataclass(frozen=True, slots=True)
class Head:
    """How far a chain went at some moment.

    Attributes:
        number: of the last line, counted from 1.
        digest: SHA-256 of that line, hex.
    """

    number: int = 0
    digest: str = FIRST


@dataclass(frozen=True, slots=True)
class VerifiedAudit:
    """An audit file whose chain holds.

    Attributes:
        head: its last line.
        lost: events that were dropped, as the file itself says.
        checkpoints: heads that were noted beside it, and are in it.
    """

    head: Head
    lost: int
    checkpoints: int


def members_of(event: AuditEvent) -> dict[str, Any]:
    """An event as the members of a line; what is not known is left out."""
    members = {name: value for name, value in zip(_NAMES, _VALUES(event), strict=True) if value is not None}
    members["at"] = event.at.isoformat()
    members["method"] = event.method[:_MAX_NAME]  # as called: a stranger may name anything
    if event.resource is not None:
        members["resource"] = event.resource[:_MAX_NAME]
    return members


def line_after(head: Head, record: dict[str, Any]) -> tuple[bytes, Head]:
    """The line of a record that follows `head`, and the head that it makes."""
    bound = _canonical({**record, "number": head.number + 1, "previous": head.digest})
    digest = hashlib.sha256(bound).hexdigest()
    # Its own digest comes last, so that a line is spelled once; whoever verifies cuts it off the bytes.
    return bound[:-1] + _END[:-2] + digest.encode() + _END[-2:] + b"\n", Head(head.number + 1, digest)


def read_head(line: bytes) -> Head:
    """The head that a line makes; the line itself is not verified.

    Raises:
        ValueError: it is no line of the audit.
    """
    try:
        record = json.loads(line)
        return Head(int(record.get("number", 0)), str(record["sha256"]))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise ValueError("not a line of the audit") from None


def verify_lines(lines: Iterable[bytes]) -> Iterator[tuple[Head, dict[str, Any]]]:
    """Yields each line's head and members, as soon as the line was found to follow from the one before it.

    Raises:
        ValueError: names the first line, counted from 1, that does not.
    """
    head = Head()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            digest = record.pop("sha256")
            spelled = line.removesuffix(b"\n")
            # Of the bytes as they stand, not of what a parser makes of them: two members of one name, or spaces,
            # would be read differently by others and be the same to it.
            cut = -len(_END) - len(digest)
            bound = spelled[:cut] + b"}"
            whole = spelled[cut:] == _END[:-2] + digest.encode() + _END[-2:]
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ValueError(f"line {number} is not a line of the audit") from None
        follows = record.get("previous") == head.digest and record.get("number") == number
        if not whole or not follows or hashlib.sha256(bound).hexdigest() != digest:
            raise ValueError(f"line {number} does not follow from the one before it")
        head = Head(number, digest)
        yield head, record


def verify_chain(lines: Iterable[bytes]) -> int:
    """Checks that each line follows from the one before it; the number of lines.

    Raises:
        ValueError: names the first line, counted from 1, that does not.
    """
    return sum(1 for _ in verify_lines(lines))


def verify_file(path: Path, *, known: Head | None = None) -> VerifiedAudit:
    """Checks an audit file: its chain, the checkpoints beside it, and a head that was kept elsewhere.

    Args:
        path: the audit file.
        known: a head from another place, which whoever can write here could not change.

    Raises:
        ValueError: says what does not hold, and at which line.
        OSError: the file cannot be read.
    """
    heads = _checkpoints(path.with_name(path.name + HEADS_SUFFIX))
    checkpoints = len(heads)
    wanted = {each.number: each.digest for each in heads}
    if known is not None:
        if wanted.setdefault(known.number, known.digest) != known.digest:
            raise ValueError(f"the checkpoint of line {known.number} is not the head that was kept elsewhere")
        wanted.pop(0, None)
    head, lost = Head(), 0
    with path.open("rb") as lines:
        for head, record in verify_lines(lines):
            lost += int(record.get("lost", 0))
            if wanted.pop(head.number, head.digest) != head.digest:
                raise ValueError(f"line {head.number} is not the one that its checkpoint names")
    if wanted:
        raise ValueError(f"lines {head.number + 1} to {max(wanted)} were cut off: a checkpoint names them")
    return VerifiedAudit(head=head, lost=lost, checkpoints=checkpoints)


def _checkpoints(path: Path) -> list[Head]:
    if not path.exists():
        return []
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            said = json.loads(line)
            found.append(Head(int(said["number"]), str(said["sha256"])))
        except (ValueError, KeyError, TypeError):
            raise ValueError(f"line {number} of {path.name} is not a checkpoint") from None
    return found


def _canonical(record: dict[str, Any]) -> bytes:
    """One spelling of a record: members sorted, no spaces, ASCII alone. Verified files hold it to `json.dumps`."""
    try:
        quick = b"\\" if _QUICK is None else _QUICK.encode(record)
    except (TypeError, ValueError):  # half a surrogate pair, which a stranger may have sent as a name
        quick = b"\\"
    # Both spell what can be printed in ASCII alike; where something is escaped, the library that verifies decides how.
    if quick.isascii() and b"\\" not in quick and b"\x7f" not in quick:
        return quick
    return json.dumps(record, sort_keys=True, separators=(",", ":")).encode()
