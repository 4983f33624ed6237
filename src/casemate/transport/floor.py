"""TLS 1.3 as the lowest version, proven by a handshake and not by a setting.

grpcio has no switch for the TLS version (grpc/grpc#37305). A cipher list that
holds one suite which needs a pre-shared key that nobody has leaves TLS 1.2
nothing to negotiate; the suites of TLS 1.3 are not governed by that list.

If this fails: TLS 1.2 is accepted. The gate still refuses each call whose
`ssl_tls_version` is not 1.3, and the client certificate is still required.
"""

from __future__ import annotations

import socket
import ssl
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING

from casemate.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Container, MutableMapping

    import grpc

CIPHER_SUITES_VARIABLE = "GRPC_SSL_CIPHER_SUITES"
"""What grpc reads, once, when it is loaded."""

CIPHER_SUITES = "ECDHE-PSK-CHACHA20-POLY1305"
"""Applies to TLS 1.2 and below only; a list of TLS 1.3 names would stop the server from starting."""

_VERBOSITY_VARIABLE = "GRPC_VERBOSITY"
_PROBE_SECONDS = 5.0
_HANDSHAKE_RECORD = b"\x16"


def raise_floor(environment: MutableMapping[str, str], *, loaded: Container[str] | None = None) -> None:
    """Leaves TLS 1.2 nothing to negotiate in this process's gRPC servers.

    Also keeps grpc from writing a line in its own format for each handshake that
    it refuses, unless the environment asks for those.

    Args:
        environment: the process's own environment; the variable is set in it.
        loaded: names of loaded modules; those of this interpreter if not given.

    Raises:
        ConfigurationError: grpc is loaded already and had no such list to read.
    """
    environment.setdefault(_VERBOSITY_VARIABLE, "ERROR")
    if environment.get(CIPHER_SUITES_VARIABLE) == CIPHER_SUITES:
        return
    if "grpc" in (sys.modules if loaded is None else loaded):
        raise ConfigurationError(
            f"grpc was imported before the TLS floor was raised: export {CIPHER_SUITES_VARIABLE}={CIPHER_SUITES}"
        )
    environment[CIPHER_SUITES_VARIABLE] = CIPHER_SUITES


def probe_floor(credentials: grpc.ServerCredentials) -> None:
    """Proves on a throw-away loopback port that these credentials answer TLS 1.3 and not TLS 1.2.

    Blocks for milliseconds.

    Raises:
        ConfigurationError: TLS 1.2 was answered, or TLS 1.3 was not.
    """
    import grpc  # noqa: PLC0415  # raise_floor must be importable before grpc is loaded

    with ThreadPoolExecutor(max_workers=1) as threads:
        server = grpc.server(threads, options=(("grpc.so_reuseport", 0),))
        try:
            port = server.add_secure_port("127.0.0.1:0", credentials)
            server.start()
            _judge(port, what="this process's gRPC", cure=f"export {CIPHER_SUITES_VARIABLE}={CIPHER_SUITES}")
        finally:
            server.stop(None).wait()


def probe_context_floor(context: ssl.SSLContext) -> None:
    """Proves the same of a context of Python's own TLS. Blocks for milliseconds.

    Raises:
        ConfigurationError: TLS 1.2 was answered, or TLS 1.3 was not.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(max_workers=1) as threads:
        listener.settimeout(_PROBE_SECONDS)

        def answer() -> None:
            for _ in range(2):
                with suppress(OSError):
                    connection, _ = listener.accept()
                    connection.settimeout(_PROBE_SECONDS)
                    context.wrap_socket(connection, server_side=True).close()

        threads.submit(answer)
        _judge(listener.getsockname()[1], what="the HTTPS face", cure="its context must begin at TLS 1.3")


def _judge(port: int, *, what: str, cure: str) -> None:
    # TLS 1.3 first: without it, a port that answers nobody would pass for one that refuses TLS 1.2.
    if not _answers(port, ssl.TLSVersion.TLSv1_3):
        raise ConfigurationError("the TLS probe was not answered on TLS 1.3: check the certificate files")
    if _answers(port, ssl.TLSVersion.TLSv1_2):
        raise ConfigurationError(f"{what} would accept TLSv1.2: {cure}")


def _answers(port: int, version: ssl.TLSVersion) -> bool:
    """Whether the server answers a ClientHello of exactly that version with a ServerHello.

    The handshake is not carried further. In TLS 1.2 it would fail anyway for want
    of a client certificate, and so prove nothing about the version.
    """
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=_PROBE_SECONDS) as connection:
            connection.sendall(_client_hello(version))
            answer = connection.recv(1)
    except TimeoutError as error:
        raise ConfigurationError("the TLS probe was not answered in time") from error
    except ConnectionError:
        return False
    # RFC 8446 §5.1: the first byte is the record's type; a refusal is an alert or a closed connection.
    return answer == _HANDSHAKE_RECORD


def _client_hello(version: ssl.TLSVersion) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # only the hello is made; without a name in it the server shows its one certificate
    context.minimum_version = context.maximum_version = version
    context.set_alpn_protocols(["h2"])
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    hello = context.wrap_bio(incoming, outgoing)
    with suppress(ssl.SSLWantReadError):
        hello.do_handshake()
    return outgoing.read()
