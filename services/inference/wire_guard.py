"""Counts what a large request consists of before it is parsed.

Four million bytes of empty sub-messages parse into forty times as much memory.
A request that fits its tensors has a few fields each; a walk over tags and
lengths, which copies nothing and stops at a cap, tells the two apart. Small
requests are parsed at once: what they can become is small too.

The same walk finds where the raw contents of tensors lie. They stay there: the
parser is given the rest, and arrays are laid over the bytes as they came, so that
a large tensor is not copied twice on its way to the model.

If this fails: one admitted caller's message takes some forty times its size in
memory while it is parsed; the size of messages is still capped.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeAlias

import numpy as np
from google.protobuf.message import DecodeError

from casemate.errors import Exhausted, FieldViolation, InvalidRequest, Reason
from casemate.open_inference.v2 import open_inference_pb2 as wire

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

UNWALKED_BYTES: Final = 64 * 1024
MAX_FIELDS: Final = 65_536
MAX_VARINTS: Final = 2 * 1024 * 1024
MAX_OTHER_BYTES: Final = 1024 * 1024
"""Of every method that carries no tensors."""

# Fields of ModelInferRequest that lead to messages, by message; and those of packed varints, which grow eightfold.
_NESTED: Final = {
    "request": {4: "entry", 5: "input", 6: "output"},
    "input": {4: "entry", 5: "contents"},
    "output": {2: "entry"},
    "contents": {},
    "entry": {2: "parameter"},
    "parameter": {},
}
_PACKED: Final = {"input": frozenset({3}), "contents": frozenset({1, 2, 3, 4, 5})}
_RAW_CONTENTS: Final = 7
_NO_FIELDS: Final[frozenset[int]] = frozenset()
_VARINT, _FIXED64, _LENGTH, _FIXED32 = 0, 1, 2, 5


class LargeRequest:
    """A ModelInferRequest whose raw contents lie in the bytes that it came in; its other fields are parsed.

    Args:
        rest: the message without its raw contents.
        raw_input_contents: these.
    """

    __slots__ = ("id", "inputs", "model_name", "model_version", "outputs", "parameters", "raw_input_contents")

    def __init__(self, rest: wire.ModelInferRequest, raw_input_contents: Sequence[memoryview]) -> None:
        self.raw_input_contents = raw_input_contents
        self.model_name, self.model_version, self.id = rest.model_name, rest.model_version, rest.id
        self.parameters, self.inputs, self.outputs = rest.parameters, rest.inputs, rest.outputs


InferRequest: TypeAlias = wire.ModelInferRequest | LargeRequest


def parse_infer_request(raw: bytes) -> InferRequest:
    """The request, parsed only if it is no larger in memory than its bytes let expect.

    Raises:
        InvalidRequest: it consists of more fields or elements than a request may.
        DecodeError: it is no request.
    """
    if len(raw) > UNWALKED_BYTES:
        walk = _Walk(raw)
        try:
            walk.message("request", 0, len(raw))
        except _Malformed:
            # Never to the parser: it takes groups, which no client of today writes, and behind one a flood would hide.
            raise DecodeError("neither lengths nor tags of a request") from None
        return LargeRequest(wire.ModelInferRequest.FromString(walk.rest()), walk.contents())
    request: wire.ModelInferRequest = wire.ModelInferRequest.FromString(raw)
    return request


def small(parse: Callable[[bytes], Any]) -> Callable[[bytes], Any]:
    """A parser that refuses what is larger than any request without tensors."""

    def parse_small(raw: bytes) -> Any:  # noqa: ANN401  # any message
        if len(raw) > MAX_OTHER_BYTES:
            raise Exhausted("a request without tensors is not this large", reason=Reason.REQUEST_TOO_LARGE)
        return parse(raw)

    return parse_small


class _Malformed(Exception):
    pass


class _Walk:
    def __init__(self, raw: bytes) -> None:
        self._raw = raw
        self._fields = 0
        self._varints = 0
        self._contents: list[tuple[int, int, int]] = []  # of the raw contents: tag, first byte, end

    def contents(self) -> tuple[memoryview, ...]:
        """The raw contents, in their order."""
        whole = memoryview(self._raw)
        return tuple(whole[first:end] for _, first, end in self._contents)

    def rest(self) -> bytes:
        """The message without them."""
        whole, pieces, position = memoryview(self._raw), [], 0
        for tag, _, end in self._contents:
            pieces.append(whole[position:tag])
            position = end
        return b"".join((*pieces, whole[position:]))

    def message(self, kind: str, position: int, end: int) -> None:
        nested, packed = _NESTED[kind], _PACKED.get(kind, _NO_FIELDS)
        while position < end:
            self._fields += 1
            if self._fields > MAX_FIELDS:
                raise _too_much()
            began = position
            tag, position = self._varint(position, end)
            number, wire_type = tag >> 3, tag & 7
            if wire_type == _LENGTH:
                length, position = self._varint(position, end)
                if position + length > end:
                    raise _Malformed
                if number == _RAW_CONTENTS and kind == "request":
                    self._contents.append((began, position, position + length))
                elif number in nested:
                    self.message(nested[number], position, position + length)
                elif number in packed:
                    self._count(position, length)
                position += length
            elif wire_type == _VARINT:
                _, position = self._varint(position, end)
            elif wire_type in (_FIXED64, _FIXED32):
                position += 8 if wire_type == _FIXED64 else 4
            else:
                raise _Malformed

    def _count(self, position: int, length: int) -> None:
        # Each varint ends with the one byte of it whose high bit is clear.
        self._varints += int(np.count_nonzero(np.frombuffer(self._raw, np.int8, length, position) >= 0))
        if self._varints > MAX_VARINTS:
            raise _too_much()

    def _varint(self, position: int, end: int) -> tuple[int, int]:
        value = 0
        for shift in range(0, 70, 7):
            if position >= end:
                raise _Malformed
            byte = self._raw[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value, position
        raise _Malformed


def _too_much() -> InvalidRequest:
    violation = FieldViolation("inputs", "consist of more fields or typed elements than one request may")
    return InvalidRequest("a request of too many parts", violations=(violation,))
