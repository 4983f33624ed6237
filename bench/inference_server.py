"""The servers that `bench.inference` compares, each in a process of its own on one core.

`python -m bench.inference_server MODE DIRECTORY`: `ours` is the whole inference
service (mTLS 1.3, bound token, policy, quota, audit, metrics); `bare` is a
synchronous grpcio server over the same mTLS that parses the same request, runs the
same model and builds the same reply, with nothing else; `echo` gives back its bytes.
Each line on standard input is a question, answered by a line of JSON.
"""

from __future__ import annotations

import json
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime

from bench import inference_models
from bench.tokens import Mint
from casemate.clock import SystemClock
from casemate.gate.adapters.audit_file import AuditFile
from casemate.gate.core.records import Grant, Release, ReleasedVersion
from casemate.gate.core.trust import TrustSnapshot, TrustState
from casemate.open_inference.v2 import open_inference_pb2 as wire
from casemate.sealing.local import LocalKeyRing
from casemate.signing.keys import SigningKey
from casemate.signing.signers import Signer
from casemate.signing.statements import FileDigest, ModelManifest, sign_model_manifest, verify_model_manifest
from casemate.transport.certificates import CertificateSource, load_pair
from casemate.transport.metrics import Metrics
from casemate.transport.options import server_options
from casemate.transport.server import server_credentials
from services.inference.app import AUDIENCE, Dependencies, Service
from services.inference.blocking_kek import BlockingKek
from services.inference.repository import Repository, Slot
from services.inference.settings import ServingSettings
from services.inference.vault import Vault

TENANT = "acme"
TRUST_DOMAIN = "casemate.internal"
METHOD = "/inference.GRPCInferenceService/ModelInfer"
MAX_MESSAGE = 64 * 1024 * 1024
THREADS = 96
HOUR = timedelta(hours=1)


def models() -> dict[str, dict[str, bytes]]:
    """The files of every model, by its name."""
    net = inference_models.net()
    return {
        "small": {"model.onnx": inference_models.small()},
        "digits": {"model.onnx": inference_models.digits()},
        "net": {"model.onnx": net},
        "batched": {"model.onnx": net, "serving.json": inference_models.batching(32)},
        "echo": {"model.onnx": inference_models.echo()},
    }


class Ours:
    """The service, with a trust state that nobody feeds and models that nobody uploaded."""

    def __init__(self, directory: Path) -> None:
        mint, clock = Mint(), SystemClock()
        self.token = mint.issue(load_pair(directory / "client").thumbprint, lifetime_seconds=300)
        self._mint, self._thumbprint = mint, load_pair(directory / "client").thumbprint
        source = CertificateSource(directory / "server")
        kek = LocalKeyRing.create(directory / "inference-kek.json")
        trust = TrustState(staleness=HOUR, sensitive_staleness=HOUR)
        released = _publish(directory / "repository", kek)
        trust.apply_snapshot(_snapshot(mint, *released))
        trust.heard(clock.monotonic() + HOUR.total_seconds())
        nowhere = grpc.secure_channel("127.0.0.1:1", grpc.ssl_channel_credentials())
        self.service = Service(
            Dependencies(
                source=source,
                trust=trust,
                auth=nowhere,
                datasets=nowhere,
                kek=kek,
                audit=AuditFile(directory / "audit.jsonl"),
                metrics=Metrics("inference"),
                clock=clock,
            ),
            address="127.0.0.1:0",
            trust_domain=TRUST_DOMAIN,
            repository=Repository(directory / "repository"),
            serving=ServingSettings(threads=THREADS, max_message_mib=64, max_model_mib=64),
            staleness=HOUR,
        )
        self.service.start()
        if not self.service.watcher.wait_settled(timedelta(minutes=1)) or not self.service.look():
            raise RuntimeError("the models did not load")
        self.port = self.service.port

    def answer(self, question: str) -> dict[str, Any]:
        """A fresh token, or the counts of a model."""
        if question == "token":
            return {"token": self._mint.issue(self._thumbprint, lifetime_seconds=300)}
        counts = self.service.catalogue.find(TENANT, question, "").statistics.current
        return {
            "success": counts.success.count,
            "fail": counts.fail.count,
            "executions": counts.executions,
            "shed": dict(counts.shed),
        }


