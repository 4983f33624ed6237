"""A small world around a gate: a clock that is set by hand, keys, tokens, trust, and what was audited."""

from __future__ import annotations

import time
from base64 import urlsafe_b64encode
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from casemate.errors import Unavailable
from casemate.gate.core.audit import AuditEvent
from casemate.gate.core.cache import TokenCache
from casemate.gate.core.gate import Gate
from casemate.gate.core.peer import PeerVerifier
from casemate.gate.core.policy import FOREIGN, MethodPolicy, PeerAccess, PolicyTable, ResourceSelector, TokenAccess
from casemate.gate.core.quota import LocalQuota, Quota
from casemate.gate.core.records import Grant, Revocation, VerificationKey
from casemate.gate.core.thumbprint import certificate_thumbprint
from casemate.gate.core.trust import TrustSnapshot, TrustState
from casemate.gate.core.verifier import TokenVerifier

DOMAIN = "casemate.internal"
ISSUER = f"https://auth.{DOMAIN}"
AUDIENCE = "datasets"
ECHO = "/test.Echo/"


class SetClock:
    """Real time plus what was added by hand."""

    def __init__(self) -> None:
        self.offset = timedelta(0)
        self.wall_offset = timedelta(0)

    def now(self) -> datetime:
        return datetime.now(UTC) + self.offset + self.wall_offset

    def monotonic(self) -> float:
        return time.monotonic() + self.offset.total_seconds()

    def advance(self, **parts: float) -> None:
        self.offset += timedelta(**parts)


class TokenMint:
    """Signs tokens of any content, good and odd."""

    def __init__(self, algorithm: str = "EdDSA") -> None:
        self.algorithm = algorithm
        self.private = Ed25519PrivateKey.generate() if algorithm == "EdDSA" else ec.generate_private_key(ec.SECP256R1())
        self.der = self.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
        self.key = VerificationKey.load(self.der)
        self._numbers = count(1)

    def claims(self, *, now: datetime, thumbprint: str, **changes: Any) -> dict[str, Any]:
        issued = int(now.timestamp())
        claims = {
            "iss": ISSUER,
            "aud": AUDIENCE,
            "sub": "acme-trainer",
            "client_id": "acme-trainer",
            "tenant": "acme",
            "scope": "datasets.read datasets.write",
            "iat": issued,
            "exp": issued + 300,
            "jti": f"token-{next(self._numbers)}",
            "cnf": {"x5t#S256": thumbprint},
        }
        claims.update(changes)
        return {name: value for name, value in claims.items() if value is not ...}

    def token(self, claims: dict[str, Any], **header: Any) -> str:
        headers = {"typ": "at+jwt", "kid": self.key.kid, **header}
        return jwt.encode(claims, self.private, algorithm=self.algorithm, headers=headers)

    def sign_raw(self, header: bytes, payload: bytes) -> str:
        """A real signature over whatever bytes are given as header and payload."""
        signed = f"{base64url(header)}.{base64url(payload)}"
        return f"{signed}.{base64url(self.private.sign(signed.encode()))}"


class KeptAudit:
    """Keeps all events."""

    def __init__(self) -> None:
        self.events: list[AuditEvent] = []
        self.down = False

    def record(self, event: AuditEvent) -> None:
        self.events.append(event)

    def require_writable(self, *, may_wait: bool = False) -> None:
        if self.down and not may_wait:
            raise Unavailable("the audit is down")

    @property
    def denials(self) -> list[str | None]:
        return [event.reason for event in self.events if event.decision == "denied"]


