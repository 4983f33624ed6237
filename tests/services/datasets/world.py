"""A datasets service over real mTLS and a real PostgreSQL, with a trust state that the test fills."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import asyncpg
import grpc
import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.clock import SystemClock
from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.datasets.v1.dataset_service_pb2_grpc import DatasetServiceStub
from casemate.datasets.v1.log_service_pb2_grpc import LogServiceStub
from casemate.gate.core.records import Grant, Release, VerificationKey
from casemate.gate.core.trust import TrustSnapshot, TrustState
from casemate.keys.v1 import key_service_pb2
from casemate.keys.v1.key_service_pb2_grpc import KeyServiceStub
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.provider import KekSettings
from casemate.secret import Secret
from casemate.settings import DatabaseSettings, IdentitySettings, ListenSettings, TrustSettings
from casemate.signing import merkle
from casemate.signing.keys import SigningKey
from casemate.signing.signers import Signer
from casemate.signing.statements import ChunkDigest, Column, DatasetManifest, sign_dataset_manifest
from casemate.storage.pool import open_connection
from casemate.transport.certificates import load_pair
from casemate.transport.status import from_rpc_error
from services.datasets.app import Running, serving
from services.datasets.checkpoints import Witness
from services.datasets.settings import DatasetsSettings

DOMAIN = "casemate.internal"
CHUNKS = (b"1,one\n2,two\n", b"3,three\n", b"4,four\n5,five\n6,six\n")
RECORDS = [record for chunk in CHUNKS for record in chunk[:-1].split(b"\n")]
SCHEMA = (Column(name="number", type="integer", minimum=0), Column(name="name", type="text"))
PROMOTIONS = """SELECT count(*) FROM log_entries WHERE position('"kind":"promotion"'::bytea in entry) > 0"""
FOREVER = (datetime(2020, 1, 1, tzinfo=UTC), datetime(2099, 1, 1, tzinfo=UTC))


def manifest_of(chunks: Sequence[bytes] = CHUNKS, **changes: object) -> DatasetManifest:
    """A manifest of acme's dataset `digits` that agrees with the chunks."""
    digests = tuple(ChunkDigest.of(chunk) for chunk in chunks)
    fields: dict[str, object] = {
        "audience": "datasets.casemate.internal",
        "tenant": "acme",
        "dataset": "digits",
        "version": 1,
        "previous_root": None,
        "format": "csv",
        "schema": SCHEMA,
        "rows": sum(digest.rows for digest in digests),
        "bytes": sum(digest.bytes for digest in digests),
        "chunks": digests,
        "root": merkle.root([digest.leaf_hash for digest in digests]),
        "upload_id": uuid4().hex,
        "expires_at": datetime.now(UTC) + timedelta(hours=1),
    }
    return DatasetManifest(**{**fields, **changes})


def manifest_message(envelope: bytes, dataset: str = "digits") -> messages.PushDatasetRequest:
    return messages.PushDatasetRequest(dataset=dataset, manifest=envelope)


def chunk_messages(chunks: Sequence[bytes] = CHUNKS) -> list[messages.PushDatasetRequest]:
    offset, made = 0, []
    for chunk in chunks:
        made.append(messages.PushDatasetRequest(chunk=messages.Chunk(offset=offset, data=chunk)))
        offset += len(chunk)
    return made


FINISH = messages.PushDatasetRequest(finish=messages.Finish())


TRIES = 5


def write_met_the_end(error: grpc.aio.AioRpcError) -> bool:
    """Whether these are grpc.aio's own words: a write failed before it had read the status that the server sent."""
    return (error.code(), error.details()) == (grpc.StatusCode.INTERNAL, "Internal error from Core")


OPTIONS = (("grpc.ssl_target_name_override", f"datasets.{DOMAIN}"), ("grpc.enable_http_proxy", 0))
"""Of a channel without our client's health checking: it calls a service that says it does not serve."""


def credentials(directory: Path) -> grpc.ChannelCredentials:
    return grpc.ssl_channel_credentials(
        *((directory / file).read_bytes() for file in ("ca.pem", "key.pem", "cert.pem"))
    )


@contextmanager
def our_errors():
    """Raises what the server raised, as a client of ours would."""
    try:
        yield
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


