"""The process's own certificate: read from three files, watched, and swapped in memory.

A directory holds `key.pem`, `cert.pem` (the leaf, then any intermediates) and
`ca.pem` (the roots that peers are judged by). Whoever renews writes the key
first and the certificate second, each by rename.

If this fails: the process serves with an old certificate until that one
expires; peers then refuse it, and `certificate_not_after_seconds` told so before.
"""

from __future__ import annotations

import base64
import hashlib
import itertools
import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Protocol

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_private_key

from casemate.errors import ConfigurationError
from casemate.secret import Secret

_LOGGER = logging.getLogger(__name__)

KEY_FILE = "key.pem"
CERTIFICATE_FILE = "cert.pem"
ROOTS_FILE = "ca.pem"

_Stamp = tuple[tuple[int, int, int] | None, ...]
_ENDING_PART = 50
"""A pair is about to end when less than one part in so many of its life is left: half an hour of a day."""


class CertificateMetrics(Protocol):
    """What a source reports; `casemate.transport.metrics.Metrics` does."""

    def increment(self, name: str, amount: float = 1, **labels: str) -> None:
        """Adds to the counter of that name."""
        ...

    def set_value(self, name: str, value: float, **labels: str) -> None:
        """Sets the gauge of that name."""
        ...


class PairSource(Protocol):
    """Where a channel takes its certificate from: a `CertificateSource` that is renewed, or one `PinnedPair`."""

    @property
    def current(self) -> CertificatePair:
        """The pair in force."""
        ...

    def subscribe(self, callback: Callable[[CertificatePair], None]) -> Callable[[], None]:
        """Has `callback` called with each new pair; returns a function that ends that."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class CertificatePair:
    """A private key, the certificate that goes with it, and the roots it is trusted under.

    `spiffe_id` is the leaf's one URI name; `thumbprint` is the base64url SHA-256
    of its DER form, which is `x5t#S256` of RFC 8705.
    """

    private_key_pem: Secret[bytes]
    certificate_chain_pem: bytes
    roots_pem: bytes
    leaf: x509.Certificate
    spiffe_id: str
    thumbprint: str
    not_after: datetime

    def is_ending(self, now: datetime) -> bool:
        """Whether it has ended, or is about to although it should have been renewed long ago."""
        life = self.not_after - self.leaf.not_valid_before_utc
        return now >= self.not_after - life / _ENDING_PART

    @property
    def trust_domain(self) -> str:
        """The part of the SPIFFE ID between the scheme and the path."""
        return self.spiffe_id.removeprefix("spiffe://").partition("/")[0]


@dataclass(frozen=True, slots=True)
class PinnedPair:
    """A source that never renews: for a call that must be made with exactly this certificate.

    A token is bound to the certificate of the connection it was asked for on. While
    the channels of one client move to a new certificate one after the other, only a
    pinned connection gets the token that a certain channel needs.
    """

    current: CertificatePair

    def subscribe(self, _callback: Callable[[CertificatePair], None]) -> Callable[[], None]:
        """Accepts and never calls."""
        return lambda: None


def load_pair(directory: Path) -> CertificatePair:
    """Reads a leaf directory; the key fits the leaf, the leaf chains to a root and has one SPIFFE ID.

    Expiry is not judged here: whoever renews reads expired pairs too, and a peer
    refuses one in the handshake.

    Raises:
        ConfigurationError: a file is missing or unreadable, or one of the above does not hold.
    """
    key_pem, chain_pem, roots_pem = (_read(directory / name) for name in (KEY_FILE, CERTIFICATE_FILE, ROOTS_FILE))
    try:
        key = load_pem_private_key(key_pem, password=None)
        chain = x509.load_pem_x509_certificates(chain_pem)
        roots = x509.load_pem_x509_certificates(roots_pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        # Not chained: a parser's message may quote what it read, and one file is a key.
        raise ConfigurationError(f"a file in {directory} is not valid PEM") from None
    leaf = chain[0]
    form = (Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*form) != leaf.public_key().public_bytes(*form):
        raise ConfigurationError(f"{directory}: {KEY_FILE} is not the key of {CERTIFICATE_FILE}")
    _verify_chain(chain, roots, directory)
    return CertificatePair(
        private_key_pem=Secret(key_pem),
        certificate_chain_pem=chain_pem,
        roots_pem=roots_pem,
        leaf=leaf,
        spiffe_id=spiffe_id_of(leaf),
        thumbprint=thumbprint_of(leaf),
        not_after=leaf.not_valid_after_utc,
    )


def spiffe_id_of(leaf: x509.Certificate) -> str:
    """The one SPIFFE ID of a leaf (X.509-SVID §2).

    Raises:
        ConfigurationError: there is no URI name, more than one, or it is no SPIFFE ID.
    """
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
    except (x509.ExtensionNotFound, ValueError):
        uris = []
    if len(uris) != 1:
        raise ConfigurationError(f"the certificate has {len(uris)} URI names; exactly one SPIFFE ID is needed")
    domain, _, path = uris[0].removeprefix("spiffe://").partition("/")
    if not uris[0].startswith("spiffe://") or not domain or not path:
        raise ConfigurationError("the certificate's URI name is not a SPIFFE ID")
    return uris[0]


def thumbprint_of(leaf: x509.Certificate) -> str:
    """The leaf's `x5t#S256`: base64url of SHA-256 over DER, without padding (RFC 8705 §3.1)."""
    digest = hashlib.sha256(leaf.public_bytes(Encoding.DER)).digest()
    return base64.urlsafe_b64encode(digest).rstrip(b"=").decode("ascii")


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be read: {error.strerror}") from error


