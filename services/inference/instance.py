"""A model that can run: the seam between the protocol and what computes.

This module, `brain_floats`, `run_failures`, `model_memory` and `trial` alone know ONNX Runtime.
A batcher, or another back end, stands behind the same `run`.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, Protocol

import onnxruntime  # this module gives it the types it lacks

from casemate.errors import Exhausted, FieldViolation, InvalidRequest, Reason
from services.inference.brain_floats import has_brain_floats, run_with_brain_floats
from services.inference.model_memory import giving_back, share_arena
from services.inference.onnx_wire import GraphLimits, check_onnx
from services.inference.run_failures import failure_of
from services.inference.steadiness import is_steady
from services.inference.tensors import BY_ONNX, TensorSpec
from services.inference.whole_division import require_sound_division

if TYPE_CHECKING:
    from collections.abc import Mapping

    from services.inference.tensors import Array

_FATAL_ONLY = 4


class Instance(Protocol):
    """Something that computes outputs from inputs; `run` may be called from many threads at once."""

    @property
    def platform(self) -> str:
        """What computes, as ModelMetadata tells it."""
        ...

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What it takes, in the model's order."""
        ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What it gives, in the model's order."""
        ...

    def run(self, inputs: Mapping[str, Array]) -> Mapping[str, Array]:
        """All outputs by name. Inputs were validated; they may be read-only.

        Raises:
            InvalidRequest: the values do not fit the model.
            Exhausted: they ask for too much memory.
            InternalError: the model failed.
        """
        ...


class OnnxInstance:
    """An ONNX model in ONNX Runtime on the CPU: one thread per call, no optimised copy written anywhere.

    Args:
        model: the file's bytes, as they were signed.
        limits: caps on the graph.
        unsafe_division: also one whose divisions may end the process, by values that its callers choose.

    Attributes:
        steady: requests of the same shapes take the same time, whatever their values.

    Raises:
        InvalidRequest: reason MODEL_INVALID: the model cannot be served.
    """

    def __init__(self, model: bytes, *, limits: GraphLimits | None = None, unsafe_division: bool = False) -> None:
        operators = check_onnx(model, limits=limits or GraphLimits())
        if not unsafe_division:
            require_sound_division(model, operators)  # before ONNX Runtime sees it, which folds constants
        try:
            self._session = onnxruntime.InferenceSession(
                model, sess_options=session_options(), providers=["CPUExecutionProvider"]
            )
        except Exception as error:  # ONNX Runtime's own classes derive from Exception directly
            raise _invalid("does not load in ONNX Runtime") from error
        self._inputs = tuple(_spec(node) for node in self._session.get_inputs())
        self._outputs = tuple(_spec(node) for node in self._session.get_outputs())
        self.steady = is_steady(operators, self._inputs)
        self._brain_floats = has_brain_floats((*self._inputs, *self._outputs))
        if self._brain_floats and any(spec.datatype.width is None for spec in self._inputs):
            raise _invalid("takes text beside BF16, which ONNX Runtime cannot be given from Python")

    @property
    def platform(self) -> str:
        """ONNX Runtime, as Triton calls it."""
        return "onnxruntime_onnx"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What the model takes."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """What the model gives."""
        return self._outputs

    def run(self, inputs: Mapping[str, Array], options: Any = None) -> Mapping[str, Array]:  # noqa: ANN401  # as above
        """Runs the model once in the calling thread, the GIL released; `options` are ONNX Runtime's own of one run.

        Raises:
            InvalidRequest: the model does not take these values.
            Exhausted: reason REQUEST_TOO_LARGE: they ask for more memory than there is.
            InternalError: it failed, whatever it was given.
        """
        try:
            results = self._run(inputs, options)
        except Exception as error:
            failure = failure_of(error)
            if not isinstance(failure, Exhausted) or self._brain_floats:
                raise failure from error
            try:
                results = self._run_with_room(inputs, options)
            except Exception as again:
                raise failure_of(again) from again
        return {spec.name: array for spec, array in zip(self._outputs, results, strict=True)}

    def _run(self, inputs: Mapping[str, Array], options: Any) -> list[Array]:  # noqa: ANN401
        if self._brain_floats:
            return run_with_brain_floats(
                self._session, inputs=inputs, takes=self._inputs, gives=self._outputs, options=options
            )
        results: list[Array] = self._session.run(None, dict(inputs), options)
        return results

    def _run_with_room(self, inputs: Mapping[str, Array], options: Any) -> list[Array]:  # noqa: ANN401
        """Once more, with all of the arena that is not in use: what ran before may have left it in pieces."""
        with contextlib.suppress(Exception):  # what counts is that it gives back
            self._session.run(None, dict(inputs), giving_back())
        return self._run(inputs, options)


def session_options() -> Any:  # noqa: ANN401  # onnxruntime ships no types
    """What ONNX Runtime is told of threads, optimisation and logs, whatever its defaults become."""
    options = onnxruntime.SessionOptions()
    # Handler threads are the parallelism: a pool per model would multiply threads by models.
    options.intra_op_num_threads = 1
    options.inter_op_num_threads = 1
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    # Its log repeats names and values of the model; what matters is raised.
    options.log_severity_level = _FATAL_ONLY
    # Never by the look of the bytes: only ONNX was walked by `check_onnx`.
    options.add_session_config_entry("session.load_model_format", "ONNX")
    share_arena(options)
    return options


def _spec(node: Any) -> TensorSpec:  # noqa: ANN401  # onnxruntime ships no types
    datatype = BY_ONNX.get(node.type)
    if datatype is None:
        raise _invalid("has an input or output that is no tensor of a served datatype (export without ZipMap)")
    shape = tuple(size if isinstance(size, int) and size >= 0 else -1 for size in node.shape)
    return TensorSpec(node.name, datatype, shape)


def _invalid(description: str) -> InvalidRequest:
    return InvalidRequest(
        f"the model {description}",
        reason=Reason.MODEL_INVALID,
        violations=(FieldViolation("model.onnx", description),),
    )
