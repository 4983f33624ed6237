"""`casemate kek …`: rotate key-encryption keys, and see what they wrap."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from casemate.cli.connection import with_session
from casemate.cli.main import Options
from casemate.cli.state import SERVICES, StateDirectory
from casemate.client.keys import KekReport, ServiceKeys, WrappedCount
from casemate.client.session import Session
from casemate.errors import ConfigurationError
from casemate.keys.v1 import key_service_pb2 as messages
from casemate.sealing.local import LocalKeyRing

_SERVICE = click.Choice(SERVICES)


@click.group("kek")
def kek_command() -> None:
    """Key-encryption keys: one per service, above all its other keys."""


@kek_command.command("status")
@click.argument("service", type=_SERVICE, required=False)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a service.")
@with_session
def status(session: Session, service: str | None, as_json: bool) -> None:
    """Shows what is wrapped under which key-encryption key and version; of all services, or of SERVICE."""
    for name in SERVICES if service is None else (service,):
        report = ServiceKeys(session, name).status()
        click.echo(json.dumps(_said(name, report)) if as_json else _shown(name, report))


@kek_command.command("rotate")
@click.argument("service", type=_SERVICE)
@click.option(
    "--ring",
    type=click.Path(path_type=Path, dir_okay=False),
    help="The local key ring's file [default: that of the state directory].",
)
@click.option(
    "--rewrap-only",
    is_flag=True,
    help="Add no version: for a key that its provider rotates, and to go on after an interruption.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.pass_obj
@with_session
def rotate(
    session: Session, options: Options, service: str, ring: Path | None, rewrap_only: bool, as_json: bool
) -> None:
    """Adds a version to SERVICE's key-encryption key, and wraps under it whatever it wraps.

    The service goes on meanwhile, and takes the new version up by itself. Interrupted, say
    the same with --rewrap-only. The old version opens what backups hold; it is not removed.
    """
    keys = ServiceKeys(session, service)
    before = keys.status()
    if not rewrap_only:
        _add_version(ring or StateDirectory(options.state).kek(service), before)
    report = keys.status()
    if not rewrap_only and report.current_version <= before.current_version:
        raise ConfigurationError(f"{service} does not use the ring that was rotated: nothing was rewrapped")
    done = _rewrap(keys)
    report = keys.status()
    if as_json:
        counts = {"rewrapped": done.rewrapped, "failed": done.failed, "seen": done.seen}
        click.echo(json.dumps({**_said(service, report), **counts}))
    else:
        click.echo(f"{service}: {done.rewrapped} of {done.seen} keys wrapped anew, {done.failed} could not be opened")
        click.echo(_shown(service, report))
    if not done.failed:  # A key that does not open is due as well, and is no matter of a mount.
        _tell_what_is_mounted(service, report)
    else:
        raise ConfigurationError(f"{done.failed} keys stay as they were; the log of {service} names them")


def _add_version(path: Path, before: KekReport) -> None:
    """A new version in the very ring that the service uses."""
    if not path.is_file():
        raise ConfigurationError(
            f"there is no key ring at {path}: name it with --ring. A key in KMS or in a token is "
            "rotated there; then say --rewrap-only"
        )
    found = LocalKeyRing.load(path).describe()
    if (found.kek_id, found.current_version) != (before.kek_id, before.current_version):
        raise ConfigurationError(f"{path} is {found.kek_id}, and the service uses {before.kek_id}: nothing was changed")
    LocalKeyRing.rotate(path, after=before.current_version)


def _tell_what_is_mounted(service: str, report: KekReport) -> None:
    """The one key that a service may be unable to write: its file is mounted from a Secret."""
    due = [count for count in report.wrapped if count.purpose == "authority-rows" and not _is_current(count, report)]
    if due:
        click.echo(
            f"{service} cannot write the file of its authority key, which is to be replaced by its Secret: where the "
            f"service runs, `python -m services.{service} rewrap-authority-key` prints what to put there, in base64. "
            "The old version opens it until then.",
            err=True,
        )


def _is_current(count: WrappedCount, report: KekReport) -> bool:
    return (count.kek_id, count.kek_version) == (report.kek_id, report.current_version)


def _rewrap(keys: ServiceKeys) -> messages.RewrapKeysResponse:
    done = messages.RewrapKeysResponse()
    responses = keys.rewrap()
    first = next(responses, done)
    with click.progressbar(length=first.total, label="Rewrapping", file=sys.stderr) as bar:
        for progress in responses:
            bar.update(progress.seen - done.seen)
            done = progress
    return done


def _said(service: str, report: KekReport) -> dict[str, object]:
    return {
        "service": service,
        "kek_id": report.kek_id,
        "current_version": report.current_version,
        "status": report.status,
        "development": report.is_for_development,
        "due": report.due,
        "wrapped": [
            {
                "purpose": count.purpose,
                "kek_id": count.kek_id,
                "kek_version": count.kek_version,
                "keys": count.keys,
            }
            for count in report.wrapped
        ],
    }


def _shown(service: str, report: KekReport) -> str:
    kind = ", for development" if report.is_for_development else ""
    lines = [f"{service}: {report.kek_id} version {report.current_version}, {report.status}{kind}"]
    for count in report.wrapped:
        other = "" if count.kek_id == report.kek_id else f" of {count.kek_id or '(not legible)'}"
        current = not other and count.kek_version == report.current_version
        mark = "" if current else "   rewrap it"
        lines.append(f"  {count.purpose:<15} version {count.kek_version}{other}: {count.keys}{mark}")
    return "\n".join(lines)
