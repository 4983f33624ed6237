"""MLServer as a peer of `bench.inference`: the runtime of its models, imported by MLServer in its own environment.

Plaintext, no authentication: it has neither. Models run in its process
(`parallel_workers` 0), in ONNX Runtime with one thread.
"""

from __future__ import annotations

from typing import Any

import onnxruntime  # of the peer's environment
from mlserver import MLModel  # type: ignore[import-not-found]  # likewise
from mlserver.codecs import NumpyCodec  # type: ignore[import-not-found]
from mlserver.types import InferenceResponse  # type: ignore[import-not-found]


class OnnxModel(MLModel):  # type: ignore[misc]  # a class of the peer's environment
    """One ONNX file."""

    async def load(self) -> bool:
        """Loads it."""
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            self.settings.parameters.uri, sess_options=options, providers=["CPUExecutionProvider"]
        )
        return True

    async def predict(self, payload: Any) -> Any:  # noqa: ANN401  # types of the peer's environment
        """Runs it, by MLServer's own codec."""
        [given] = self._session.run(None, {"x": NumpyCodec.decode_input(payload.inputs[0])})
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("y", given)])
