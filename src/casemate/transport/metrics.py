"""What a process counts, and the port that shows it: HTTPS, TLS 1.3, client certificate required.

If this fails: counts of calls and refusals are seen by a peer of the trust
domain, or are missing from the dashboards. No row, token or key is among them.
"""

from __future__ import annotations

import itertools
import ssl
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from socketserver import ThreadingMixIn
from typing import Any, Final, cast

from cryptography import x509
from prometheus_client import CollectorRegistry, Counter, Gauge, ProcessCollector
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from casemate.errors import ConfigurationError
from casemate.transport.certificates import CertificateSource, spiffe_id_of
from casemate.transport.exposition import write_page
from casemate.transport.https import server_context

_PREFIX = "casemate_"

COUNTERS: Final = {
    "calls_total": ("Calls answered, by method and status code.", ("method", "code")),
    "denied_total": ("Calls refused by the gate, by reason.", ("reason",)),
    "certificate_reload_failed_total": ("New certificates that were refused; the old one stayed.", ()),
    "kek_reload_failed_total": ("New files of a key-encryption key that were refused; the old one stayed.", ()),
    "integrity_failures_total": ("Stored or sent bytes that failed their integrity check.", ()),
    "token_cache_total": ("Tokens looked up in the cache, by outcome.", ("outcome",)),
    "authority_alarms_total": ("Rows of authority whose MAC does not verify.", ()),
}
GAUGES: Final = {
    "certificate_not_after_seconds": ("When the certificate in force expires, in seconds since 1970.", ()),
    "trust_staleness_seconds": ("Seconds since the primary was last read for the trust feed.", ()),
}


