"""PostgreSQL's own folder: made once and completely, and cleared of what a killed server left in it."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Final

from casemate.secret import Secret
from casemate.storage import process
from casemate.storage.placement import Placement, make_folder

SUPERUSER: Final = "postgres"


def make_data(placement: Placement, programs: Path, *, password_file: Path) -> None:
    """Runs `initdb`, so that every login needs SCRAM, with a new random password for the superuser.

    The data are complete or not there: an interrupted run leaves nothing that looks like data.

    Raises:
        ConfigurationError: `initdb` fails.
    """
    password = Secret(secrets.token_urlsafe(32))
    _write_secret(password_file, password, process.Account.current())
    # initdb reads it as its own user, from a file that lives no longer than it does.
    handed_over = placement.base / "initdb.password"
    partial = placement.base / "data-partial"
    if partial.exists():
        shutil.rmtree(partial)
    make_folder(partial, placement.account, 0o700)
    _write_secret(handed_over, password, placement.account)
    try:
        process.run(
            placement.account,
            programs / "initdb",
            f"--pgdata={partial}",
            f"--username={SUPERUSER}",
            f"--pwfile={handed_over}",
            "--auth-local=scram-sha-256",
            "--auth-host=scram-sha-256",
            "--data-checksums",
            "--encoding=UTF8",
            "--locale=C",
            "--no-instructions",
        )
    finally:
        handed_over.unlink()
    partial.rename(placement.data)


async def end_predecessor(data: Path) -> None:
    """Deals with what `postmaster.pid` says about an earlier run: ends a server that still runs.

    Raises:
        ConfigurationError: that server does not stop.
    """
    file = data / "postmaster.pid"
    try:
        lines = file.read_text().splitlines()
    except FileNotFoundError:
        return
    pid = int(lines[0]) if lines and lines[0].strip().isdigit() else 0
    if pid == 0:
        # Cut off while it was being written. The caller holds the lock, so nobody else is at it.
        file.unlink()
    elif process.is_postgres_on(pid, data):
        await process.end_stranger(pid, data)
    else:
        # Another program may have that number now, and PostgreSQL would take it for itself. Our own number
        # it knows to be its parent's, hence stale; the file stays, since it names the shared memory by which
        # PostgreSQL finds children that outlived their postmaster.
        file.write_text("\n".join([str(os.getpid()), *lines[1:]]) + "\n")


def _write_secret(file: Path, value: Secret[str], owner: process.Account) -> None:
    """A file that only `owner` reads, from its first moment."""
    file.unlink(missing_ok=True)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, 0o600)
    with os.fdopen(descriptor, "w") as stream:
        os.fchown(stream.fileno(), owner.uid, owner.gid)
        stream.write(value.reveal())
