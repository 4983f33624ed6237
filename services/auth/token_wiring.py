"""Puts the token service together; a part of `app`, apart for its length alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from casemate.clock import Clock
from casemate.gate.core.quota import LocalQuota
from casemate.gate.core.trust import TrustSnapshot, TrustState
from casemate.sealing.authority_rows import AuthorityKey
from casemate.transport.metrics import Metrics
from services.auth.administration import Administration
from services.auth.client_authentication import ClientAuthenticator
from services.auth.client_secrets import SecretDigests
from services.auth.credentials import Credentials
from services.auth.exchange import Exchange
from services.auth.exchange_grants import ExchangeGrants
from services.auth.families import Families
from services.auth.introspection import Introspection
from services.auth.known_clients import KnownClients
from services.auth.refresh_tokens import RefreshTokens
from services.auth.scopes import OURS, Audiences
from services.auth.slowing import Slowing
from services.auth.store.credentials import CredentialStore
from services.auth.store.families import FamilyStore
from services.auth.subjects import Subjects
from services.auth.token_issuer import TokenIdentifiers, TokenIssuer
from services.auth.token_keys import SigningTokenKey
from services.auth.tokens import REVOKING, Tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenParts:
    """What the token service stands on.

    Attributes:
        families: rows of refresh families.
        credentials: rows of credentials, external issuers and exchange grants.
        known: clients that were read lately.
        key: of MACs and derived tokens.
        issuer: the `iss` of every token.
        signing_key: gives the active key at the moment of the call.
        trust: the present trust.
        trust_state: what holds it.
        administration: revokes.
        metrics: where outcomes are counted.
        clock: says when now is.
        audiences: that tokens may be for.
    """

    families: FamilyStore
    credentials: CredentialStore
    known: KnownClients
    key: AuthorityKey
    issuer: str
    signing_key: Callable[[], SigningTokenKey]
    trust: Callable[[], TrustSnapshot]
    trust_state: TrustState
    administration: Administration
    metrics: Metrics
    clock: Clock
    audiences: Audiences = OURS


def build_tokens(parts: TokenParts) -> Tokens:
    """The token service over its parts."""
    store, clock = parts.credentials, parts.clock
    identifiers = TokenIdentifiers(key=parts.key)
    issuer = TokenIssuer(
        issuer=parts.issuer,
        signing_key=parts.signing_key,
        identifiers=identifiers,
        clock=clock,
        audiences=parts.audiences,
    )
    grants = ExchangeGrants(store=store, clock=clock)
    parts.metrics.counter("refresh_total", "Refresh tokens presented, by outcome.", ("outcome",))
    families = Families(
        store=parts.families,
        tokens=RefreshTokens(key=parts.key),
        issuer=issuer,
        clock=clock,
        allowed=grants.still_allowed,
        observe=lambda outcome: parts.metrics.increment("refresh_total", outcome=outcome),
    )
    subjects = Subjects(store=store, trust=parts.trust, issuer=parts.issuer, clock=clock)
    return Tokens(
        authenticator=ClientAuthenticator(
            store=store,
            digests=SecretDigests(key=parts.key),
            issuer=parts.issuer,
            clock=clock,
            by_certificate=parts.known.by_certificate,
        ),
        slowing=Slowing(clock=clock),
        revoking=LocalQuota(clock=clock, shares=REVOKING),
        issuer=issuer,
        exchange=Exchange(grants=grants, subjects=subjects, families=families, issuer=issuer),
        families=families,
        introspection=Introspection(families=families, trust=parts.trust_state, issuer=parts.issuer, clock=clock),
        identifiers=identifiers,
        administration=parts.administration,
    )


def build_credentials(parts: TokenParts) -> Credentials:
    """The operators' side of credentials over the same parts."""
    return Credentials(
        store=parts.credentials,
        digests=SecretDigests(key=parts.key),
        clock=parts.clock,
        audiences=parts.audiences,
    )
