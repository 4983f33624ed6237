"""A whole inference service in this process: real mTLS, real tokens, real signatures.

Auth and datasets are tiny servers of their own behind the same TLS; what auth
records reaches the service's TrustState as a delta, as the feed would bring it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import jwt
import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from numpy.typing import NDArray

from casemate.auth.v1 import release_service_pb2_grpc
from casemate.clock import Clock, SystemClock
from casemate.datasets.v1 import (
    dataset_service_pb2_grpc,
    log_service_pb2_grpc,
)
from casemate.gate.core.audit import NoAudit
from casemate.gate.core.records import Grant, VerificationKey
from casemate.inference.v1 import model_service_pb2
from casemate.inference.v1.model_service_pb2_grpc import ModelServiceStub
from casemate.open_inference.v2 import open_inference_pb2 as wire
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.watched_ring import WatchedKeyRing
from casemate.signing.keys import SigningKey
from casemate.signing.signers import Signer
from casemate.signing.statements import FileDigest, ModelManifest, sign_model_manifest
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.metrics import Metrics
from casemate.transport.server import SyncServer, build_server, registered
from casemate.transport.status import from_rpc_error
from services.inference.app import AUDIENCE, Dependencies, Service
from services.inference.backends import Backend
from services.inference.repository import Repository, Store
from services.inference.seat import Seat
from services.inference.servicers import OPEN_INFERENCE
from services.inference.settings import ServingSettings
from tests.services.inference.neighbours import Auth, Log, Roots, Trust
from tests.support.authority import TRUST_DOMAIN, LeafFactory

TENANT = "acme"
NO_WAIT = timedelta(0)
PATIENCE = 30.0
SERVING = ServingSettings(
    threads=8,
    max_message_mib=8,
    max_model_mib=4,
    uploads=3,
    reload_retry=timedelta(seconds=30),
)


@dataclass
class Caller:
    """A client of the house: a certificate, and tokens bound to it."""

    name: str
    tenant: str
    source: CertificateSource
    directory: Path
    """Of `key.pem`, `cert.pem` and `ca.pem`."""


class House:
    """Everything that one test talks to. `close` ends it all."""

    def __init__(
        self,
        *,
        directory: Path,
        leaf: LeafFactory,
        serving: ServingSettings = SERVING,
        backends: Mapping[str, Backend] | None = None,
        store: Store | None = None,
        clock: Clock | None = None,
    ) -> None:
        self._leaf = leaf
        self._clock = clock or SystemClock()
        self._closing: list[Callable[[], None]] = []
        self._token_key = Ed25519PrivateKey.generate()
        public = self._token_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self._verification = VerificationKey.load(public)
        self.publisher = SigningKey.generate()
        self.trust = Trust()
        self.roots, self.log, self.auth = Roots(), Log(), Auth(self.trust)
        self.metrics = Metrics("inference")
        self.repository = directory / "repository"
        self.trust.begin(
            keys=[self._verification],
            grants=[grant("t/acme/caller", "infer"), grant("t/acme/caller", "describe"), grant("t/acme/trainer", "*")],
            signers=[signer(self.publisher)],
        )
        self.caller = self.client("caller")
        self.trainer = self.client("trainer")
        self._serving, self._backends, self._store = serving, backends, store
        self.kek = directory / "kek.json"
        LocalKeyRing.create(self.kek)
        add = release_service_pb2_grpc.add_ReleaseServiceServicer_to_server
        self._auth_channel = self._stand_in("auth", registered(add, self.auth))
        self._datasets_channel = self._stand_in(
            "datasets",
            registered(dataset_service_pb2_grpc.add_DatasetServiceServicer_to_server, self.roots),
            registered(log_service_pb2_grpc.add_LogServiceServicer_to_server, self.log),
        )
        self.service = self.serve()

    def close(self) -> None:
        """Ends everything, newest first."""
        for close in reversed(self._closing):
            close()

    def serve(self, *, seat: Seat | None = None) -> Service:
        """A replica over the same trust, repository and key; started, and through its first round of loading."""
        service = Service(
            Dependencies(
                source=self._source("service", service="inference"),
                trust=self.trust.state,
                auth=self._auth_channel,
                datasets=self._datasets_channel,
                kek=WatchedKeyRing(self.kek),
                audit=NoAudit(),
                metrics=self.metrics,
                clock=self._clock,
            ),
            address="127.0.0.1:0",
            trust_domain=TRUST_DOMAIN,
            repository=self._store or Repository(self.repository),
            serving=self._serving,
            staleness=timedelta(hours=1),
            lame_duck=NO_WAIT,
            backends=self._backends,
            seat=seat,
        )
        service.start()
        self._closing.append(service.stop)
        assert service.watcher.wait_settled(timedelta(seconds=PATIENCE))
        assert service.look()
        return service

    def client(self, name: str, *, tenant: str = TENANT) -> Caller:
        """Somebody with a fresh certificate."""
        directory = self._leaf("client", tenant=tenant, name=name)
        return Caller(name, tenant, CertificateSource(directory), directory)

    def token(self, caller: Caller, scope: str = "models.infer models.publish") -> str:
        """A token for inference, bound to the caller's certificate."""
        now = int(datetime.now(UTC).timestamp())
        claims = {
            "iss": f"https://auth.{TRUST_DOMAIN}",
            "aud": AUDIENCE,
            "sub": caller.name,
            "client_id": caller.name,
            "iat": now,
            "exp": now + 300,
            "jti": uuid.uuid4().hex,
            "scope": scope,
            "tenant": caller.tenant,
            "cnf": {"x5t#S256": caller.source.current.thumbprint},
        }
        headers = {"typ": "at+jwt", "kid": self._verification.kid}
        return jwt.encode(claims, self._token_key, algorithm="EdDSA", headers=headers)

    def metadata(self, caller: Caller) -> tuple[tuple[str, str], ...]:
        """The headers of a call."""
        return (("authorization", f"Bearer {self.token(caller)}"),)

    def channel(self, caller: Caller) -> RotatingChannel:
        """A channel to the service."""
        channel = RotatingChannel(
            target=f"127.0.0.1:{self.service.port}", service_name="inference", source=caller.source
        )
        self._closing.append(channel.close)
        return channel

    def predict(self, images: NDArray[np.float32], version: str = "") -> list[int]:
        """Labels over the wire."""
        request = wire.ModelInferRequest(
            model_name="digits", model_version=version, raw_input_contents=[images.tobytes()]
        )
        request.inputs.add(name="image", datatype="FP32", shape=images.shape)
        response = self.call("ModelInfer", request)
        place = [output.name for output in response.outputs].index("label")
        return np.frombuffer(response.raw_output_contents[place], dtype="<i8").tolist()

    def call(self, method: str, request: object, *, caller: Caller | None = None) -> object:
        """One unary Open Inference call without tritonclient; raises what the server meant."""
        who = caller or self.caller
        stub = self.channel(who).unary_unary(
            f"/{OPEN_INFERENCE}/{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=getattr(wire, f"{method}Response").FromString,
        )
        with meant():
            return stub(request, metadata=self.metadata(who), timeout=PATIENCE)

    def credentials(self, caller: Caller) -> grpc.ChannelCredentials:
        """For clients that make their own channels."""
        pair = caller.source.current
        return grpc.ssl_channel_credentials(pair.roots_pem, pair.private_key_pem.reveal(), pair.certificate_chain_pem)

    def manifest(
        self, files: Mapping[str, bytes], *, model: str = "digits", number: int = 1, **changes: object
    ) -> bytes:
        """A signed envelope; `changes` replace fields of the manifest, `key` the signer."""
        key = changes.pop("key", self.publisher)
        fields = {
            "audience": f"{AUDIENCE}.{TRUST_DOMAIN}",
            "tenant": TENANT,
            "model": model,
            "number": number,
            "files": tuple(FileDigest.of(name, data) for name, data in files.items()),
            "dataset_roots": (),
            "metrics": {"accuracy": 0.97},
            "expires_at": datetime.now(UTC) + timedelta(hours=1),
            **changes,
        }
        return sign_model_manifest(ModelManifest(**fields), key)

    def publish(
        self,
        files: Mapping[str, bytes],
        *,
        model: str = "digits",
        number: int = 1,
        envelope: bytes | None = None,
        caller: Caller | None = None,
        **changes: object,
    ) -> model_service_pb2.PublishModelResponse:
        """Publishes over the wire."""
        who = caller or self.trainer
        envelope = envelope or self.manifest(files, model=model, number=number, **changes)
        return self.upload(pieces(envelope, files, model), caller=who)

    def upload(
        self, messages: Iterator[model_service_pb2.PublishModelRequest], *, caller: Caller | None = None
    ) -> model_service_pb2.PublishModelResponse:
        """Sends these messages to PublishModel."""
        who = caller or self.trainer
        with meant():
            return ModelServiceStub(self.channel(who)).PublishModel(
                messages, metadata=self.metadata(who), timeout=PATIENCE
            )

    def reload(self, number: int = 0) -> model_service_pb2.ReloadModelResponse:
        """Reloads over the wire."""
        with meant():
            return ModelServiceStub(self.channel(self.trainer)).ReloadModel(
                model_service_pb2.ReloadModelRequest(model="digits", number=number),
                metadata=self.metadata(self.trainer),
                timeout=PATIENCE,
            )

    def stored(self, number: int = 1) -> Path:
        """Where a version lies."""
        return self.repository / TENANT / "digits" / str(number)

    def _source(self, kind: str, **names: str) -> CertificateSource:
        return CertificateSource(self._leaf(kind, **names))

    def _stand_in(self, service: str, *services: object) -> RotatingChannel:
        server: SyncServer = build_server(
            source=self._source("service", service=service),
            services=services,
            interceptors=(),
            address="127.0.0.1:0",
            lame_duck=NO_WAIT,
        )
        server.start()
        self._closing.append(lambda: server.stop(NO_WAIT))
        channel = RotatingChannel(
            target=f"127.0.0.1:{server.port}",
            service_name=service,
            source=self._source("service", service="inference"),
        )
        self._closing.append(channel.close)
        return channel


def grant(caller: str, verb: str, resource: str = "model/*") -> Grant:
    """An allowing grant of the house's tenant."""
    return Grant(id=f"{caller}-{verb}", tenant=TENANT, caller=caller, verb=verb, resource=resource)


def signer(key: SigningKey, **changes: object) -> Signer:
    """A publisher of the house's tenant, valid now."""
    now = datetime.now(UTC)
    fields = {
        "key_id": key.public.key_id,
        "tenant": TENANT,
        "role": "publisher",
        "public_key": key.public,
        "valid_from": now - timedelta(days=1),
        "valid_until": now + timedelta(days=1),
        **changes,
    }
    return Signer(**fields)


def pieces(
    envelope: bytes, files: Mapping[str, bytes], model: str, size: int = 1000
) -> Iterator[model_service_pb2.PublishModelRequest]:
    """The messages of an upload; small pieces that do not end where files end."""
    yield model_service_pb2.PublishModelRequest(model=model, manifest=envelope)
    whole = b"".join(files.values())
    for start in range(0, len(whole), size):
        yield model_service_pb2.PublishModelRequest(data=whole[start : start + size])


@contextmanager
def meant() -> Iterator[None]:
    """Turns a status back into the error that the server raised."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from error
