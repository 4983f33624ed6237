"""Connections to PostgreSQL, by verified TLS 1.3 or a Unix socket, and what their errors become.

asyncpg's own default is `prefer`: no certificate is verified and a server that
refuses TLS is spoken to in clear. So every argument that could be taken from the
environment or from files in a home directory is given here explicitly.

If this fails: somebody between service and database reads and changes what they
say. Rows stay sealed and records of authority carry a MAC, so what is lost is
the login, metadata and availability.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final, TypeAlias, TypedDict

import asyncpg
from asyncpg.connect_utils import SessionAttribute

from casemate.errors import (
    CasemateError,
    ConfigurationError,
    Conflict,
    InternalError,
    StoredDataUnreadable,
    Unavailable,
)
from casemate.secret import Secret
from casemate.settings import DatabaseSettings
from casemate.settings.secret_file import FileSecret

if TYPE_CHECKING:
    from asyncpg.pool import PoolConnectionProxy

    Pool: TypeAlias = asyncpg.Pool[asyncpg.Record]
    Connection: TypeAlias = asyncpg.Connection[asyncpg.Record] | PoolConnectionProxy[asyncpg.Record]

CONNECT_TIMEOUT_SECONDS: Final = 10.0
COMMAND_TIMEOUT_SECONDS: Final = 30.0

_SESSION: Final = {
    "application_name": "casemate",
    # Longer than the client's own timeout: the client gives up first and cancels.
    "statement_timeout": "60s",
    "lock_timeout": "20s",
    # A transaction whose owner died must not hold its locks.
    "idle_in_transaction_session_timeout": "60s",
    # A failed statement's parameters stay out of the server's log.
    "log_parameter_max_length_on_error": "0",
}


class ConnectArguments(TypedDict):
    """Arguments of asyncpg that settle where and how to connect."""

    host: str
    port: int
    database: str
    user: str
    password: str
    ssl: ssl.SSLContext | bool
    direct_tls: bool
    target_session_attrs: SessionAttribute
    timeout: float
    command_timeout: float
    server_settings: dict[str, str]


async def open_pool(settings: DatabaseSettings, *, min_size: int = 1, max_size: int = 8) -> Pool:
    """A pool of connections to the one database of `settings`; the caller closes it.

    Every command has a time limit, and so has waiting for the server to accept a connection.
    Each new connection shows the certificate and the password that the files hold by then.

    Raises:
        ConfigurationError: a certificate file is unusable, the server's certificate or TLS
            version is refused, or the server refuses the login or the database.
        Unavailable: the server is not there.
    """
    arguments = connect_arguments(settings)
    with storage_errors(), _refusals_at_start(settings):
        return await asyncpg.create_pool(
            **arguments, min_size=min_size, max_size=max_size, connect=_RenewedConnect(settings, arguments)
        )


async def open_connection(settings: DatabaseSettings) -> asyncpg.Connection[asyncpg.Record]:
    """One connection, for work that is done once; otherwise as `open_pool`."""
    arguments = connect_arguments(settings)
    with storage_errors(), _refusals_at_start(settings):
        return await _RenewedConnect(settings, arguments)(**arguments)


class _RenewedConnect:
    """Connects with the certificate and the password of this moment: a pool outlives those that it began with.

    A password changes in two places, one after the other: in its file, then in the database.
    In between, the one that worked last is tried behind the one in the file.
    """

    def __init__(self, settings: DatabaseSettings, arguments: ConnectArguments) -> None:
        self._settings = settings
        self._context = arguments["ssl"]
        self._worked: Secret[str] = settings.password

    async def __call__(self, *arguments: Any, **keywords: Any) -> asyncpg.Connection[asyncpg.Record]:  # noqa: ANN401  # what asyncpg passes on
        if not self._settings.is_local:
            # Between the new key and the new certificate the files do not fit: the pair before still holds.
            with suppress(ConfigurationError):
                self._context = build_tls_context(self._settings)
            keywords["ssl"] = self._context
        present = self._settings.password
        if isinstance(present, FileSecret):
            present = present.again()
        try:
            connection = await _connect(arguments, keywords, present)
        except asyncpg.InvalidPasswordError:
            if present == self._worked:
                raise
            return await _connect(arguments, keywords, self._worked)
        self._worked = present
        return connection


async def _connect(
    arguments: tuple[Any, ...], keywords: dict[str, Any], password: Secret[str]
) -> asyncpg.Connection[asyncpg.Record]:
    connection: asyncpg.Connection[asyncpg.Record] = await asyncpg.connect(
        *arguments, **{**keywords, "password": password.reveal()}
    )
    return connection


def connect_arguments(settings: DatabaseSettings) -> ConnectArguments:
    """What asyncpg is told, with nothing left for it to look up.

    Raises:
        ConfigurationError: a certificate file is missing or unusable.
    """
    return ConnectArguments(
        host=settings.host,
        port=settings.port,
        database=settings.name,
        user=settings.user,
        # Never None: asyncpg would look for PGPASSWORD and ~/.pgpass.
        password=settings.password.reveal(),
        ssl=False if settings.is_local else build_tls_context(settings),
        direct_tls=False,
        # Never a standby: it would answer with yesterday's revocations.
        target_session_attrs=SessionAttribute.read_write,
        timeout=CONNECT_TIMEOUT_SECONDS,
        command_timeout=COMMAND_TIMEOUT_SECONDS,
        server_settings=dict(_SESSION),
    )


def build_tls_context(settings: DatabaseSettings) -> ssl.SSLContext:
    """TLS 1.3 alone, the server's chain and name verified, our certificate shown (`verify-full`).

    Built by hand: `ssl.create_default_context` would honour SSLKEYLOGFILE and trust the system's roots.

    Raises:
        ConfigurationError: a file is missing or unusable.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.check_hostname = True
    context.verify_mode = ssl.CERT_REQUIRED
    if settings.ca_file is None or settings.cert_file is None or settings.key_file is None:
        raise ConfigurationError("a database over TCP needs a CA file, a certificate file and a key file")
    try:
        context.load_verify_locations(cafile=settings.ca_file)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"the database's CA file {settings.ca_file} cannot be used") from error
    try:
        # The password callback keeps OpenSSL from asking on the terminal.
        context.load_cert_chain(settings.cert_file, settings.key_file, password=lambda: b"")
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"the database's client certificate {settings.cert_file} cannot be used") from error
    return context


