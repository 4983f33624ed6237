"""KServe's Python server as a peer of `bench.inference`.

Run by its own environment's Python, with a folder of ONNX files and two ports.
Plaintext, no authentication: it has neither TLS nor tokens. The models run in
its process, in ONNX Runtime with one thread.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import onnxruntime  # of the peer's environment
from kserve import InferOutput, InferResponse, Model, ModelServer  # type: ignore[import-not-found]  # likewise


class OnnxModel(Model):  # type: ignore[misc]  # a class of the peer's environment
    """One ONNX file."""

    def __init__(self, file: Path) -> None:
        super().__init__(file.stem)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(
            file.read_bytes(), sess_options=options, providers=["CPUExecutionProvider"]
        )
        self.ready = True

    def predict(self, payload: Any, headers: Any = None, response_headers: Any = None) -> Any:  # noqa: ANN401, ARG002  # as inherited
        """Runs the model, as KServe's own runtimes do."""
        [given] = self._session.run(None, {"x": payload.inputs[0].as_numpy()})
        output = InferOutput(name="y", shape=list(given.shape), datatype="FP32")
        output.set_data_from_numpy(given, binary_data=True)
        return InferResponse(response_id=payload.id or "0", model_name=self.name, infer_outputs=[output])


if __name__ == "__main__":
    folder, port, rest = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    models = [OnnxModel(file) for file in sorted(folder.glob("*.onnx"))]
    ModelServer(http_port=rest, grpc_port=port, enable_docs_url=False, workers=1, access_log_format=None).start(models)