class Metrics:
    """The metrics of one process, in a registry of its own. Safe from any thread.

    All names above exist from the start; those without labels show as zero.

    Args:
        component: the service's name, given as `casemate_component_info{component}`.
    """

    def __init__(self, component: str) -> None:
        self.registry = CollectorRegistry()
        self._made: dict[str, Any] = {}
        self._tallies = _Tallies()
        # First, so that what was tallied is in the counters before they are read.
        self.registry.register(self._tallies)
        ProcessCollector(registry=self.registry)
        for name, (text, labels) in COUNTERS.items():
            self.counter(name, text, labels)
        for name, (text, labels) in GAUGES.items():
            self.gauge(name, text, labels)
        self.gauge("component_info", "Which service this is.", ("component",))
        self.set_value("component_info", 1, component=component)

    def counter(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        """Makes a counter; its name ends in `_total`. A name is made once."""
        self._made[name] = Counter(_PREFIX + name, text, labels, registry=self.registry)

    def gauge(self, name: str, text: str, labels: Sequence[str] = ()) -> None:
        """Makes a gauge."""
        self._made[name] = Gauge(_PREFIX + name, text, labels, registry=self.registry)

    def increment(self, name: str, amount: float = 1, **labels: str) -> None:
        """Adds to a counter. Raises KeyError for a name that was not made."""
        self._of(name, labels).inc(amount)

    def counting(self, name: str, **labels: str) -> Callable[[], None]:
        """What adds one to a counter under these labels, found once. Raises KeyError for a name that was not made.

        It runs no Python and takes no lock; the counter itself knows of it when it is read.
        """
        return self._tallies.make(self._of(name, labels))

    def set_value(self, name: str, value: float, **labels: str) -> None:
        """Sets a gauge. Raises KeyError for a name that was not made."""
        self._of(name, labels).set(value)

    def value(self, name: str, **labels: str) -> float:
        """The value of a counter or gauge now; 0 if nothing was counted under these labels."""
        return self.registry.get_sample_value(_PREFIX + name, labels) or 0.0

    def exposition(self) -> bytes:
        """Everything, in the text format of Prometheus."""
        return write_page(self.registry.collect())

    def _of(self, name: str, labels: dict[str, str]) -> Any:  # noqa: ANN401  # a child of any of the three kinds
        made = self._made[name]
        return made.labels(**labels) if labels else made


class _Tallies(Collector):
    """Counts on the way of every call, added to their counters when somebody reads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._all: list[_Tally] = []

    def make(self, counter: Counter) -> Callable[[], None]:
        """What adds one."""
        tally = _Tally(counter)
        with self._lock:
            self._all.append(tally)
        return tally.add

    def collect(self) -> Iterable[Metric]:
        """Nothing of its own."""
        with self._lock:
            for tally in self._all:
                tally.settle()
        return ()

    def describe(self) -> Iterable[Metric]:
        """No names."""
        return ()


class _Tally:
    """One count. `next` of a counter of the standard library cannot be interrupted, so it needs no lock."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._count = itertools.count()
        self._told = 0
        self._looks = 0
        # What it returns means nothing.
        self.add: Callable[[], None] = cast("Callable[[], None]", partial(next, self._count))

    def settle(self) -> None:
        """Tells the counter what was added since; one thread at a time."""
        reached = next(self._count) - self._looks
        self._looks += 1
        self._counter.inc(reached - self._told)
        self._told = reached


class MetricsServer:
    """Serves `GET /metrics` from threads of its own.

    Each handshake is made in the connection's thread, with a context made afresh
    from the certificate in force and without session tickets, so a renewal needs
    no restart and nothing outlives a certificate.

    Args:
        metrics: what is shown.
        source: the server's certificate, and the roots its clients are judged by.
        address: `host:port`; port 0 picks a free one.
        readers: beginnings of the SPIFFE path that may read, in the source's trust domain:
            our services and the house tenant. Others get 403.

    Raises:
        ConfigurationError: the address cannot be bound.
    """

    def __init__(
        self,
        metrics: Metrics,
        source: CertificateSource,
        address: str,
        *,
        readers: tuple[str, ...] = ("/svc/", "/t/casemate/"),
    ) -> None:
        host, _, port = address.rpartition(":")
        try:
            self._server = _Server((host.strip("[]"), int(port)), metrics, source, readers)
        except (OSError, ValueError, OverflowError):
            raise ConfigurationError(
                f"{address} cannot be bound for metrics: the port is in use or the address is not ours"
            ) from None
        self.port = int(self._server.server_address[1])
        # How long `stop` may wait: the standard half a second is most of a service's whole shutdown.
        polling = {"poll_interval": 0.05}
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs=polling, name="metrics", daemon=True)

    def start(self) -> None:
        """Begins to serve."""
        self._thread.start()

    def stop(self) -> None:
        """Ends serving and frees the port."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()


class _Server(ThreadingMixIn, HTTPServer):
    daemon_threads = True
    block_on_close = False  # a peer that dawdles must not hold up the end
    request_queue_size = 16
    _connection_seconds = 5.0

    def __init__(
        self, address: tuple[str, int], metrics: Metrics, source: CertificateSource, readers: tuple[str, ...]
    ) -> None:
        self.metrics = metrics
        self._source = source
        self._readers = readers
        self._places = threading.BoundedSemaphore(8)
        super().__init__(address, _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:  # noqa: ANN401  # as inherited
        """One thread per connection, up to a bound; beyond it the connection is closed."""
        if self._places.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
        """Makes the handshake here, where a slow peer holds only its own place."""
        try:
            request.settimeout(self._connection_seconds)
            with (
                suppress(OSError),
                server_context(self._source.current).wrap_socket(request, server_side=True) as secured,
            ):
                self.finish_request(secured, client_address)
        finally:
            self._places.release()
            self.shutdown_request(request)

    def may_read(self, connection: ssl.SSLSocket) -> bool:
        """Whether the peer's certificate, already verified, names a reader."""
        encoded = connection.getpeercert(binary_form=True)
        if encoded is None:
            return False
        try:
            name = spiffe_id_of(x509.load_der_x509_certificate(encoded))
        except (ConfigurationError, ValueError):
            return False
        domain = f"spiffe://{self._source.current.trust_domain}"
        return any(name.startswith(domain + path) for path in self._readers)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 5

    def do_GET(self) -> None:  # http.server's name
        if not self.server.may_read(self.connection):
            self._answer(403, b"")
        elif self.path.partition("?")[0] != "/metrics":
            self._answer(404, b"")
        else:
            self._answer(200, self.server.metrics.exposition())

    def _answer(self, code: int, body: bytes) -> None:
        self.send_response_only(code)
        self.send_header("Content-Type", CONTENT_TYPE_LATEST)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_arguments: object) -> None:
        """Nothing: a scrape every few seconds is no news."""