@dataclass
class Actor:
    """A caller with a certificate and a token for it."""

    datasets: DatasetServiceStub
    log: LogServiceStub
    keys: KeyServiceStub
    metadata: tuple[tuple[str, str], ...]
    directory: Path

    async def push(self, requests: Iterable[messages.PushDatasetRequest]) -> list[messages.PushDatasetResponse]:
        """Sends in lockstep, gives all answers, leaves the call open at the end by cancelling it.

        A call that is refused at its headers may end while its first message is being written. grpc.aio then
        sometimes answers by itself, without the server's status: such a call is made again.
        """
        said = list(requests)
        for _ in range(TRIES - 1):
            try:
                return await self._push(said)
            except grpc.aio.AioRpcError as error:
                if not write_met_the_end(error):
                    raise from_rpc_error(error) from None
        with our_errors():
            return await self._push(said)

    async def _push(self, requests: Sequence[messages.PushDatasetRequest]) -> list[messages.PushDatasetResponse]:
        call = self.datasets.PushDataset(metadata=self.metadata)
        answers: list[messages.PushDatasetResponse] = []
        for request in requests:
            # A failed call refuses to be written to, and says why when it is read.
            with suppress(grpc.aio.UsageError, grpc.RpcError):
                await call.write(request)
            answer = await call.read()
            if answer is grpc.aio.EOF:
                break
            answers.append(answer)
        if call.done():
            await call.code()
        call.cancel()
        return answers

    async def push_all(
        self, envelope: bytes, chunks: Sequence[bytes] = CHUNKS, *, dataset: str = "digits"
    ) -> messages.PromotedVersion:
        answers = await self.push([manifest_message(envelope, dataset), *chunk_messages(chunks), FINISH])
        return answers[-1].promoted

    async def version(self, dataset: str = "digits", version: int = 0) -> messages.GetVersionResponse:
        with our_errors():
            request = messages.GetVersionRequest(dataset=dataset, version=version)
            return await self.datasets.GetVersion(request, metadata=self.metadata)

    async def shred(self, version: int = 1, dataset: str = "digits") -> messages.ShredVersionResponse:
        with our_errors():
            request = messages.ShredVersionRequest(dataset=dataset, version=version)
            return await self.datasets.ShredVersion(request, metadata=self.metadata)

    async def kek_status(self) -> dict[tuple[str, int], int]:
        """Keys by purpose and version."""
        with our_errors():
            found = await self.keys.GetKekStatus(key_service_pb2.GetKekStatusRequest(), metadata=self.metadata)
        return {(count.purpose, count.kek_version): count.keys for count in found.wrapped}

    async def rewrap(self) -> list[key_service_pb2.RewrapKeysResponse]:
        with our_errors():
            call = self.keys.RewrapKeys(key_service_pb2.RewrapKeysRequest(), metadata=self.metadata)
            return [progress async for progress in call]

    async def pull(
        self, dataset: str = "digits", version: int = 0, **order: object
    ) -> tuple[messages.GetVersionResponse, list[messages.Batch]]:
        pieces = await self.pieces(dataset, version, **order)
        return pieces[0].description, [piece.batch for piece in pieces[1:-1]]

    async def pieces(
        self, dataset: str = "digits", version: int = 0, **order: object
    ) -> list[messages.PullDatasetResponse]:
        """All that comes of a pull: the description, batches, and at last the receipt."""
        with our_errors():
            request = messages.PullDatasetRequest(dataset=dataset, version=version, **order)
            pieces = [piece async for piece in self.datasets.PullDataset(request, metadata=self.metadata)]
        assert pieces[-1].WhichOneof("piece") == "receipt"
        return pieces


@dataclass
class ShiftedClock(SystemClock):
    """The machine's clocks, the wall clock put forward."""

    shift: timedelta = timedelta()

    def now(self) -> datetime:
        return super().now() + self.shift


