"""`casemate log …`: what the transparency log holds, and whether it still is the log that it was."""

from __future__ import annotations

import json
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from casemate.cli.connection import with_session
from casemate.cli.plain_text import plain
from casemate.client.log import LogReader
from casemate.client.saved_log import HistoryDiffers, LogKeys, SavedLog, differing, verify_file
from casemate.errors import CasemateError, ConfigurationError, StoredDataUnreadable
from casemate.signing.log_proof import VerifiedEntry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from casemate.client.session import Session
    from casemate.signing.checkpoint import VerifiedCheckpoint

_FOLDER = click.Path(path_type=Path, file_okay=False)
_FILE = click.Path(path_type=Path, exists=True, dir_okay=False)
_MOST_EVIDENCE = 16

DIFFERS = 3
"""Exit status where the log signed what cannot all be true; other failures are 1."""


@click.group("log")
def log_command() -> None:
    """The transparency log."""


@log_command.command("watch")
@click.option("--save", type=_FOLDER, required=True, help="Folder of what is kept: checkpoint, keys, leaves.")
@click.option("--log-key", default=None, help="The log's key, NAME+HASH+BASE64 [default: the first one seen].")
@click.option("--witness-key", "witness_keys", multiple=True, help="A witness who must have cosigned.")
@click.option("--every", type=float, default=None, metavar="SECONDS", help="Look again and again; once if not given.")
@with_session
def watch(session: Session, save: Path, log_key: str | None, witness_keys: Sequence[str], every: float | None) -> None:
    """Checks that the log extends what was kept, prints the caller's new entries, and keeps more.

    Exits 3 and leaves `evidence-…` files in the folder when the log was rewritten or
    shows another history; 1 when nothing can be said.
    """
    reader = LogReader(session)
    while True:
        look(reader, save, log_key, witness_keys)
        if every is None:
            return
        time.sleep(every)


@log_command.command("prove")
@click.argument("index", type=click.IntRange(min=0))
@click.option("--out", type=click.Path(path_type=Path), default=None, help="File [default: entry-INDEX.tlog-proof].")
@click.option("--log-key", default=None, help="The log's key, to verify by [default: what the service says].")
@with_session
def prove(session: Session, index: int, out: Path | None, log_key: str | None) -> None:
    """Writes the receipt of entry INDEX: a C2SP tlog-proof that `log verify` and others check offline."""
    reader = LogReader(session)
    text = reader.receipt(index)
    found = verify_file(text, LogKeys.parse(log_key or reader.checkpoint().log_key))
    path = out or Path(f"entry-{index}.tlog-proof")
    path.write_text(text)
    click.echo(f"entry {index} of {_size(found)}: receipt in {path}")


@log_command.command("verify")
@click.argument("files", nargs=-1, required=True, type=_FILE)
@click.option("--saved", type=_FOLDER, default=None, help="Folder that `log watch` keeps.")
@click.option("--log-key", default=None, help="The log's key, NAME+HASH+BASE64; instead of --saved.")
@click.option("--witness-key", "witness_keys", multiple=True, help="A witness who must have cosigned.")
def verify(files: Sequence[Path], saved: Path | None, log_key: str | None, witness_keys: Sequence[str]) -> None:
    """Checks receipts and checkpoints offline: FILES are tlog-proofs or checkpoints.

    They are held against one another, and with --saved against the history that was kept. Exits 1 if one fails, and 3
    if two that the log signed cannot both be true.
    """
    kept = None if saved is None else SavedLog.load(saved)
    if saved is not None and kept is None:
        raise ConfigurationError(f"{saved} holds no checkpoint: `casemate log watch --save` writes it")
    keys = _keys(kept, log_key, witness_keys)
    status = 0
    seen: dict[int, tuple[Path, VerifiedCheckpoint]] = {}
    for path in files:
        try:
            _show(
                path, verify_file(path.read_text(), keys, judge=partial(_require_one_history, path, keys, kept, seen))
            )
        except HistoryDiffers as error:
            status = DIFFERS
            click.echo(f"{path}: REFUSED: HISTORY DIFFERS: {error}", err=True)
        except (CasemateError, UnicodeDecodeError) as error:
            status = status or 1
            click.echo(f"{path}: REFUSED: {error}", err=True)
    if status:
        sys.exit(status)


