"""Arrow: a row is one IPC message, a record batch of the schema that the columns declare. Nothing of it is trusted.

The message's frame is read by Arrow's verifier, its header by us before anything
of its body is: compression, dictionaries, counts and buffers that overlap are refused there. A batch is
then judged whole (`validate(full=True)`: buffers, offsets, UTF-8, null counts)
before a value of it is looked at.
"""

from __future__ import annotations

import struct
from itertools import accumulate
from typing import TYPE_CHECKING, Any, Final

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import ipc

from casemate.signing.arrow_buffers import require_disjoint_buffers, table_field
from casemate.signing.arrow_form import arrow_schema
from casemate.signing.framing import (
    MAXIMUM_LONE_ROW_BYTES,
    MAXIMUM_RECORD_BYTES,
    MAXIMUM_ROW_BYTES,
    MAXIMUM_ROW_RECORDS,
)
from services.datasets.bad_records import MOST_NAMED, BadRecord, refuse
from services.datasets.record_values import COMPLAINTS, EMPTY, NO_CATEGORY, OUT_OF_BOUNDS, json_text_check

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from casemate.signing.columns import Column

_CONTINUATION: Final = b"\xff\xff\xff\xff"
_HEADER, _LENGTH, _COMPRESSION, _VARIADIC = 2, 0, 3, 4
"""Places of fields in Arrow's Message.fbs: `Message.header`, then those of `RecordBatch`."""

_TIMES: Final = (-62_135_596_800_000_000, 253_402_300_799_999_999)
"""Microseconds of the years 1 to 9999: what every reader can write as a date."""

_NO_MESSAGE: Final = "not an Arrow message"


def split_messages(data: bytes | memoryview) -> list[memoryview]:
    """The messages of a chunk, as many as there are; each lies in `data`.

    Raises:
        BadRecord: some bytes of it are none.
    """
    reader = pa.BufferReader(data)
    view = memoryview(data)
    rows: list[memoryview] = []
    begun = 0
    while begun < len(view):
        if bytes(view[begun : begun + 4]) != _CONTINUATION:
            raise BadRecord(_NO_MESSAGE)
        try:
            ipc.read_message(reader)
        except (pa.ArrowException, OSError, EOFError):
            raise BadRecord(_NO_MESSAGE) from None
        ended = reader.tell()
        rows.append(view[begun:ended])
        begun = ended
    return rows


class ArrowCheck:
    """Checks record batches against columns."""

    def __init__(self, schema: Sequence[Column]) -> None:
        self._schema = arrow_schema(schema)
        self._columns = [(column, _judgements(column)) for column in schema]

    def require(self, records: Sequence[bytes | memoryview], *, first_record: int) -> int:
        """See `records.RecordCheck`."""
        found: list[tuple[int, BadRecord]] = []
        count = 0
        for row in records:
            try:
                batch = self._open(row)
            except BadRecord as bad:
                # What follows has no number, as nobody knows how many records this one holds.
                raise refuse([*found, (first_record + count, bad)][:MOST_NAMED]) from None
            found += [(first_record + count + index, bad) for index, bad in self._faults(batch)]
            if len(found) >= MOST_NAMED:
                break
            count += batch.num_rows
        if found:
            raise refuse(sorted(found, key=lambda each: each[0])[:MOST_NAMED]) from None
        return count

    def _open(self, row: bytes | memoryview) -> Any:  # noqa: ANN401  # pyarrow has no types
        """The batch of a row, valid in itself."""
        try:
            message = ipc.read_message(row)
            if message.type != "record batch":
                raise BadRecord("an Arrow message that is no record batch")
            metadata = message.metadata.to_pybytes()
            _require_header(metadata, len(row))
            require_disjoint_buffers(metadata, message.body.size)
            batch = ipc.read_record_batch(message, self._schema)
            batch.validate(full=True)
        except (pa.ArrowException, OSError, EOFError, struct.error, ValueError) as error:
            raise error if isinstance(error, BadRecord) else BadRecord("not a valid record batch") from None
        return batch

    def _faults(self, batch: Any) -> Iterator[tuple[int, BadRecord]]:  # noqa: ANN401
        """The first fault of each column, by its place in the batch."""
        for (column, judgements), values in zip(self._columns, batch.columns, strict=True):
            if values.null_count and not column.nullable:
                yield pc.index(values.is_null(), True).as_py(), BadRecord(EMPTY, column.name)
                continue
            for judge, complaint in judgements:
                index = judge(values)
                if index is not None:
                    yield index, BadRecord(complaint, column.name)
                    break