class World:
    """A gate and everything that it depends on."""

    def __init__(
        self, *, quota: Quota | None = None, clock: Any = None, policies: PolicyTable | None = None, **limits: Any
    ) -> None:
        self.policies = policies if policies is not None else echo_policies()
        self.clock = clock if clock is not None else SetClock()
        self.mint = TokenMint()
        self.audit = KeptAudit()
        self.trust = TrustState(**limits)
        self.sequence = 0
        self.publish()
        self.cache = TokenCache()
        self.gate = self.build_gate(self.cache, quota)

    def build_gate(self, cache: TokenCache, quota: Quota | None = None) -> Gate:
        """A gate of this world that remembers what `cache` does and nothing else."""
        return Gate(
            policies=self.policies,
            verifier=TokenVerifier(issuer=ISSUER, audience=AUDIENCE),
            cache=cache,
            trust=self.trust,
            peers=PeerVerifier(trust_domain=DOMAIN),
            quota=quota if quota is not None else LocalQuota(clock=self.clock),
            audit=self.audit,
            clock=self.clock,
        )

    def publish(self, *, keys: tuple[VerificationKey, ...] | None = None, **records: Any) -> None:
        """News: everything as given, with a grant of all verbs on `dataset/digits` unless grants are given."""
        self.sequence += 1
        records.setdefault("grants", (grant(),))
        self.trust.apply_snapshot(
            TrustSnapshot.build(
                epoch="one",
                sequence=self.sequence,
                issuer=ISSUER,
                keys=(self.mint.key,) if keys is None else keys,
                **records,
            )
        )
        self.hear()

    def hear(self) -> None:
        self.trust.heard(self.clock.monotonic())

    def revoke(self, kind: Any, value: str, **more: Any) -> None:
        self.publish(revocations=(Revocation(id=f"revocation-{self.sequence}", kind=kind, value=value, **more),))

    def token(self, leaf: Path, **changes: Any) -> str:
        return self.mint.token(self.mint.claims(now=self.clock.now(), thumbprint=thumbprint_of(leaf), **changes))


def grant(**changes: Any) -> Grant:
    fields: dict[str, Any] = {
        "id": "grant-1",
        "tenant": "acme",
        "caller": "t/acme/*",
        "verb": "*",
        "resource": "dataset/digits",
    }
    return Grant(**{**fields, **changes})


def echo_policies() -> PolicyTable:
    """Policies of the service that the tests serve; `GetVersionRequest` names the dataset."""
    dataset = ResourceSelector(type="dataset", field="dataset")
    own = [
        MethodPolicy(method=ECHO + name, access=TokenAccess("datasets.read", "read"), resource=dataset)
        for name in ("Unary", "UnaryStream", "StreamUnary", "StreamStream", "ByContext")
    ]
    own += [
        MethodPolicy(method=ECHO + "Open", access=TokenAccess("datasets.read"), audit_allowed=True),
        MethodPolicy(
            method=ECHO + "Revoke", access=TokenAccess("datasets.read"), audit_allowed=True, only_revokes=True
        ),
        MethodPolicy(method=ECHO + "Sensitive", access=TokenAccess("datasets.read"), sensitive=True),
        MethodPolicy(method=ECHO + "Other", access=TokenAccess("log.read")),
        MethodPolicy(method=ECHO + "Peer", access=PeerAccess()),
        MethodPolicy(method=ECHO + "Services", access=PeerAccess(frozenset({"inference"}))),
    ]
    return PolicyTable([*FOREIGN.values(), *own])


def base64url(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


@cache
def thumbprint_of(leaf: Path) -> str:
    certificate = x509.load_pem_x509_certificate((leaf / "cert.pem").read_bytes())
    return certificate_thumbprint(certificate.public_bytes(Encoding.DER))


def auth_context(leaf: Path, **changes: list[bytes]) -> dict[str, list[bytes]]:
    """What grpcio tells of a connection by this leaf."""
    return {
        "transport_security_type": [b"ssl"],
        "x509_pem_cert": [(leaf / "cert.pem").read_bytes()],
        "ssl_tls_version": [b"TLSv1.3"],
        "ssl_negotiated_key_exchange_group": [b"X25519MLKEM768"],
        **changes,
    }


def bearer(token: str) -> tuple[tuple[str, str], ...]:
    return (("user-agent", "test"), ("authorization", f"Bearer {token}"))
