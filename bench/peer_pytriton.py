"""PyTriton as a peer of `bench.inference`.

Run by its own environment's Python, with a folder of ONNX files and two ports.
Plaintext, no authentication. Triton's front end is C++; the models run in this
process, in ONNX Runtime with one thread.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime  # of the peer's environment
from pytriton.decorators import batch  # type: ignore[import-not-found]  # likewise
from pytriton.model_config import ModelConfig, Tensor  # type: ignore[import-not-found]
from pytriton.triton import Triton, TritonConfig  # type: ignore[import-not-found]


def main(folder: Path, port: int, rest: int) -> None:
    """Serves until it is ended."""
    with Triton(config=TritonConfig(grpc_port=port, http_port=rest, allow_metrics=False, exit_on_error=True)) as triton:
        for file in sorted(folder.glob("*.onnx")):
            _bind(triton, file)
        triton.serve()


def _bind(triton: Any, file: Path) -> None:  # noqa: ANN401  # a type of the peer's environment
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.read_bytes(), sess_options=options, providers=["CPUExecutionProvider"])

    @batch  # type: ignore[untyped-decorator]
    def run(x: np.ndarray[Any, Any]) -> dict[str, Any]:
        return {"y": session.run(None, {"x": x})[0]}

    [takes], [gives] = session.get_inputs(), session.get_outputs()
    triton.bind(
        model_name=file.stem,
        infer_func=run,
        inputs=[Tensor(name="x", dtype=np.float32, shape=tuple(takes.shape[1:]))],
        outputs=[Tensor(name="y", dtype=np.float32, shape=tuple(gives.shape[1:]))],
        config=ModelConfig(max_batch_size=64),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
