"""A pool reaches only the server it was told of, and its errors say nothing about rows."""

from __future__ import annotations

import asyncio
import dataclasses
import ssl
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path

import asyncpg
import pytest

from casemate.errors import (
    ConfigurationError,
    Conflict,
    InternalError,
    NotFound,
    StoredDataUnreadable,
    Unavailable,
)
from casemate.secret import Secret
from casemate.settings import DatabaseSettings
from casemate.storage.embedded import EmbeddedPostgres
from casemate.storage.pool import build_tls_context, open_connection, open_pool, storage_errors
from tests.storage.tls_front import Authority, server_context, tls_front


def over_tls(database: DatabaseSettings, authority: Authority, port: int, host: str = "localhost") -> DatabaseSettings:
    cert_file, key_file = authority.issue("client")
    return DatabaseSettings(
        host=host,
        port=port,
        name=database.name,
        user=database.user,
        password=database.password,
        ca_file=authority.ca_file,
        cert_file=cert_file,
        key_file=key_file,
    )


def socket_of(database: DatabaseSettings) -> Path:
    return Path(database.host) / ".s.PGSQL.5432"


async def ask(settings: DatabaseSettings) -> str:
    async with await open_pool(settings) as pool:
        role: str = await pool.fetchval("SELECT current_user")
        return role


# --- whom it talks to -----------------------------------------------------------------------


async def test_database_is_reached_by_tls_with_its_name_verified(database: DatabaseSettings, tmp_path: Path):
    authority = Authority.create(tmp_path / "ca")
    async with tls_front(socket_of(database), server_context(authority)) as port:
        assert await ask(over_tls(database, authority, port)) == database.user


async def test_server_of_another_authority_is_refused(database: DatabaseSettings, tmp_path: Path):
    ours, theirs = Authority.create(tmp_path / "ours"), Authority.create(tmp_path / "theirs")
    async with tls_front(socket_of(database), server_context(theirs)) as port:
        with pytest.raises(ConfigurationError, match=r"TLS 1\.3 with a verified name failed"):
            await ask(over_tls(database, ours, port))


async def test_server_of_another_name_is_refused(database: DatabaseSettings, tmp_path: Path):
    authority = Authority.create(tmp_path / "ca")
    async with tls_front(socket_of(database), server_context(authority, dns_name="other.example.org")) as port:
        with pytest.raises(ConfigurationError, match=r"TLS 1\.3 with a verified name failed"):
            await ask(over_tls(database, authority, port))


async def test_server_that_knows_only_tls_1_2_is_refused(database: DatabaseSettings, tmp_path: Path):
    authority = Authority.create(tmp_path / "ca")
    old = server_context(authority)
    async with tls_front(socket_of(database), old) as port:
        settings = over_tls(database, authority, port)
        assert await ask(settings) == database.user
        old.maximum_version = ssl.TLSVersion.TLSv1_2
        # PostgreSQL answers with an alert, asyncio may only cut the line.
        with pytest.raises((ConfigurationError, Unavailable)):
            await ask(settings)


async def test_server_without_tls_gets_no_login(database: DatabaseSettings, tmp_path: Path):
    authority = Authority.create(tmp_path / "ca")
    async with tls_front(socket_of(database), None) as port:
        with pytest.raises(ConfigurationError, match="does not speak TLS"):
            await ask(over_tls(database, authority, port))


async def test_our_certificate_is_shown_and_one_of_another_authority_does_not_pass(
    database: DatabaseSettings, tmp_path: Path
):
    authority, stranger = Authority.create(tmp_path / "ca"), Authority.create(tmp_path / "stranger")
    cert_file, key_file = stranger.issue("client")
    async with tls_front(socket_of(database), server_context(authority)) as port:
        settings = over_tls(database, authority, port)
        with pytest.raises((ConfigurationError, Unavailable)):
            await ask(dataclasses.replace(settings, cert_file=cert_file, key_file=key_file))