def _publish(directory: Path, kek: LocalKeyRing) -> tuple[list[Release], Signer]:
    key, now = SigningKey.generate(), datetime.now(UTC)
    vault = Vault(repository=Repository(directory), keys=BlockingKek(kek, timeout=timedelta(seconds=10)))
    signer = Signer(
        key_id=key.public.key_id,
        tenant=TENANT,
        role="publisher",
        public_key=key.public,
        valid_from=now - HOUR,
        valid_until=now + HOUR,
        compromised_since=None,
    )
    releases = []
    for name, files in models().items():
        manifest = ModelManifest(
            audience=f"{AUDIENCE}.{TRUST_DOMAIN}",
            tenant=TENANT,
            model=name,
            number=1,
            files=tuple(FileDigest.of(file, data) for file, data in files.items()),
            dataset_roots=(),
            metrics={},
            expires_at=now + HOUR,
        )
        envelope = sign_model_manifest(manifest, key)
        verified = verify_model_manifest(
            envelope,
            audience=manifest.audience,
            tenant=TENANT,
            model=name,
            resolve=lambda _key_id: signer,
            now=now,
        )
        vault.store(Slot(TENANT, name, 1), manifest=envelope, files=files)
        version = ReleasedVersion(
            number=1, manifest_sha256=verified.payload_sha256, signer_key_id=key.public.key_id, recorded_at=now
        )
        releases.append(Release(tenant=TENANT, model=name, versions=(version,), labels={}))
    return releases, signer


def _snapshot(mint: Mint, releases: list[Release], signer: Signer) -> TrustSnapshot:
    return TrustSnapshot.build(
        epoch="bench",
        sequence=1,
        issuer=mint.issuer,
        keys=[mint.key],
        grants=[Grant(id="bench", tenant=TENANT, caller=f"t/{TENANT}/bench", verb="infer", resource="model/*")],
        signers=[signer],
        releases=releases,
    )


class Bare:
    """What anybody would write with grpcio and ONNX Runtime: mTLS, parse, run, reply."""

    token = ""

    def __init__(self, directory: Path, *, work: str) -> None:
        self._sessions = {}
        if work == "bare":
            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads = options.inter_op_num_threads = 1
            self._sessions = {
                name: onnxruntime.InferenceSession(
                    files["model.onnx"], sess_options=options, providers=["CPUExecutionProvider"]
                )
                for name, files in models().items()
            }
        handler = (
            grpc.unary_unary_rpc_method_handler(
                self._infer,
                request_deserializer=wire.ModelInferRequest.FromString,
                response_serializer=wire.ModelInferResponse.SerializeToString,
            )
            if work == "bare"
            else grpc.unary_unary_rpc_method_handler(lambda raw, _context: raw)
        )
        server = grpc.server(ThreadPoolExecutor(4), options=server_options(max_message_bytes=MAX_MESSAGE))
        service, method = METHOD[1:].split("/")
        server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(service, {method: handler}),))
        credentials = server_credentials(CertificateSource(directory / "server"))
        self.port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        self._server = server

    def answer(self, _question: str) -> dict[str, Any]:
        """Nothing: it keeps no counts."""
        return {}

    def _infer(self, request: wire.ModelInferRequest, _context: grpc.ServicerContext) -> wire.ModelInferResponse:
        tensor = request.inputs[0]
        array = np.frombuffer(request.raw_input_contents[0], dtype=np.float32).reshape(tuple(tensor.shape))
        [given] = self._sessions[request.model_name].run(None, {tensor.name: array})
        response = wire.ModelInferResponse(model_name=request.model_name, model_version="1", id=request.id)
        response.outputs.add(name="y", datatype="FP32", shape=given.shape)
        response.raw_output_contents.append(given.tobytes())
        return response


def main(mode: str, directory: Path) -> None:
    """Serves until its standard input ends."""
    server = Ours(directory) if mode == "ours" else Bare(directory, work=mode)
    print(json.dumps({"port": server.port, "token": server.token}), flush=True)
    for line in sys.stdin:
        question = line.strip()
        said = {"cpu": time.process_time()} if question == "cpu" else server.answer(question)
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