@contextmanager
def storage_errors() -> Iterator[None]:
    """Turns what asyncpg raises inside the block into our errors.

    `Unavailable`: the server is not there, is full, shuts down, takes too long, or does not let
    us in any more. `Conflict`: a unique or exclusion constraint, a serialization failure, a
    deadlock, a lock not granted in time. `StoredDataUnreadable`: a timestamp outside the years
    1 to 9999. `InternalError`: anything else, a fault in our SQL.
    Ours pass unchanged.

    The new error carries SQLSTATE, constraint and table alone, and the old one is cut off:
    PostgreSQL's message and detail repeat values of the row, which then would be logged.
    """
    try:
        yield
    except asyncpg.PostgresError as error:
        raise _translate(error) from None
    except (asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        # Mostly "connection is closed" or "pool is closing".
        raise Unavailable(f"the connection to the database cannot be used: {type(error).__name__}") from None
    except TimeoutError:
        raise Unavailable("the database did not answer in time") from None
    except OverflowError:
        # The driver's: a timestamp that PostgreSQL can hold and Python cannot. Nothing of ours writes one.
        raise StoredDataUnreadable("the database holds a moment that is no date") from None
    except OSError as error:
        raise Unavailable(f"the database cannot be reached: {error.strerror or type(error).__name__}") from None


_CONFLICTS: Final = (
    asyncpg.TransactionRollbackError,  # class 40: serialization failure, deadlock
    asyncpg.UniqueViolationError,
    asyncpg.ExclusionViolationError,
    asyncpg.LockNotAvailableError,
)
_ABSENCES: Final = (
    asyncpg.PostgresConnectionError,  # class 08
    asyncpg.InsufficientResourcesError,  # class 53: too many connections, disk full
    asyncpg.OperatorInterventionError,  # class 57: shutting down, statement cancelled
    asyncpg.InvalidAuthorizationSpecificationError,  # class 28: the password changed under us
    asyncpg.ReadOnlySQLTransactionError,  # a failover left us on a standby
    asyncpg.IdleInTransactionSessionTimeoutError,
)


def _translate(error: asyncpg.PostgresError) -> CasemateError:
    names = (error.sqlstate, error.table_name, error.constraint_name)
    detail = "the database says " + ", ".join(name for name in names if name)
    if isinstance(error, _CONFLICTS):
        return Conflict(detail)
    if isinstance(error, _ABSENCES):
        return Unavailable(detail)
    return InternalError(detail)


@contextmanager
def _refusals_at_start(settings: DatabaseSettings) -> Iterator[None]:
    """Tells a server that says no, which waiting does not cure, from one that is not there."""
    where = f"database {settings.name!r} at {settings.host}:{settings.port}"
    try:
        yield
    except asyncpg.InvalidAuthorizationSpecificationError:
        raise ConfigurationError(f"{where}: the login of role {settings.user!r} is refused") from None
    except (asyncpg.InvalidCatalogNameError, asyncpg.InsufficientPrivilegeError):
        raise ConfigurationError(f"{where}: there is no such database for role {settings.user!r}") from None
    except asyncpg.ConnectionDoesNotExistError:
        # In TLS 1.3 a server judges our certificate after the handshake is done for us.
        raise Unavailable(f"{where}: the server hung up before the login; it may not accept our certificate") from None
    except ssl.SSLError as error:
        raise ConfigurationError(f"{where}: TLS 1.3 with a verified name failed: {error.reason}") from error
    except ConnectionError as error:
        if "rejected SSL upgrade" not in str(error):
            raise
        raise ConfigurationError(f"{where}: the server does not speak TLS, and we speak nothing else") from None
