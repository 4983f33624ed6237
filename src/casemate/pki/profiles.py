"""What is in each certificate: RFC 5280 fields, chosen once.

If this fails: a leaf can sign others, or a client's leaf can stand as a server.
The gate still wants exactly one SPIFFE ID and clientAuth, and channels verify the
service's own DNS name, which no client's leaf carries.
"""

from __future__ import annotations

from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.types import CertificatePublicKeyTypes
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from casemate.pki.names import DatabaseLeafName, DatabaseRole, LeafName, ServiceName

AUTHORITY_LIFETIME = timedelta(days=3652)  # ten years
LEAF_LIFETIME = timedelta(hours=24)
BACKDATING = timedelta(minutes=1)  # for peers whose clocks are a little behind

_CERT_SIGN = {"key_cert_sign": True}
_SIGNATURE = {"digital_signature": True}


def build_authority(*, key: ec.EllipticCurvePrivateKey, trust_domain: str, now: datetime) -> x509.Certificate:
    """A self-signed CA that signs leaves only (path length 0), for ten years.

    Its URI is the trust domain without a path (SPIFFE X509-SVID section 4.2).
    """
    name = _subject(f"Casemate authority of {trust_domain}")
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    return (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATING)
        .not_valid_after(now + AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(_CERT_SIGN), critical=True)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        .add_extension(
            x509.SubjectAlternativeName([x509.UniformResourceIdentifier(f"spiffe://{trust_domain}")]), critical=False
        )
        .sign(key, hashes.SHA256())
    )


def build_leaf(
    *,
    name: LeafName,
    trust_domain: str,
    public_key: CertificatePublicKeyTypes,
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    lifetime: timedelta,
) -> x509.Certificate:
    """A leaf for `name`: one SPIFFE URI; DNS names and serverAuth for services alone.

    The subject holds no common name, because some peers fall back to it when
    they look for a host name. The leaf never outlives its issuer.
    """
    alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(name.spiffe_id(trust_domain))]
    alternatives += [x509.DNSName(dns_name) for dns_name in name.dns_names(trust_domain)]
    usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if isinstance(name, ServiceName):
        usages.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
    leaf = _unsigned_leaf(_subject(None), usages, public_key, issuer=issuer, now=now, lifetime=lifetime)
    return leaf.add_extension(x509.SubjectAlternativeName(alternatives), critical=False).sign(
        issuer_key, hashes.SHA256()
    )


def build_database_leaf(
    *,
    name: DatabaseLeafName,
    trust_domain: str,
    public_key: CertificatePublicKeyTypes,
    issuer: x509.Certificate,
    issuer_key: ec.EllipticCurvePrivateKey,
    now: datetime,
    lifetime: timedelta,
) -> x509.Certificate:
    """A leaf for PostgreSQL, or for one of its roles; without a SPIFFE ID, so that no gate takes it.

    A role stands in the common name, where `clientcert=verify-full` looks for it (PostgreSQL 20.1). The
    server has its DNS name and serverAuth alone: it calls nobody.
    """
    if isinstance(name, DatabaseRole):
        usages = [ExtendedKeyUsageOID.CLIENT_AUTH]
        leaf = _unsigned_leaf(_subject(name.role), usages, public_key, issuer=issuer, now=now, lifetime=lifetime)
    else:
        usages = [ExtendedKeyUsageOID.SERVER_AUTH]
        leaf = _unsigned_leaf(_subject(None), usages, public_key, issuer=issuer, now=now, lifetime=lifetime)
        host = x509.DNSName(f"{name.host}.{trust_domain}")
        leaf = leaf.add_extension(x509.SubjectAlternativeName([host]), critical=False)
    return leaf.sign(issuer_key, hashes.SHA256())


def _unsigned_leaf(
    subject: x509.Name,
    usages: list[x509.ObjectIdentifier],
    public_key: CertificatePublicKeyTypes,
    *,
    issuer: x509.Certificate,
    now: datetime,
    lifetime: timedelta,
) -> x509.CertificateBuilder:
    """What every leaf has: who and for what, a life within its issuer's, and no power to sign others."""
    issuer_identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.subject)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(max(now - BACKDATING, issuer.not_valid_before_utc))
        .not_valid_after(min(now + lifetime, issuer.not_valid_after_utc))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(_SIGNATURE), critical=True)
        .add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_identifier), critical=False
        )
    )


def _subject(common_name: str | None) -> x509.Name:
    attributes = [x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Casemate")]
    if common_name is not None:
        # RFC 5280 appendix A: at most 64 characters.
        attributes.append(x509.NameAttribute(NameOID.COMMON_NAME, common_name[:64]))
    return x509.Name(attributes)


def _key_usage(allowed: dict[str, bool]) -> x509.KeyUsage:
    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{usage: allowed.get(usage, False) for usage in every})