def _require_one_history(
    path: Path,
    keys: LogKeys,
    kept: SavedLog | None,
    seen: dict[int, tuple[Path, VerifiedCheckpoint]],
    checkpoint: VerifiedCheckpoint,
) -> None:
    """Raises HistoryDiffers unless a checkpoint agrees with what is kept, and with those of its size before it."""
    before, other = seen.setdefault(checkpoint.size, (path, checkpoint))
    if other.root != checkpoint.root:
        text = f"the log signed two trees of {checkpoint.size} entries"
        raise differing(keys, text, (str(before), other), (str(path), checkpoint))
    if kept is not None:
        kept.require_same_history(checkpoint)


def _show(path: Path, found: VerifiedCheckpoint | VerifiedEntry) -> None:
    if isinstance(found, VerifiedEntry):
        shown = plain(found.entry.decode("ascii", "backslashreplace"))
        click.echo(f"{path}: entry {found.index} of {found.checkpoint.size}: {shown}")
    else:
        click.echo(f"{path}: checkpoint of {found.size} entries, root {found.root.hex()}")


def look(reader: LogReader, save: Path, log_key: str | None = None, witness_keys: Sequence[str] = ()) -> None:
    """Looks once: keeps what is new, or accuses the log and exits."""
    try:
        _look(reader, save, log_key, witness_keys)
    except HistoryDiffers as error:
        _keep_evidence(error, save)
        click.echo(f"casemate: HISTORY DIFFERS: {error}; the signed checkpoints are in {save}/evidence-*", err=True)
        sys.exit(DIFFERS)


def _look(reader: LogReader, save: Path, log_key: str | None, witness_keys: Sequence[str]) -> None:
    kept = SavedLog.load(save)
    try:
        shown = reader.checkpoint()
    except StoredDataUnreadable as error:
        if kept is None or kept.checkpoint is None:
            raise
        raise HistoryDiffers(
            f"the service has no checkpoint that its witness takes, and {kept.size} entries are kept: "
            "its log was rolled back or rewritten",
            evidence=(kept.checkpoint.text,),
        ) from error
    if kept is None:
        first = LogKeys.parse(log_key or shown.log_key, witness_keys or [shown.witness_key])
        if log_key is None:
            click.echo(f"first look: trusting the log key {first.to_lines().splitlines()[0]}", err=True)
        kept = SavedLog(keys=first)
    elif log_key is not None or witness_keys:
        kept = SavedLog(keys=_keys(kept, log_key, witness_keys), checkpoint=kept.checkpoint, leaves=kept.leaves)
    if kept.keys.origin != reader.origin:
        raise ConfigurationError(f"{save} is about {kept.keys.origin}, and this is {reader.origin}")
    known = kept.size
    kept, entries = kept.advanced(shown.checkpoint, prove=reader.consistency, fetch=reader.entries)
    kept.save(save)
    for index, entry in enumerate(entries, known):
        if entry is not None:
            click.echo(json.dumps({"index": index} | _said(entry) | {"index": index}))
    others = entries.count(None)
    of_others = f", {others} of them not for this tenant" if others else ""
    click.echo(f"{kept.size} entries, {len(entries)} new{of_others}; one history", err=True)


def _said(entry: bytes) -> dict[str, object]:
    """What an entry says; one that is no object of JSON, as whoever has the log's key can make it, as its bytes."""
    try:
        said = json.loads(entry)
    except (ValueError, RecursionError):
        said = None
    return said if isinstance(said, dict) else {"entry": entry.decode("ascii", "backslashreplace")}


def _keep_evidence(error: HistoryDiffers, save: Path) -> None:
    """Writes what is not there yet, and takes nothing away: the first accusation counts, and cron comes again."""
    kept = {_face(path.read_text()) for path in save.glob("evidence-*")}
    for note in error.evidence:
        if _face(note) not in kept and len(kept) < _MOST_EVIDENCE:
            kept.add(_face(note))
            (save / f"evidence-{len(kept)}").write_text(note)


def _face(note: str) -> tuple[str, ...]:
    """Log, size and root of a checkpoint."""
    return tuple(note.split("\n")[:3])


def _keys(kept: SavedLog | None, log_key: str | None, witness_keys: Sequence[str]) -> LogKeys:
    if log_key is not None:
        return LogKeys.parse(log_key, witness_keys)
    if kept is None:
        raise ConfigurationError("say whose log it is: --log-key, or --saved")
    return LogKeys.parse(kept.keys.to_lines().splitlines()[0], witness_keys) if witness_keys else kept.keys


def _size(found: object) -> int:
    return found.checkpoint.size if isinstance(found, VerifiedEntry) else 0
