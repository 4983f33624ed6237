"""Puts the rpcs together; a part of `app`, apart for its length alone."""

from __future__ import annotations

from casemate.auth.v1.admin_service_pb2_grpc import add_AdminServiceServicer_to_server
from casemate.auth.v1.credential_service_pb2_grpc import add_CredentialServiceServicer_to_server
from casemate.auth.v1.release_service_pb2_grpc import add_ReleaseServiceServicer_to_server
from casemate.auth.v1.token_service_pb2_grpc import add_TokenServiceServicer_to_server
from casemate.auth.v1.trust_service_pb2_grpc import add_TrustServiceServicer_to_server
from casemate.auth.v1.witness_service_pb2_grpc import add_WitnessServiceServicer_to_server
from casemate.clock import Clock
from casemate.gate.core.trust import TrustState
from casemate.sealing.authority_rows import AuthorityKeyFile
from casemate.transport.registry import RegisteredService, registered
from services.auth.administration import Administration
from services.auth.feed import TrustPublisher
from services.auth.key_ring import TokenKeyRing
from services.auth.known_clients import KnownClients
from services.auth.labels import Labels
from services.auth.listing import Listing
from services.auth.opening import Authority
from services.auth.releases import Releases
from services.auth.server_metadata import ServerMetadata
from services.auth.servicer_admin import AdminServicer
from services.auth.servicer_credentials import CredentialServicer
from services.auth.servicer_releases import ReleaseServicer
from services.auth.servicer_tokens import TokenServicer
from services.auth.servicer_trust import TrustServicer
from services.auth.servicer_witness import WitnessServicer
from services.auth.settings import AuthSettings
from services.auth.store.credentials import CredentialStore
from services.auth.store.families import FamilyStore
from services.auth.store.listing import ListingStore
from services.auth.store.witness import WitnessStore
from services.auth.token_wiring import TokenParts, build_credentials, build_tokens
from services.auth.token_wraps import TokenKeyWraps
from services.auth.witness import Witness, witness_key
from services.keys.operations import KeyOperations
from services.keys.servicer import key_service


def build_services(
    settings: AuthSettings,
    authority: Authority,
    ring: TokenKeyRing,
    publisher: TrustPublisher,
    *,
    families: FamilyStore,
    known: KnownClients,
    trust: TrustState,
    clock: Clock,
) -> tuple[list[RegisteredService], TokenServicer]:
    """Every rpc of the service; the token service's is given besides, for the HTTPS face.

    Args:
        settings: the service's own.
        authority: rows and keys.
        ring: keys that sign tokens.
        publisher: the trust feed.
        families: rows of refresh families.
        known: clients that were read lately.
        trust: the present trust.
        clock: time.
    """
    parts = _token_parts(settings, authority, ring, families=families, known=known, trust=trust, clock=clock)
    administration = parts.administration
    metadata = ServerMetadata(issuer=parts.issuer, trust=parts.trust, audiences=settings.audiences)
    tokens = TokenServicer(tokens=build_tokens(parts), metadata=metadata)
    listing = Listing(store=ListingStore(pool=authority.pool, tables=authority.tables), clock=clock)
    credentials = CredentialServicer(credentials=build_credentials(parts), listing=listing)
    releases = ReleaseServicer(
        releases=Releases(store=authority.store, clock=clock),
        labels=Labels(store=authority.store, audience=f"auth.{settings.identity.trust_domain}", clock=clock),
        listing=listing,
    )
    wraps = TokenKeyWraps(pool=authority.pool, tables=authority.tables)
    services = [
        registered(add_TokenServiceServicer_to_server, tokens),
        registered(add_CredentialServiceServicer_to_server, credentials),
        registered(
            add_TrustServiceServicer_to_server,
            TrustServicer(publisher=publisher, clock=clock, audiences=settings.audiences),
        ),
        registered(add_AdminServiceServicer_to_server, AdminServicer(administration=administration, listing=listing)),
        registered(add_ReleaseServiceServicer_to_server, releases),
        registered(
            add_WitnessServiceServicer_to_server, WitnessServicer(witness=build_witness(settings, authority, clock))
        ),
        key_service(KeyOperations(kek=authority.kek, stores=[wraps, AuthorityKeyFile(settings.authority_key)])),
    ]
    return services, tokens


def _token_parts(
    settings: AuthSettings,
    authority: Authority,
    ring: TokenKeyRing,
    *,
    families: FamilyStore,
    known: KnownClients,
    trust: TrustState,
    clock: Clock,
) -> TokenParts:
    """What issuing, proving and ending tokens is made of."""
    administration = Administration(
        store=authority.store,
        new_token_key=ring.new_key,
        token_keys=ring.overview,
        trust_domain=settings.identity.trust_domain,
        clock=clock,
        audiences=settings.audiences,
        forget=known.forget,
    )
    return TokenParts(
        families=families,
        credentials=CredentialStore(pool=authority.pool, tables=authority.tables),
        known=known,
        key=authority.key,
        issuer=settings.issuer,
        signing_key=ring.active,
        trust=lambda: trust.current,
        trust_state=trust,
        administration=administration,
        metrics=authority.metrics,
        clock=clock,
        audiences=settings.audiences,
    )


def build_witness(settings: AuthSettings, authority: Authority, clock: Clock) -> Witness:
    """What cosigns the transparency log of this trust domain."""
    domain = settings.identity.trust_domain
    return Witness(
        store=WitnessStore(pool=authority.pool, key=authority.key, alarms=authority.alarms),
        key=witness_key(authority.key),
        name=f"auth.{domain}/witness",
        origin=f"datasets.{domain}/log",
        alarms=authority.alarms,
        clock=clock,
    )
