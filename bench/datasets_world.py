"""Databases, certificates and a caller around a datasets service that runs by itself."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import secrets
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final, cast

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.client.datasets import Datasets
from casemate.client.session import Session
from casemate.clock import SystemClock
from casemate.gate.core.records import VerificationKey
from casemate.pki.authority import CertificateAuthority
from casemate.pki.leaves import write_leaf
from casemate.sealing.local import LocalKeyRing
from casemate.secret import Secret
from casemate.signing.dataset_manifest import MAXIMUM_MESSAGE_BYTES
from casemate.signing.keys import SigningKey
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel

if TYPE_CHECKING:
    from casemate.settings import DatabaseSettings
    from casemate.storage.embedded import EmbeddedPostgres
    from casemate.transport.certificates import CertificatePair

TENANT: Final = "acme"
DOMAIN: Final = "casemate.internal"
_SCOPES: Final = "datasets.read datasets.write"
_SPKI: Final = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


class Caller:
    """Stands where a `Session` does, with tokens of its own: there is no auth service here."""

    def __init__(self, *, port: int, leaf: Path, token_key: Ed25519PrivateKey) -> None:
        self._token_key = token_key
        self._source = CertificateSource(leaf)
        self._kid = VerificationKey.load(token_key.public_key().public_bytes(*_SPKI)).kid
        self._channel = RotatingChannel(
            target=f"127.0.0.1:{port}",
            service_name=self.service_name("datasets"),
            source=self._source,
            max_message_bytes=MAXIMUM_MESSAGE_BYTES,
            call_metadata=lambda pair: [("authorization", f"Bearer {self._token(pair)}")],
        )

    @property
    def caller(self) -> str:
        """See `Session.caller`."""
        return self._source.current.spiffe_id

    def channel(self, _service: str) -> RotatingChannel:
        """See `Session.channel`."""
        return self._channel

    def service_name(self, service: str) -> str:
        """See `Session.service_name`."""
        return f"{service}.{DOMAIN}"

    def close(self) -> None:
        """See `Session.close`."""
        self._channel.close()

    def _token(self, pair: CertificatePair) -> str:
        now = int(time.time())
        claims = {
            "iss": f"https://auth.{DOMAIN}",
            "aud": "datasets",
            "sub": "bench",
            "client_id": "bench",
            "tenant": TENANT,
            "scope": _SCOPES,
            "iat": now,
            "exp": now + 300,
            "jti": uuid.uuid4().hex,
            "cnf": {"x5t#S256": pair.thumbprint},
        }
        return jwt.encode(claims, self._token_key, algorithm="EdDSA", headers={"kid": self._kid, "typ": "at+jwt"})


class DatasetsWorld:
    """What services of one bench share: certificates, keys, a directory."""

    def __init__(self, directory: Path, postgres: EmbeddedPostgres) -> None:
        self._directory = directory
        self._postgres = postgres
        self._token_key = Ed25519PrivateKey.generate()
        self._environments: dict[str, dict[str, str]] = {}
        self.supplier = SigningKey.generate()
        authority = CertificateAuthority.create(
            directory / "ca",
            trust_domain=DOMAIN,
            key_encryption=LocalKeyRing.create(directory / "ca.json"),
            clock=SystemClock(),
        )
        write_leaf(authority.issue_service(service="datasets"), directory / "server")
        write_leaf(authority.issue_client(tenant=TENANT, name="bench"), directory / "client")
        trust = {
            "issuer": f"https://auth.{DOMAIN}",
            "tenant": TENANT,
            "token_key": base64.b64encode(self._token_key.public_key().public_bytes(*_SPKI)).decode(),
            "supplier": base64.b64encode(self.supplier.public.der).decode(),
        }
        (directory / "trust.json").write_text(json.dumps(trust))

    @asynccontextmanager
    async def serve(self, name: str, *options: str) -> AsyncIterator[tuple[Datasets, int]]:
        """A service on databases of its own until the block ends: a caller's datasets, and its process."""
        home = self._directory / name
        LocalKeyRing.create(home / "kek.json")
        self._environments[name] = self._settings(home) | await self._databases(name)
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "bench.datasets_server", str(self._directory / "trust.json"), *options),
            env=os.environ | self._environments[name],  # noqa: TID251  # a child's
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            port = json.loads(await process.stdout.readline())["port"]
            caller = Caller(port=port, leaf=self._directory / "client", token_key=self._token_key)
            try:
                yield Datasets(cast("Session", caller)), process.pid
            finally:
                caller.close()
        finally:
            await process.communicate(b"")

    def environment(self, name: str) -> dict[str, str]:
        """The settings of a service that runs."""
        return dict(self._environments[name])

    def _settings(self, home: Path) -> dict[str, str]:
        return {
            "CASEMATE_DATASETS_LISTEN": "127.0.0.1:0",
            "CASEMATE_DATASETS_METRICS_LISTEN": "127.0.0.1:0",
            "CASEMATE_DATASETS_IDENTITY_DIR": str(self._directory / "server"),
            "CASEMATE_DATASETS_KEK_FILE": str(home / "kek.json"),
            "CASEMATE_DATASETS_AUDIT_FILE": str(home / "audit.jsonl"),
        }

    async def _databases(self, name: str) -> dict[str, str]:
        said: dict[str, str] = {}
        for prefix, database in (("DATABASE", f"{name}_rows"), ("DATAKEYS_DATABASE", f"{name}_keys")):
            made = await self.database(database)
            stem = f"CASEMATE_DATASETS_{prefix}"
            said |= {f"{stem}_HOST": made.host, f"{stem}_NAME": made.name, f"{stem}_USER": made.user}
            password = self._directory / f"{database}.password"
            password.write_text(made.password.reveal())
            password.chmod(0o600)
            said[f"{stem}_PASSWORD_FILE"] = str(password)
        return said

    async def database(self, name: str) -> DatabaseSettings:
        """An empty database with a role of its own."""
        return await self._postgres.ensure_database(name, Secret(secrets.token_urlsafe(24)))


def peak_resident_bytes(pid: int) -> int:
    """The most memory that a process has had resident, as the kernel counted it."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    line = next(line for line in lines if line.startswith("VmHWM:"))
    return int(line.split()[1]) * 1024