def _require_header(metadata: bytes, size: int) -> None:
    """Reads the header of a record batch as Message.fbs lays it out; Arrow has verified its frame.

    Raises:
        BadRecord: it is compressed, has too many records, or columns of another layout.
        struct.error: it is shorter than it says.
    """
    message = struct.unpack_from("<I", metadata)[0]
    place = table_field(metadata, message, _HEADER)
    if place is None:
        raise BadRecord(_NO_MESSAGE)
    batch = place + struct.unpack_from("<I", metadata, place)[0]
    if table_field(metadata, batch, _COMPRESSION) is not None:
        raise BadRecord("a compressed record batch")
    if table_field(metadata, batch, _VARIADIC) is not None:
        raise BadRecord("a record batch of another layout")
    length = table_field(metadata, batch, _LENGTH)
    count = 0 if length is None else struct.unpack_from("<q", metadata, length)[0]
    if not 1 <= count <= MAXIMUM_ROW_RECORDS:
        raise BadRecord(f"a record batch without 1 to {MAXIMUM_ROW_RECORDS} records")
    if size > (MAXIMUM_LONE_ROW_BYTES if count == 1 else MAXIMUM_ROW_BYTES):
        raise BadRecord("a record batch of more than 256 KiB, or one record of more than 8 MiB")


_Judge = "Callable[[Any], int | None]"


def _judgements(column: Column) -> list[tuple[Callable[[Any], int | None], str]]:
    """What is asked of a column's values; each gives the place of the first that fails."""
    judges: list[tuple[Callable[[Any], int | None], str]] = []
    if column.type == "vector":
        judges.append((_first_gap, COMPLAINTS["vector"]))
        inner = [(_in_elements(judge), complaint) for judge, complaint in _numeric(column)]
        return judges + inner
    if column.type in {"integer", "number"}:
        return _numeric(column)
    if column.categories is not None:
        allowed = pa.array(column.categories)
        judges.append((lambda values: _first_false(pc.is_in(values, allowed), values), NO_CATEGORY))
    if column.type == "timestamp":
        judges.append((_outside(*_TIMES, view=pa.int64()), "outside the years 1 to 9999"))
    if column.type == "json":
        judges.append((_first_too_long, "JSON of 1 MiB or more"))
        judges.append((_first_not_json(column), COMPLAINTS["json"]))
    return judges


def _numeric(column: Column) -> list[tuple[Callable[[Any], int | None], str]]:
    judges: list[tuple[Callable[[Any], int | None], str]] = []
    if column.type != "integer" and (column.storage or "float64").startswith("float"):
        judges.append((lambda values: _first_false(pc.is_finite(values), values), COMPLAINTS[column.type]))
    if column.minimum is not None or column.maximum is not None:
        judges.append((_outside(column.minimum, column.maximum), OUT_OF_BOUNDS))
    return judges


def _first_false(mask: Any, values: Any) -> int | None:  # noqa: ANN401
    if values.null_count:
        mask = pc.or_kleene(mask.fill_null(False), values.is_null())  # noqa: FBT003
    index: int = pc.index(mask, False).as_py()
    return None if index < 0 else index


def _outside(low: float | None, high: float | None, *, view: Any = None) -> Callable[[Any], int | None]:  # noqa: ANN401
    def is_outside(values: Any) -> bool:  # noqa: ANN401  # pyarrow has no types
        # Compared in Python: Arrow would cast a bound to the column's width, and not always can.
        found = pc.min_max(values).as_py()
        if found["min"] is None:
            return False
        return (low is not None and found["min"] < low) or (high is not None and found["max"] > high)

    def judge(values: Any) -> int | None:  # noqa: ANN401
        values = values if view is None else values.view(view)
        if not is_outside(values):
            return None
        # Halved, not listed: as Python's each value costs eight bytes at least, and one record may have eight million.
        begun, end = 0, len(values)
        while end - begun > 1:
            middle = (begun + end) // 2
            if is_outside(values.slice(begun, middle - begun)):
                end = middle
            else:
                begun = middle
        return begun

    return judge


def _first_gap(values: Any) -> int | None:  # noqa: ANN401
    """The first list that holds a null."""
    elements = values.flatten()
    return _list_of(values, pc.index(elements.is_null(), True).as_py()) if elements.null_count else None


def _in_elements(judge: Callable[[Any], int | None]) -> Callable[[Any], int | None]:
    """Asks of the elements of lists; the place is that of the list."""

    def judge_lists(values: Any) -> int | None:  # noqa: ANN401
        index = judge(values.flatten())
        return None if index is None else _list_of(values, index)

    return judge_lists


def _list_of(lists: Any, element: int) -> int:  # noqa: ANN401  # pyarrow has no types
    """The place of the list that holds an element, which is counted through all of them."""
    ends = accumulate(length or 0 for length in pc.list_value_length(lists).to_pylist())
    return next(place for place, end in enumerate(ends) if element < end)


def _first_too_long(values: Any) -> int | None:  # noqa: ANN401
    """The first text of more than 1 MiB: parsed, eight of them would take hundreds."""
    return _first_false(pc.less(pc.binary_length(values), MAXIMUM_RECORD_BYTES), values)


def _first_not_json(column: Column) -> Callable[[Any], int | None]:
    check = json_text_check(column)

    def judge(values: Any) -> int | None:  # noqa: ANN401
        return next((index for index, text in enumerate(values.to_pylist()) if text is not None and check(text)), None)

    return judge
