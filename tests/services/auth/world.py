"""One auth service in this process, and callers with certificates of their own."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc

from casemate.auth.v1 import admin_service_pb2 as admin
from casemate.auth.v1 import token_service_pb2 as tokens
from casemate.auth.v1 import trust_pb2
from casemate.auth.v1.admin_service_pb2_grpc import AdminServiceStub
from casemate.auth.v1.credential_service_pb2_grpc import CredentialServiceStub
from casemate.auth.v1.release_service_pb2_grpc import ReleaseServiceStub
from casemate.auth.v1.token_service_pb2_grpc import TokenServiceStub
from casemate.auth.v1.trust_service_pb2_grpc import TrustServiceStub
from casemate.clock import Clock, SystemClock
from casemate.errors import CasemateError
from casemate.gate.core.quota import Shares
from casemate.gate.core.verifier import TokenVerifier, VerifiedToken
from casemate.sealing.authority_rows import AuthorityKey
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.provider import KekSettings
from casemate.settings import DatabaseSettings, IdentitySettings, ListenSettings, TrustSettings
from casemate.storage.migrations import migrate
from casemate.storage.pool import open_connection, open_pool
from casemate.transport.status import from_rpc_error
from services.auth import app
from services.auth.bootstrap import OperatorPlace, bootstrap_operator
from services.auth.settings import AuthSettings
from services.auth.store.authority import AuthorityStore
from services.auth.store.table import Alarms
from services.auth.store.tables import AuthorityTables
from tests.support.authority import TRUST_DOMAIN

SCHEMA = Path(app.__file__).parent / "schema"
SOON = 20.0
"""Seconds within which anything that is waited for must happen, on a busy machine too."""


@dataclass
class Shelf:
    """The store over a migrated database, without a service."""

    pool: Any
    tables: AuthorityTables
    store: AuthorityStore
    kek: LocalKeyRing
    key: AuthorityKey
    alarms: list[str] = field(default_factory=list)


@asynccontextmanager
async def open_shelf(database: DatabaseSettings, state: Path) -> AsyncIterator[Shelf]:
    pool = await open_pool(database)
    try:
        await migrate(pool, SCHEMA)
        kek_file = state / "kek.json"
        kek = LocalKeyRing.load(kek_file) if kek_file.exists() else LocalKeyRing.create(kek_file)
        key = await AuthorityKey.load_or_create(kek, state / "kek.authority.json")
        sounded: list[str] = []
        tables = AuthorityTables(key=key, alarms=Alarms(count=lambda: sounded.append("alarm")))
        store = AuthorityStore(pool=pool, tables=tables)
        yield Shelf(pool=pool, tables=tables, store=store, kek=kek, key=key, alarms=sounded)
    finally:
        await pool.close()


@dataclass
class Caller:
    """A holder of one certificate."""

    channel: grpc.aio.Channel
    held: dict[str, tokens.IssueTokenResponse] = field(default_factory=dict)

    async def token(
        self, audience: str = "auth", scopes: tuple[str, ...] = (), **credential: str
    ) -> tokens.IssueTokenResponse:
        shown = tokens.ClientCredential(**credential)
        request = tokens.IssueTokenRequest(audience=audience, scopes=scopes, credential=shown)
        return await ours(TokenServiceStub(self.channel).IssueToken(request))

    async def ask(self, name: str, request: object) -> Any:
        """Another rpc of the token service."""
        return await ours(getattr(TokenServiceStub(self.channel), name)(request))

    async def administer(self, name: str, request: object, *, token: str | None = None) -> Any:
        if token is None:
            if "auth" not in self.held:
                self.held["auth"] = await self.token("auth", ("admin",))
            token = self.held["auth"].access_token
        stubs = (stub(self.channel) for stub in (AdminServiceStub, CredentialServiceStub, ReleaseServiceStub))
        method = next(getattr(stub, name) for stub in stubs if hasattr(stub, name))
        return await ours(method(request, metadata=(("authorization", f"Bearer {token}"),)))

    async def revoke_own(self, token_id: str) -> None:
        await ours(TokenServiceStub(self.channel).RevokeToken(tokens.RevokeTokenRequest(token_id=token_id)))

    async def refresh(self, refresh_token: str, scopes: tuple[str, ...] = ()) -> tokens.RefreshTokenResponse:
        request = tokens.RefreshTokenRequest(refresh_token=refresh_token, scopes=scopes)
        return await ours(TokenServiceStub(self.channel).RefreshToken(request))

    async def record(self, request: object) -> Any:
        return await ours(ReleaseServiceStub(self.channel).RecordRelease(request))

    async def set_label(self, request: object) -> Any:
        if "auth" not in self.held:
            self.held["auth"] = await self.token("auth", ("admin",))
        metadata = (("authorization", f"Bearer {self.held['auth'].access_token}"),)
        return await ours(ReleaseServiceStub(self.channel).SetLabel(request, metadata=metadata))

    def watch(self, request: object) -> Any:
        return TrustServiceStub(self.channel).WatchTrust(request, timeout=60)


async def ours(call: Any) -> Any:
    """What a call answers, or our own error for its status."""
    try:
        return await call
    except grpc.RpcError as error:
        raise from_rpc_error(error) from None


async def failure(call: Any) -> CasemateError:
    """The error that a call ends with."""
    try:
        answer = await call
    except CasemateError as error:
        return error
    raise AssertionError(f"was answered: {answer}")


@dataclass
class World:
    """The running service and everything around it."""

    settings: AuthSettings
    running: app.Running
    leaf: Callable[..., Path]
    channels: list[grpc.aio.Channel] = field(default_factory=list)

    def caller(self, directory: Path, *, port: int | None = None) -> Caller:
        credentials = grpc.ssl_channel_credentials(
            root_certificates=(directory / "ca.pem").read_bytes(),
            private_key=(directory / "key.pem").read_bytes(),
            certificate_chain=(directory / "cert.pem").read_bytes(),
        )
        options = (("grpc.ssl_target_name_override", f"auth.{TRUST_DOMAIN}"), ("grpc.enable_http_proxy", 0))
        channel = grpc.aio.secure_channel(
            f"127.0.0.1:{self.running.port if port is None else port}", credentials, options
        )
        self.channels.append(channel)
        return Caller(channel)

    def client(self, tenant: str, name: str) -> Caller:
        return self.caller(self.leaf("client", tenant=tenant, name=name))

    def service(self, name: str) -> Caller:
        return self.caller(self.leaf("service", service=name))

    def operator(self) -> Caller:
        return self.client("casemate", "operator")

    async def enlist(
        self,
        operator: Caller,
        tenant: str,
        name: str,
        *,
        audiences: tuple[str, ...],
        scopes: tuple[str, ...],
        authentication: int = 0,
    ) -> Caller:
        """A caller whose client is registered; its tenant is made when it is new."""
        error = None
        try:
            await operator.administer("CreateTenant", admin.CreateTenantRequest(tenant=tenant))
        except CasemateError as raised:
            error = raised
        assert error is None or error.reason.value == "ALREADY_EXISTS"
        client = client_message(tenant, name, audiences, scopes)
        client.authentication = authentication
        await operator.administer("CreateClient", admin.CreateClientRequest(client=client))
        return self.client(tenant, name)

    def verified(self, token: str, audience: str) -> VerifiedToken:
        """The token as the service that it is for sees it."""
        verifier = TokenVerifier(issuer=self.settings.issuer, audience=audience)
        return verifier.verify(token, keys=self.running.trust.current.keys, now=SystemClock().now())

    async def sql(self, statement: str, *values: object) -> list[Any]:
        """Runs SQL past the application."""
        connection = await open_connection(self.settings.database)
        try:
            return await connection.fetch(statement, *values)
        finally:
            await connection.close()

    @property
    def alarms(self) -> float:
        return self.running.metrics.value("authority_alarms_total")


def spiffe_id(tenant: str, name: str) -> str:
    return f"spiffe://{TRUST_DOMAIN}/t/{tenant}/{name}"


def place(name: str, tenant: str = "casemate") -> OperatorPlace:
    """Where an operator of this name is to be made."""
    return OperatorPlace(client_id=name, spiffe_id=spiffe_id(tenant, name), trust_domain=TRUST_DOMAIN)


def client_message(
    tenant: str, name: str, audiences: tuple[str, ...] = ("inference",), scopes: tuple[str, ...] = ("models.infer",)
) -> admin.Client:
    return admin.Client(
        client_id=f"{tenant}-{name}",
        tenant=tenant,
        spiffe_id=spiffe_id(tenant, name),
        audiences=audiences,
        scopes=scopes,
    )


def grant_message(tenant: str, caller: str, verb: str = "infer", resource: str = "model/digits") -> trust_pb2.Grant:
    return trust_pb2.Grant(tenant=tenant, caller=caller, verb=verb, resource=resource, effect=trust_pb2.EFFECT_ALLOW)


def build_settings(database: DatabaseSettings, identity: Path, state: Path) -> AuthSettings:
    return AuthSettings(
        listen=ListenSettings(address="127.0.0.1:0", metrics_address="127.0.0.1:0"),
        identity=IdentitySettings(directory=identity, trust_domain=TRUST_DOMAIN),
        trust=TrustSettings(),
        database=database,
        kek=KekSettings(kek_file=state / "kek.json"),
        audit_file=state / "audit.jsonl",
        http_address="127.0.0.1:0",
    )


@asynccontextmanager
async def build_world(
    database: DatabaseSettings,
    leaf: Callable[..., Path],
    state: Path,
    *,
    heartbeat: timedelta = timedelta(milliseconds=200),
    sweep: timedelta = timedelta(hours=1),
    clock: Clock | None = None,
    shares: Shares = app.SHARES,
    **pace: Any,
) -> AsyncIterator[World]:
    async with open_shelf(database, state) as shelf:
        await bootstrap_operator(shelf.store, place("operator"), clock=SystemClock())
    settings = build_settings(database, leaf("service", service="auth"), state)
    paced = app.Pace(heartbeat=heartbeat, sweep=sweep, lame_duck=timedelta(0), **pace)
    async with app.serving(settings, clock=clock, pace=paced, shares=shares) as running:
        world = World(settings, running, leaf)
        try:
            yield world
        finally:
            for channel in world.channels:
                await channel.close()
