"""Whose fault it is that ONNX Runtime did not finish a run.

A kernel on the CPU is a function of what it is given, and a model's own weights
are what its publisher signed. So what fails at one of the graph's nodes fails
because of the request's values: a negative size, an index beyond the end, a
division by zero, text that is no number. What fails before any node, or because
a kernel is missing, is the model's or ours. What fails for want of memory is
the caller's too, by how much the values ask for.

ONNX Runtime raises these apart by class, and names the node in the text.

If this fails: a caller is told that the service is broken, or the reverse, and
whoever is on call is woken for a caller's mistake.
"""

from __future__ import annotations

from casemate.errors import CasemateError, Exhausted, FieldViolation, InternalError, InvalidRequest, Reason

_AT_A_NODE = "Non-zero status code returned while running "
_BY_VALUES = frozenset({"Fail", "RuntimeException"})
_NO_MEMORY = ("BFCArena", "Failed to allocate memory", "bad_alloc", "exceeds the supported maximum of")


def failure_of(error: Exception) -> CasemateError:
    """What a caller is told of an exception of ONNX Runtime's `run`; the text itself is for the log alone."""
    kind, text = type(error).__name__, str(error)
    at_a_node = _AT_A_NODE in text
    if isinstance(error, MemoryError) or (at_a_node and any(word in text for word in _NO_MEMORY)):
        return Exhausted(f"ONNX Runtime: {text}", reason=Reason.REQUEST_TOO_LARGE)
    if kind == "InvalidArgument" or (at_a_node and kind in _BY_VALUES):
        violation = FieldViolation("inputs", "the model does not take these values")
        return InvalidRequest(f"ONNX Runtime: {text}", violations=(violation,))
    return InternalError(f"ONNX Runtime: {text}")
