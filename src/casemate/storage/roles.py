"""Databases of the embedded server, one per service, each with a role that sees nothing else."""

from __future__ import annotations

import base64
import hashlib
import hmac
import os
import re
from typing import TYPE_CHECKING, Final

from casemate.errors import ConfigurationError
from casemate.secret import Secret

if TYPE_CHECKING:
    from casemate.storage.pool import Connection

_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}", re.ASCII)
_RESERVED: Final = frozenset({"postgres", "template0", "template1", "public"})
_SCRAM_ITERATIONS: Final = 4096  # PostgreSQL's own default; the passwords here are random, not remembered
_LOCK_KEY: Final = int.from_bytes(hashlib.sha256(b"casemate.roles").digest()[:8], signed=True)


def scram_verifier(password: Secret[str]) -> Secret[str]:
    """What PostgreSQL stores for a password, so that the password itself is in no statement.

    Source: RFC 5803 §2 and RFC 7677; the text form is that of `pg_authid.rolpassword`.

    Raises:
        ConfigurationError: not printable ASCII, for which SASLprep (RFC 4013) changes nothing.
    """
    text = password.reveal()
    if not text or not text.isascii() or not text.isprintable():
        raise ConfigurationError("a database password must be printable ASCII")
    salt = os.urandom(16)
    salted = hashlib.pbkdf2_hmac("sha256", text.encode(), salt, _SCRAM_ITERATIONS)
    stored = hashlib.sha256(hmac.digest(salted, b"Client Key", "sha256")).digest()
    server = hmac.digest(salted, b"Server Key", "sha256")
    encoded = [base64.b64encode(part).decode() for part in (salt, stored, server)]
    return Secret(f"SCRAM-SHA-256${_SCRAM_ITERATIONS}:{encoded[0]}${encoded[1]}:{encoded[2]}")


def check_name(name: str) -> str:
    """The name itself, fit to stand in double quotes.

    Raises:
        ConfigurationError: it is not of that form, or PostgreSQL's own.
    """
    if not _NAME.fullmatch(name) or name in _RESERVED or name.startswith("pg_"):
        raise ConfigurationError(
            "a database's name is lower-case letters, digits and underscores, and not PostgreSQL's own"
        )
    return name


async def close_to_public(superuser: Connection) -> None:
    """Takes from every role what PostgreSQL gives to all: connecting to the databases it comes with."""
    for database in ("postgres", "template1"):
        await superuser.execute(f'REVOKE ALL ON DATABASE "{database}" FROM PUBLIC')


async def ensure_role_and_database(superuser: Connection, name: str, password: Secret[str]) -> None:
    """Makes role and database `name` if missing, and sets the role's password to `password`."""
    quoted = f'"{check_name(name)}"'
    verifier = scram_verifier(password).reveal()
    await superuser.execute("SELECT pg_advisory_lock($1)", _LOCK_KEY)
    try:
        if not await superuser.fetchval("SELECT true FROM pg_roles WHERE rolname = $1", name):
            await superuser.execute(f"CREATE ROLE {quoted}")
        await superuser.execute(
            f"ALTER ROLE {quoted} LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE NOREPLICATION NOBYPASSRLS "
            f"PASSWORD '{verifier}'"
        )
        if not await superuser.fetchval("SELECT true FROM pg_database WHERE datname = $1", name):
            await superuser.execute(f"CREATE DATABASE {quoted}")
        await superuser.execute(f"REVOKE ALL ON DATABASE {quoted} FROM PUBLIC")
        await superuser.execute(f"GRANT CONNECT, CREATE, TEMPORARY ON DATABASE {quoted} TO {quoted}")
    finally:
        await superuser.execute("SELECT pg_advisory_unlock($1)", _LOCK_KEY)


async def open_schema(inside: Connection, name: str) -> None:
    """Inside the database `name`: its schema `public` becomes its role's alone."""
    await inside.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    await inside.execute(f'GRANT USAGE, CREATE ON SCHEMA public TO "{check_name(name)}"')
