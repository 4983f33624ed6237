"""`casemate dataset shred|verify-receipt`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from casemate.cli.connection import with_session
from casemate.client.datasets import Datasets
from casemate.client.session import Session
from casemate.errors import ConfigurationError, InvalidRequest
from casemate.signing import dsse
from casemate.signing.checkpoint import parse_verification_key
from casemate.signing.export_receipt import EXPORT_RECEIPT_TYPE, ExportReceipt, verify_export_receipt
from casemate.signing.shred_receipt import ShredReceipt, verify_shred_receipt


@click.command("shred")
@click.argument("dataset")
@click.option("--version", type=click.IntRange(min=1), required=True, help="The version; there is no latest here.")
@click.option("--receipt", type=click.Path(path_type=Path), default=None, help="File for the receipt.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@with_session
def shred(session: Session, dataset: str, version: int, receipt: Path | None, yes: bool, as_json: bool) -> None:
    """Destroys the key of a version, for ever, and writes the signed receipt to a file.

    Its rows stay where they are and nothing opens them; backups of the data keys do until
    the date that the receipt states. The version's number and root stay in the log.
    """
    if not yes:
        click.confirm(f"Shred {dataset} version {version}? Nobody can undo it", abort=True)
    out = receipt or Path(f"{dataset}-{version}.shredded.json")
    if out.exists():
        raise ConfigurationError(f"{out} exists: a receipt is not overwritten; name another file with --receipt")
    done = Datasets(session).shred(dataset, version)
    out.write_bytes(done.envelope + b"\n")
    if as_json:
        click.echo(json.dumps({**_receipt_said(done.receipt), "receipt": str(out), "log_key": done.log_key}))
    else:
        click.echo(_receipt_shown(done.receipt))
        click.echo(f"receipt: {out}\nlog key: {done.log_key}")


@click.command("verify-receipt")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--log-key", required=True, help="The log's key as NAME+HASH+BASE64, or a file that begins with it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify_receipt(file: Path, log_key: str, as_json: bool) -> None:
    """Verifies the receipt of a shredding or of an export, without any service, and prints what it states."""
    text = log_key if "+" in log_key else _file_text(Path(log_key))
    log, key = parse_verification_key(text)
    envelope = file.read_bytes().strip()
    if _is_export(envelope):
        exported = verify_export_receipt(envelope, log=log, public_key=key).receipt
        click.echo(exported.to_payload().decode() if as_json else _export_shown(exported))
        return
    receipt = verify_shred_receipt(envelope, log=log, public_key=key).receipt
    click.echo(json.dumps(_receipt_said(receipt)) if as_json else _receipt_shown(receipt))


def _file_text(file: Path) -> str:
    if not file.is_file():
        raise ConfigurationError(f"{file} is neither a key of the form NAME+HASH+BASE64 nor a file that holds one")
    # The first line: those behind it are the witness's in what `log watch` keeps.
    return file.read_text().partition("\n")[0]


def _receipt_said(receipt: ShredReceipt) -> dict[str, object]:
    said: dict[str, object] = json.loads(receipt.to_payload())
    return said


def _receipt_shown(receipt: ShredReceipt) -> str:
    return (
        f"{receipt.tenant}/{receipt.dataset} version {receipt.version} was shredded: root {receipt.root}\n"
        f"key deleted {receipt.key_deleted_at:%Y-%m-%d %H:%M:%S} UTC, entry {receipt.log_index} of {receipt.log}\n"
        f"no backup opens it from {receipt.no_backup_after:%Y-%m-%d %H:%M:%S} UTC on"
    )


def _is_export(envelope: bytes) -> bool:
    try:
        dsse.peek_payload(envelope, EXPORT_RECEIPT_TYPE)
    except InvalidRequest:
        return False
    return True


def _export_shown(receipt: ExportReceipt) -> str:
    return (
        f"{receipt.tenant}/{receipt.dataset} version {receipt.version} was given to {receipt.caller}: "
        f"{receipt.batches} batches, {receipt.rows} rows, root {receipt.root}\n"
        f"shard {receipt.shard} of {receipt.shards}, from place {receipt.position}, "
        f"{receipt.started_at:%Y-%m-%d %H:%M:%S} to {receipt.ended_at:%H:%M:%S} UTC, "
        f"entry {receipt.log_index} of {receipt.log}"
    )