def _verify_chain(chain: list[x509.Certificate], roots: list[x509.Certificate], directory: Path) -> None:
    for child, parent in itertools.pairwise(chain):
        if not _issued(child, parent):
            raise ConfigurationError(f"{directory}: {CERTIFICATE_FILE} is not in order: each certificate's issuer next")
    if not any(chain[-1] == root or _issued(chain[-1], root) for root in roots):
        raise ConfigurationError(f"{directory}: {CERTIFICATE_FILE} was not issued under a root in {ROOTS_FILE}")


def _issued(child: x509.Certificate, parent: x509.Certificate) -> bool:
    try:
        child.verify_directly_issued_by(parent)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


class CertificateSource:
    """The current pair of a directory, kept current by a daemon thread.

    A new pair that does not hold is left aside: the one in memory stays, and
    once the same bad files are seen by two polls in a row the failure is logged
    and counted. A pair that is half-written at one poll and whole at the next is
    not reported.

    Args:
        directory: holds the three files.
        metrics: told `certificate_not_after_seconds` and `certificate_reload_failed_total`.
        poll: how often the files' stamps are compared.

    Raises:
        ConfigurationError: there is no good pair to start with.
    """

    def __init__(
        self,
        directory: Path,
        *,
        metrics: CertificateMetrics | None = None,
        poll: timedelta = timedelta(seconds=1),
    ) -> None:
        self._directory = directory
        self._metrics = metrics
        self._poll_seconds = poll.total_seconds()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()
        self._subscribers: dict[object, Callable[[CertificatePair], None]] = {}
        self._ending_told: dict[Callable[[bool], None], bool] = {}
        self._loaded_stamp = self._stamp()
        self._failed_stamp: _Stamp | None = None
        self._reported_stamp: _Stamp | None = None
        self._current = load_pair(directory)
        self._report_expiry()

    @property
    def current(self) -> CertificatePair:
        """The pair in force: a read of memory."""
        return self._current

    def start(self) -> None:
        """Starts watching. Twice is once."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, name="certificate-source", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Stops watching; `current` stays readable."""
        self._stop.set()
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join()

    def subscribe(self, callback: Callable[[CertificatePair], None]) -> Callable[[], None]:
        """Has `callback` called with each new pair, from the watching thread, in order of subscription.

        Returns:
            A function that ends the subscription.
        """
        key = object()
        with self._lock:
            self._subscribers[key] = callback

        def end() -> None:
            with self._lock:
                self._subscribers.pop(key, None)

        return end

    def on_ending(self, callback: Callable[[bool], None]) -> None:
        """Has `callback` called now, and whenever the pair in force begins or ceases to be about to end.

        For readiness: calls go elsewhere before peers refuse the certificate.
        """
        with self._lock:
            self._ending_told[callback] = ending = self._current.is_ending(datetime.now(UTC))
        callback(ending)

    def poll(self) -> bool:
        """Compares the files with what was loaded; true if a new pair is now in force.

        The watching thread calls this; a test or a signal may too.
        """
        try:
            return self._look()
        finally:
            self._tell_ending()

    def _look(self) -> bool:
        stamp = self._stamp()
        if stamp in {self._loaded_stamp, self._reported_stamp}:
            return False
        try:
            pair = load_pair(self._directory)
            _refuse_expired(pair, self._current)
        except ConfigurationError as error:
            self._failed(stamp, error)
            return False
        self._loaded_stamp, self._failed_stamp, self._reported_stamp = stamp, None, None
        if pair.thumbprint == self._current.thumbprint and pair.roots_pem == self._current.roots_pem:
            return False
        self._current = pair
        _LOGGER.info("certificate renewed: %s until %s", pair.spiffe_id, pair.not_after.isoformat())
        self._report_expiry()
        self._tell(pair)
        return True

    def _watch(self) -> None:
        while not self._stop.wait(self._poll_seconds):
            try:
                self.poll()
            except Exception:
                # The thread must outlive anything: without it no renewal would ever be seen.
                _LOGGER.exception("looking for a renewed certificate failed")
                self._count_failure()

    def _failed(self, stamp: _Stamp, error: ConfigurationError) -> None:
        if stamp != self._failed_stamp:
            self._failed_stamp = stamp
            return
        self._reported_stamp = stamp
        _LOGGER.error("new certificate refused, the old one stays until %s: %s", self._current.not_after, error)
        self._count_failure()

    def _count_failure(self) -> None:
        if self._metrics is not None:
            self._metrics.increment("certificate_reload_failed_total")

    def _report_expiry(self) -> None:
        if self._metrics is not None:
            self._metrics.set_value("certificate_not_after_seconds", self._current.not_after.timestamp())

    def _tell_ending(self) -> None:
        ending = self._current.is_ending(datetime.now(UTC))
        with self._lock:
            untold = [callback for callback, told in self._ending_told.items() if told is not ending]
            self._ending_told.update(dict.fromkeys(untold, ending))
        if untold and ending:
            _LOGGER.error("the certificate ends at %s and was not renewed; not ready", self._current.not_after)
        for callback in untold:
            callback(ending)

    def _tell(self, pair: CertificatePair) -> None:
        with self._lock:
            subscribers = tuple(self._subscribers.values())
        for callback in subscribers:
            try:
                callback(pair)
            except Exception:
                # One subscriber's fault must not keep the others on the old certificate.
                _LOGGER.exception("a subscriber failed to take the renewed certificate")

    def _stamp(self) -> _Stamp:
        return tuple(_file_stamp(self._directory / name) for name in (KEY_FILE, CERTIFICATE_FILE, ROOTS_FILE))


def _file_stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size


def _refuse_expired(new: CertificatePair, current: CertificatePair) -> None:
    # An expired pair may replace one that expired before it, never one that is still good.
    if new.not_after < current.not_after and new.not_after <= datetime.now(UTC):
        raise ConfigurationError("the new certificate has expired")