async def test_environment_of_libpq_changes_nothing(
    database: DatabaseSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    keys = tmp_path / "keys.log"
    for name, value in {
        "PGSSLMODE": "disable",
        "PGSSLNEGOTIATION": "direct",
        "PGPASSWORD": "canary",
        "PGHOST": "/nowhere",
        "PGPORT": "1",
        "PGUSER": "nobody",
        "PGDATABASE": "nowhere",
        "PGSERVICE": "nowhere",
        "PGTARGETSESSIONATTRS": "standby",
        "SSLKEYLOGFILE": str(keys),
    }.items():
        monkeypatch.setenv(name, value)
    authority = Authority.create(tmp_path / "ca")
    async with tls_front(socket_of(database), server_context(authority)) as port:
        assert await ask(over_tls(database, authority, port)) == database.user
    assert await ask(database) == database.user
    assert not keys.exists()


def test_context_takes_tls_1_3_alone_and_verifies_name_and_chain(tmp_path: Path):
    authority = Authority.create(tmp_path / "ca")
    local = DatabaseSettings(host="/", name="a", user="a", password=Secret("a"))
    context = build_tls_context(over_tls(local, authority, 5432))
    assert context.minimum_version == ssl.TLSVersion.TLSv1_3
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname
    assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize(("field", "says"), [("ca_file", "CA file"), ("cert_file", "client certificate")])
def test_certificate_file_that_cannot_be_used_is_named(tmp_path: Path, field: str, says: str):
    authority = Authority.create(tmp_path / "ca")
    good = over_tls(DatabaseSettings(host="/", name="a", user="a", password=Secret("a")), authority, 5432)
    garbage = tmp_path / "garbage.pem"
    garbage.write_text("not a certificate")
    for path in (garbage, tmp_path / "absent.pem"):
        with pytest.raises(ConfigurationError, match=says):
            build_tls_context(dataclasses.replace(good, **{field: path}))


async def test_server_that_is_not_there_is_unavailable_not_misconfigured(database: DatabaseSettings, tmp_path: Path):
    absent = DatabaseSettings(host=str(tmp_path), name=database.name, user=database.user, password=database.password)
    with pytest.raises(Unavailable, match="cannot be reached"):
        await ask(absent)


# --- what its errors become -----------------------------------------------------------------


@pytest.fixture
async def pool(database: DatabaseSettings):
    async with await open_pool(database) as pool:
        await pool.execute("CREATE TABLE held (value text PRIMARY KEY)")
        await pool.execute("INSERT INTO held VALUES ('canary')")
        yield pool


async def unique(pool: asyncpg.Pool) -> None:
    await pool.execute("INSERT INTO held VALUES ($1)", "canary")


async def serialization(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as one, one.transaction(isolation="serializable"):
        await one.execute("SELECT * FROM held")
        await pool.execute("UPDATE held SET value = 'moved' WHERE value = 'canary'")
        await one.execute("UPDATE held SET value = 'late' WHERE value = 'canary'")


async def lock_timeout(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as one, one.transaction():
        await one.execute("LOCK TABLE held")
        async with pool.acquire() as two, two.transaction():
            await two.execute("SET LOCAL lock_timeout = '10ms'")
            await two.execute("SELECT * FROM held")


async def terminated(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection:
        await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")


async def too_slow(pool: asyncpg.Pool) -> None:
    await pool.execute("SELECT pg_sleep(60)", timeout=0.05)


async def cancelled_by_server(pool: asyncpg.Pool) -> None:
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute("SET LOCAL statement_timeout = '10ms'")
        await connection.execute("SELECT pg_sleep(60)")


async def closed_pool(pool: asyncpg.Pool) -> None:
    await pool.close()
    await pool.execute("SELECT 1")


async def no_date(pool: asyncpg.Pool) -> None:
    await pool.fetchval("SELECT '20000-01-01'::timestamptz, 'canary'")


async def wrong_sql(pool: asyncpg.Pool) -> None:
    await pool.execute("SELECT 'canary'::integer")


async def wrong_argument(pool: asyncpg.Pool) -> None:
    await pool.execute("SELECT $1::integer", "canary")


@pytest.mark.parametrize(
    ("work", "becomes"),
    [
        (unique, Conflict),
        (serialization, Conflict),
        (lock_timeout, Conflict),
        (terminated, Unavailable),
        (too_slow, Unavailable),
        (cancelled_by_server, Unavailable),
        (closed_pool, Unavailable),
        (no_date, StoredDataUnreadable),
        (wrong_sql, InternalError),
        (wrong_argument, InternalError),
    ],
)
async def test_error_becomes_one_of_ours_and_its_traceback_holds_no_value(
    pool: asyncpg.Pool, work: Callable[[asyncpg.Pool], Awaitable[None]], becomes: type[Exception]
):
    with pytest.raises(becomes) as caught, storage_errors():
        await work(pool)
    assert type(caught.value) is becomes
    logged = [line for line in traceback.format_exception(caught.value) if not line.startswith("  File")]
    assert not any("canary" in line for line in logged)


async def test_the_last_moment_that_is_a_date_is_read(pool: asyncpg.Pool):
    with storage_errors():
        assert (await pool.fetchval("SELECT '9999-12-31 23:59Z'::timestamptz")).year == 9999


async def test_conflict_names_the_constraint(pool: asyncpg.Pool):
    with pytest.raises(Conflict, match="23505, held, held_pkey"), storage_errors():
        await unique(pool)


async def test_what_is_not_the_databases_passes_unchanged():
    for error in (NotFound("no such row"), ValueError("ours"), asyncio.CancelledError()):
        with pytest.raises(type(error)) as caught, storage_errors():
            raise error
        assert caught.value is error


async def test_password_that_changed_under_a_pool_makes_it_unavailable(embedded_postgres: EmbeddedPostgres):
    settings = await embedded_postgres.ensure_database("changing", Secret("old"))
    async with await open_pool(settings, min_size=1, max_size=2) as pool, pool.acquire():
        await embedded_postgres.ensure_database("changing", Secret("new"))
        with pytest.raises(Unavailable), storage_errors():
            await pool.fetchval("SELECT 1")


async def test_every_session_has_time_limits(database: DatabaseSettings):
    connection = await open_connection(database)
    shown = [await connection.fetchval(f"SHOW {name}") for name in ("statement_timeout", "lock_timeout")]
    assert shown == ["1min", "20s"]
    assert await connection.fetchval("SHOW idle_in_transaction_session_timeout") == "1min"
    await connection.close()


async def test_pool_shows_the_certificate_that_its_files_hold_by_then(database: DatabaseSettings, tmp_path: Path):
    authority, stranger = Authority.create(tmp_path / "ca"), Authority.create(tmp_path / "stranger")
    async with tls_front(socket_of(database), server_context(authority)) as port:
        settings = over_tls(database, authority, port)
        assert settings.cert_file is not None
        assert settings.key_file is not None
        good = settings.cert_file.read_bytes(), settings.key_file.read_bytes()
        cert_file, key_file = stranger.issue("client")
        async with await open_pool(settings, min_size=0) as pool:
            assert await _newly_connected(pool)
            # Only the key is there yet: the pair before goes on.
            settings.key_file.write_bytes(key_file.read_bytes())
            assert await _newly_connected(pool)
            settings.cert_file.write_bytes(cert_file.read_bytes())
            with pytest.raises(Unavailable), storage_errors():
                await _newly_connected(pool)
            settings.cert_file.write_bytes(good[0])
            settings.key_file.write_bytes(good[1])
            assert await _newly_connected(pool)


async def _newly_connected(pool: asyncpg.Pool) -> bool:
    await pool.expire_connections()
    return bool(await pool.fetchval("SELECT true"))