@dataclass
class World:
    """The service and everybody around it."""

    settings: DatasetsSettings
    leaf: Callable[..., Path]
    superuser: DatabaseSettings
    trust: TrustState = field(default_factory=TrustState)
    supplier: SigningKey = field(default_factory=SigningKey.generate)
    clock: ShiftedClock = field(default_factory=ShiftedClock)
    running: Running | None = None
    witness: Witness | None = None
    clocks_agree_within: timedelta = timedelta(minutes=5)
    releases: list[Release] = field(default_factory=list)
    _token_key: Ed25519PrivateKey = field(default_factory=Ed25519PrivateKey.generate)
    _channels: list[grpc.aio.Channel] = field(default_factory=list)

    def __post_init__(self) -> None:
        der = self._token_key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.verification_key = VerificationKey.load(der)
        self.grants = [
            Grant(id=f"{tenant}-{verb}", tenant=tenant, caller=f"t/{tenant}/*", verb=verb, resource="dataset/*")
            for tenant in ("acme", "globex")
            for verb in ("push", "read", "shred", "label")
        ]
        self.signers = [self.signer(self.supplier)]
        self.tell()

    def signer(self, key: SigningKey, **changes: object) -> Signer:
        fields: dict[str, object] = {
            "key_id": key.public.key_id,
            "tenant": "acme",
            "role": "supplier",
            "public_key": key.public,
            "valid_from": FOREVER[0],
            "valid_until": FOREVER[1],
        }
        return Signer(**{**fields, **changes})

    def tell(self) -> None:
        """Makes the service trust what this world says now."""
        self.trust.apply_snapshot(
            TrustSnapshot.build(
                epoch="1",
                sequence=self.trust.current.sequence + 1,
                issuer=f"https://auth.{DOMAIN}",
                keys=[self.verification_key],
                grants=self.grants,
                signers=self.signers,
                releases=self.releases,
            )
        )
        self.trust.heard(time.monotonic())

    def signed(self, manifest: DatasetManifest | None = None, key: SigningKey | None = None) -> bytes:
        return sign_dataset_manifest(manifest or manifest_of(), key or self.supplier)

    def actor(
        self, name: str = "trainer", *, tenant: str = "acme", scopes: str = "datasets.read datasets.write log.read"
    ) -> Actor:
        directory = self.leaf("client", tenant=tenant, name=name)
        return self._actor(directory, self._token(directory, tenant, name, scopes))

    def service(self, name: str) -> Actor:
        """A service of ours, which calls by its certificate alone."""
        return self._actor(self.leaf("service", service=name), None)

    def _actor(self, directory: Path, token: str | None) -> Actor:
        channel = grpc.aio.secure_channel(f"127.0.0.1:{self.running.port}", credentials(directory), OPTIONS)
        self._channels.append(channel)
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        return Actor(DatasetServiceStub(channel), LogServiceStub(channel), KeyServiceStub(channel), metadata, directory)

    def _token(self, directory: Path, tenant: str, name: str, scopes: str) -> str:
        now = int(time.time())
        claims = {
            "iss": f"https://auth.{DOMAIN}",
            "aud": "datasets",
            "sub": name,
            "client_id": f"{tenant}-{name}",
            "iat": now,
            "exp": now + 300,
            "jti": uuid4().hex,
            "scope": scopes,
            "tenant": tenant,
            "cnf": {"x5t#S256": load_pair(directory).thumbprint},
        }
        headers = {"typ": "at+jwt", "kid": self.verification_key.kid}
        return jwt.encode(claims, self._token_key, algorithm="EdDSA", headers=headers)

    @asynccontextmanager
    async def serve(self, *, fresh: bool = True) -> AsyncIterator[World]:
        """Runs the service, from its settings, until the block ends."""
        if fresh:
            self.trust.heard(time.monotonic())
        built = serving(
            self.settings,
            trust=self.trust,
            clock=self.clock,
            lame_duck=timedelta(),
            witness=self.witness,
            clocks_agree_within=self.clocks_agree_within,
        )
        async with built as self.running:
            try:
                yield self
            finally:
                for channel in self._channels:
                    await channel.close()
                self._channels.clear()

    @asynccontextmanager
    async def sql(self, *, data_keys: bool = False) -> AsyncIterator[asyncpg.Connection]:
        """A superuser in the service's database: the attacker that PostgreSQL cannot stop."""
        name = (self.settings.data_keys if data_keys else self.settings.database).name
        connection = await open_connection(replace(self.superuser, name=name))
        try:
            yield connection
        finally:
            await connection.close()


def build_settings(
    *, identity: Path, database: DatabaseSettings, data_keys: DatabaseSettings, state: Path
) -> DatasetsSettings:
    """Settings of a service on free loopback ports, with a new KEK."""
    LocalKeyRing.create(state / "kek" / "datasets.json")
    return DatasetsSettings(
        listen=ListenSettings(address="127.0.0.1:0", metrics_address="127.0.0.1:0"),
        identity=IdentitySettings(directory=identity, trust_domain=DOMAIN),
        trust=TrustSettings(staleness=timedelta(seconds=300)),
        database=database,
        data_keys=data_keys,
        auth_address="127.0.0.1:1",
        kek=KekSettings(kek_file=state / "kek" / "datasets.json"),
        audit_file=state / "audit.jsonl",
        surplus_kept_for=timedelta(0),  # what is one too many goes at once, but in tests about that
    )


def password() -> Secret[str]:
    """A password of a test's role."""
    return Secret(uuid4().hex)
