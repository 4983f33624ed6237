"""What a user of KServe's Python client writes; run in KServe's own environment, prints what it got as JSON.

Usage: kserve_program.py <port> <directory of key.pem, cert.pem, ca.pem> <token>
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import grpc
import numpy as np
from kserve import InferenceGRPCClient, InferInput, InferRequest
from kserve.protocol.grpc import grpc_predict_v2_pb2 as messages
from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

SERVER_NAME = ("grpc.ssl_target_name_override", "inference.casemate.internal")


def tensors() -> dict[str, np.ndarray]:
    return {
        "FP32": np.array([[1.5, -2.0, 3.25]], dtype=np.float32),
        "FP16": np.array([[1.5, -2.0, 65504.0]], dtype=np.float16),
        "INT64": np.array([[1, -2, 2**62]], dtype=np.int64),
        "BOOL": np.array([[True, False, True]]),
        "BYTES": np.array([[b"a", b"", "é".encode()]], dtype=object),
    }


async def infer(client: InferenceGRPCClient, headers: tuple, *, binary: bool) -> dict[str, bool]:
    same = {}
    for name, sent in tensors().items():
        if name == "FP16" and not binary:
            continue  # it travels raw only
        tensor = InferInput(name=f"{name}_in", shape=list(sent.shape), datatype=name)
        tensor.set_data_from_numpy(sent, binary_data=binary)
        request = InferRequest(model_name=name.lower(), infer_inputs=[tensor], request_id="seven")
        response = await client.infer(request, headers=headers)
        got = response.outputs[0].as_numpy()
        same[name] = got.reshape(sent.shape).tolist() == sent.tolist() and response.id == "seven"
    return same


async def ask(port: str, credentials: grpc.ChannelCredentials, token: str) -> dict[str, object]:
    headers = (("authorization", f"Bearer {token}"),)
    target = f"127.0.0.1:{port}"
    async with InferenceGRPCClient(url=target, creds=credentials, channel_args=[SERVER_NAME]) as client:
        said: dict[str, object] = {
            "live": await client.is_server_live(headers=headers),
            "ready": await client.is_server_ready(headers=headers),
            "model_ready": await client.is_model_ready("fp32", headers=headers),
            "raw": await infer(client, headers, binary=True),
            "typed": await infer(client, headers, binary=False),
        }
        try:
            await client.is_model_ready("fp32", headers=())
        except grpc.RpcError as error:
            said["without_token"] = error.code().name
    # The client has no methods for these; its own stubs do.
    with grpc.secure_channel(target, credentials, options=[SERVER_NAME]) as channel:
        stub = GRPCInferenceServiceStub(channel)
        unload = stub.RepositoryModelUnload(
            messages.RepositoryModelUnloadRequest(model_name="fp64"), metadata=headers, timeout=30
        )
        absent = stub.ModelReady(messages.ModelReadyRequest(name="fp64"), metadata=headers, timeout=30)
        load = stub.RepositoryModelLoad(
            messages.RepositoryModelLoadRequest(model_name="fp64"), metadata=headers, timeout=30
        )
        metadata = stub.ModelMetadata(messages.ModelMetadataRequest(name="fp64"), metadata=headers, timeout=30)
        said["server"] = stub.ServerMetadata(messages.ServerMetadataRequest(), metadata=headers, timeout=30).name
    said["unloaded"] = [unload.model_name, unload.isUnloaded, absent.ready]
    said["loaded"] = [load.model_name, load.isLoaded]
    said["inputs"] = [[tensor.name, tensor.datatype, list(tensor.shape)] for tensor in metadata.inputs]
    return said


def main() -> None:
    port, directory, token = sys.argv[1:]
    leaf = Path(directory)
    credentials = grpc.ssl_channel_credentials(
        (leaf / "ca.pem").read_bytes(), (leaf / "key.pem").read_bytes(), (leaf / "cert.pem").read_bytes()
    )
    print(json.dumps(asyncio.run(ask(port, credentials, token))))


if __name__ == "__main__":
    main()
