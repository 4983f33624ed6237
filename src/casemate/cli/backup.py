"""`casemate backup …`: make a backup, judge one, and put one back on an empty machine."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from casemate.backup import restore as restoring
from casemate.backup.create import Created, create
from casemate.backup.manifest import BackupClass, Manifest
from casemate.backup.verify import verify
from casemate.cli.backup_places import find_places, open_here
from casemate.cli.backup_restore import restore_here, restore_there
from casemate.cli.main import Options
from casemate.cli.state import StateDirectory
from casemate.clock import SystemClock
from casemate.errors import CasemateError
from casemate.settings import duration

if TYPE_CHECKING:
    from datetime import timedelta

    from casemate.backup.places import Places

_FOLDER = click.Path(path_type=Path, file_okay=False)
_EXISTING = click.Path(path_type=Path, file_okay=False, exists=True)
_JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
_ENVIRONMENT = click.option(
    "--from-environment", is_flag=True, help="Take everything from the services' own CASEMATE_… settings, not --state."
)
_DOMAIN = click.option("--trust-domain", default="casemate.internal", show_default=True)


@click.group("backup")
def backup_command() -> None:
    """Backups, without the key-encryption keys. See docs/runbooks/disaster.md."""


@backup_command.command("create")
@click.option("--to", "target", type=_FOLDER, required=True, help="Folder: rows/, log/ and datakeys/ come below it.")
@click.option("--datakeys-to", type=_FOLDER, default=None, help="Folder for the data keys, which live shorter.")
@click.option("--only", type=click.Choice([kind.value for kind in BackupClass]), default=None, help="One class alone.")
@click.option("--retention", default=None, help="Longest life of the data keys [default: 30d, as the receipts say].")
@_DOMAIN
@_ENVIRONMENT
@_JSON
@click.pass_obj
def create_command(
    options: Options,
    target: Path,
    datakeys_to: Path | None,
    only: str | None,
    retention: str | None,
    trust_domain: str,
    from_environment: bool,
    as_json: bool,
) -> None:
    """Backs up databases, models, log and sealed keys while all goes on.

    The key-encryption keys are not inside; keep them elsewhere. The data keys are a class
    of their own: keep them no longer than the receipts of shredding say.
    """
    places = find_places(options, trust_domain, from_environment=from_environment)
    folders = {kind: target.absolute() / kind.value for kind in BackupClass if only in (None, kind.value)}
    if datakeys_to is not None and BackupClass.DATAKEYS in folders:
        folders[BackupClass.DATAKEYS] = datakeys_to.absolute()
    if retention is not None:
        places = dataclasses.replace(places, retention=_duration(retention))
    begun = time.monotonic()
    with _progress("written") as passed:
        made = asyncio.run(create(places, folders, clock=SystemClock(), passed=passed))
    seconds = time.monotonic() - begun
    if as_json:
        click.echo(json.dumps({"seconds": round(seconds, 3), "backups": [_said(one) for one in made]}))
        return
    for one in made:
        click.echo(f"{one.manifest.kind.value:<9} {one.manifest.total_bytes():>12,} bytes   {one.folder}")
        if one.manifest.expires_at is not None:
            click.echo(f"          delete it by {one.manifest.expires_at:%Y-%m-%d}: receipts of shredding say so")
    named = ", ".join(f"{name} {kek.kek_id} v{kek.version}" for name, kek in made[-1].manifest.keks.items())
    click.echo(f"Taken in {seconds:.1f} s. To restore, these key-encryption keys are needed, and not inside: {named}")


@backup_command.command("verify")
@click.argument("folders", nargs=-1, required=True, type=_EXISTING)
@click.option("--digests-only", is_flag=True, help="Without the key-encryption keys: finds damage, not forgery.")
@_DOMAIN
@_ENVIRONMENT
@_JSON
@click.pass_obj
def verify_command(
    options: Options,
    folders: Sequence[Path],
    digests_only: bool,
    trust_domain: str,
    from_environment: bool,
    as_json: bool,
) -> None:
    """Reads FOLDERS whole, and says what that proves. Exits 1 if one does not hold."""
    places = None if digests_only else find_places(options, trust_domain, from_environment=from_environment)
    failed = False
    for folder in folders:
        try:
            with _progress("read") as passed:
                manifest, sealed_by = asyncio.run(_verify(folder, places, passed))
        except CasemateError as error:
            failed = True
            said = {"folder": str(folder), "holds": False, "why": str(error)}
            click.echo(json.dumps(said) if as_json else f"{folder}: REFUSED: {error}", err=not as_json)
            continue
        proves = (
            f"made by a holder of the key-encryption keys of {', '.join(sealed_by)}, and not altered since"
            if sealed_by
            else "not damaged; who made it was not judged"
        )
        if as_json:
            click.echo(json.dumps({**_said(Created(folder, manifest)), "holds": True, "proves": proves}))
        else:
            taken = f"{manifest.taken_at:%Y-%m-%d %H:%M:%S} UTC"
            click.echo(f"{folder}: {manifest.kind.value} of {taken}, {len(manifest.parts)} parts: {proves}")
    if not as_json:
        click.echo("That none of them is the newest one, nothing in them can say.")
    if failed:
        sys.exit(1)


@backup_command.command("restore")
@click.option("--rows", type=_EXISTING, required=True, help="Folder of the rows.")
@click.option("--datakeys", type=_EXISTING, required=True, help="Folder of the data keys, of that moment or later.")
@click.option("--log", type=_EXISTING, default=None, help="Folder of the newest log there is.")
@click.option(
    "--checkpoint",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    default=None,
    help="A checkpoint that somebody kept, such as of `log watch`: the log may not be older.",
)
@click.option(
    restoring.WITHOUT_LOG,
    "without_log",
    is_flag=True,
    help="Go on although what was shredded or revoked after the backup comes back.",
)
@_DOMAIN
@_ENVIRONMENT
@_JSON
@click.pass_obj
def restore_command(
    options: Options,
    rows: Path,
    datakeys: Path,
    log: Path | None,
    checkpoint: Path | None,
    without_log: bool,
    trust_domain: str,
    from_environment: bool,
    as_json: bool,
) -> None:
    """Puts a backup back where nothing is; with --state, on a machine that has the backup and the KEKs alone.

    What was shredded and revoked since is taken away again by the log. All tokens and
    refresh families end. Interrupted, no service starts on it; say the same again.
    """
    request = restoring.Request(
        rows=rows.absolute(),
        datakeys=datakeys.absolute(),
        log=None if log is None else log.absolute(),
        checkpoint=checkpoint,
        without_log=without_log,
    )
    begun = time.monotonic()
    with _progress("read and put back") as passed:
        if from_environment:
            done = asyncio.run(restore_there(trust_domain, request, passed))
        else:
            done = asyncio.run(restore_here(StateDirectory(options.state), trust_domain, request, passed))
    seconds = time.monotonic() - begun
    if as_json:
        click.echo(json.dumps({"seconds": round(seconds, 3), "backup": Manifest.load(rows).id, **done}))
        return
    for service, counts in done.items():
        told = ", ".join(f"{name.replace('_', ' ')}: {count}" for name, count in counts.items() if count)
        click.echo(f"{service}: {told or 'nothing to take away'}")
    if request.log is None:
        click.echo("NO NEWER LOG was given: what was shredded or revoked after the backup has come back.")
    click.echo(f"Restored in {seconds:.1f} s. Every client needs a new token; whatever was lost is counted above.")


async def _verify(
    folder: Path, places: Places | None, passed: Callable[[int], None]
) -> tuple[Manifest, tuple[str, ...]]:
    if places is None:
        return (found := await verify(folder, passed=passed)).manifest, found.sealed_by
    async with open_here(places, Manifest.load(folder)) as keks:
        found = await verify(folder, keks=keks, passed=passed)
    return found.manifest, found.sealed_by


def _duration(text: str) -> timedelta:
    try:
        return duration(text)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--retention") from error


@contextlib.contextmanager
def _progress(verb: str) -> Iterator[Callable[[int], None]]:
    """Tells on a terminal how far it is."""
    total, shown = 0, 0.0

    def passed(count: int) -> None:
        nonlocal total, shown
        total += count
        if sys.stderr.isatty() and time.monotonic() - shown > 0.2:
            shown = time.monotonic()
            click.echo(f"\r{total / 2**20:,.0f} MiB {verb}", nl=False, err=True)

    yield passed
    if shown:
        click.echo("\r" + " " * 40 + "\r", nl=False, err=True)


def _said(one: Created) -> dict[str, object]:
    manifest = one.manifest
    return {
        "folder": str(one.folder),
        "id": manifest.id,
        "class": manifest.kind.value,
        "taken_at": manifest.taken_at.isoformat(),
        "expires_at": None if manifest.expires_at is None else manifest.expires_at.isoformat(),
        "bytes": manifest.total_bytes(),
        "parts": len(manifest.parts),
        "keks": {name: {"id": kek.kek_id, "version": kek.version} for name, kek in manifest.keks.items()},
        "log_size": manifest.log.size,
    }
