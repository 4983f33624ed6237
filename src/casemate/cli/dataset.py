"""`casemate dataset …`: push, pull and describe."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from casemate.cli.connection import tenant_of, with_session
from casemate.cli.keys import load_public_key, load_signing_key
from casemate.client.chunks import cut, cut_as_signed, read_pieces, records_of
from casemate.client.datasets import Datasets
from casemate.client.session import Session
from casemate.errors import ConfigurationError, DigestMismatch
from casemate.signing import dsse
from casemate.signing.merkle import leaf_hash
from casemate.signing.shred_receipt import ShredReceipt, parse_verification_key, verify_shred_receipt
from casemate.signing.statements import DATASET_MANIFEST_TYPE, Column, DatasetManifest


@click.group("dataset")
def dataset_command() -> None:
    """Signed datasets."""


@dataset_command.command("shred")
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


@dataset_command.command("verify-receipt")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--log-key", required=True, help="The log's key as NAME+HASH+BASE64, or a file that holds it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def verify_receipt(file: Path, log_key: str, as_json: bool) -> None:
    """Verifies the receipt of a shredding, without any service, and prints what it states."""
    text = log_key if "+" in log_key else _file_text(Path(log_key))
    log, key = parse_verification_key(text)
    receipt = verify_shred_receipt(file.read_bytes().strip(), log=log, public_key=key).receipt
    click.echo(json.dumps(_receipt_said(receipt)) if as_json else _receipt_shown(receipt))


def _file_text(file: Path) -> str:
    if not file.is_file():
        raise ConfigurationError(f"{file} is neither a key of the form NAME+HASH+BASE64 nor a file that holds one")
    return file.read_text()


def _receipt_said(receipt: ShredReceipt) -> dict[str, object]:
    said: dict[str, object] = json.loads(receipt.to_payload())
    return said


def _receipt_shown(receipt: ShredReceipt) -> str:
    return (
        f"{receipt.tenant}/{receipt.dataset} version {receipt.version} was shredded: root {receipt.root}\n"
        f"key deleted {receipt.key_deleted_at:%Y-%m-%d %H:%M:%S} UTC, entry {receipt.log_index} of {receipt.log}\n"
        f"no backup opens it from {receipt.no_backup_after:%Y-%m-%d %H:%M:%S} UTC on"
    )


@dataset_command.command("push")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--key", type=click.Path(path_type=Path, exists=True), required=True, help="The signer's private key.")
@click.option("--name", default=None, help="Name of the dataset [default: the file's].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@with_session
def push(session: Session, file: Path, key: Path, name: str | None, as_json: bool) -> None:
    """Signs FILE (CSV with a header line) as the next version of a dataset, and pushes it.

    Column types are read off the data: a column of integers, of numbers, or of text.
    """
    dataset = name or file.stem
    datasets = Datasets(session)
    source = records_of(file, skip_header=True)
    manifest = datasets.manifest(source, tenant=tenant_of(session), dataset=dataset, schema=_columns(file))
    signing_key = load_signing_key(key)
    with click.progressbar(length=manifest.bytes, label="Pushing", file=sys.stderr) as bar:

        def shown() -> Iterator[bytes]:
            for record in source():
                bar.update(len(record) + 1)
                yield record

        done = datasets.push(shown, manifest=manifest, signing_key=signing_key)
    if as_json:
        said = {"dataset": dataset, "version": done.version, "root": done.root.hex(), "rows": done.rows}
        click.echo(json.dumps(said))
    else:
        click.echo(f"{dataset} version {done.version}: {done.rows} rows, root {done.root.hex()}")


@dataset_command.command("manifest")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--name", default=None, help="Name of the dataset [default: the file's].")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write the statement to.")
@with_session
def manifest(session: Session, file: Path, name: str | None, out: Path) -> None:
    """Writes what would be signed for FILE (CSV with a header line), for a key that is kept elsewhere.

    Sign it as docs/how-to/sign-with-openssl.md says, then `push-signed --header`.
    """
    source = records_of(file, skip_header=True)
    made = Datasets(session).manifest(
        source, tenant=tenant_of(session), dataset=name or file.stem, schema=_columns(file)
    )
    out.write_bytes(made.to_statement())
    click.echo(f"{made.dataset} version {made.version}: {made.rows} rows, root {made.root.hex()}, to sign: {out}")


@dataset_command.command("push-signed")
@click.argument("envelope", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--header", is_flag=True, help="FILE begins with a header line, which was not signed.")
@with_session
def push_signed(session: Session, envelope: Path, file: Path, header: bool) -> None:
    """Pushes the records in FILE under ENVELOPE, a manifest that was signed elsewhere (DSSE, JSON).

    Safe to repeat after a crash. FILE holds exactly the bytes that the manifest names.
    """
    signed = envelope.read_bytes()
    manifest = DatasetManifest.parse(dsse.peek_payload(signed, DATASET_MANIFEST_TYPE))
    sizes = [chunk.bytes for chunk in manifest.chunks]

    def chunks() -> Iterator[bytes]:
        lines = records_of(file, skip_header=True)
        return cut_as_signed((line + b"\n" for line in lines()) if header else read_pieces(file), sizes)

    # Twice through the file: a difference is told here, by number, before anything is sent.
    for number, data in enumerate(chunks()):
        if leaf_hash(data) != manifest.chunks[number].leaf_hash:
            raise DigestMismatch(f"chunk {number} of {file} is not the one that was signed")
    done = Datasets(session).push_envelope(signed, chunks(), dataset=manifest.dataset)
    said = f"{done.dataset} version {done.version}: {done.rows} rows, root {done.root.hex()}"
    click.echo(f"{said}, log entry {done.log_index}")


@dataset_command.command("pull")
@click.argument("dataset")
@click.option("--version", type=click.IntRange(min=1), default=None, show_default="latest")
@click.option(
    "--trust", type=click.Path(path_type=Path, exists=True), required=True, help="Supplier's public key (PEM)."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write, with a header line.")
@click.option("--unsafe-accept-pkcs1", is_flag=True, help="Take an RSA key's PKCS#1 v1.5 signature too.")
@with_session
def pull(
    session: Session, dataset: str, version: int | None, trust: Path, out: Path, unsafe_accept_pkcs1: bool
) -> None:
    """Writes a version to a file, every batch proven under the root that the trusted key signed.

    The file appears only when the whole version was proven.
    """
    key = load_public_key(trust)
    if unsafe_accept_pkcs1:
        key = key.unsafe_also_pkcs1()
    pulled = Datasets(session).pull(dataset, version or 0, tenant=tenant_of(session), trusted=[key])
    unproven = out.with_name(out.name + ".part")
    with unproven.open("wb") as file:
        header = ",".join(column.name for column in pulled.manifest.manifest.schema)
        file.write(header.encode() + b"\n")
        for batch in pulled:
            file.writelines(record + b"\n" for record in batch.records)
    unproven.replace(out)
    click.echo(f"{dataset} version {pulled.version}: proven, root {pulled.root.hex()}, written to {out}")


@dataset_command.command("describe")
@click.argument("dataset")
@click.option("--version", type=click.IntRange(min=1), default=None, show_default="latest")
@with_session
def describe(session: Session, dataset: str, version: int | None) -> None:
    """Prints what is known of a version, as JSON."""
    found = Datasets(session).describe(dataset, version or 0)
    said = {
        "dataset": dataset,
        "version": found.version,
        "rows": found.rows,
        "root": found.root.hex(),
        "signer": found.signer_key_id,
        "promoted_at": found.promoted_at.ToJsonString(),
        "shredded_at": found.shredded_at.ToJsonString() if found.HasField("shredded_at") else None,
    }
    click.echo(json.dumps(said, indent=1))


def _columns(file: Path) -> list[Column]:
    """The columns of the header line, with the narrowest type that all records fit."""
    with file.open("rb") as lines:
        header = next(csv.reader([_text(next(lines, b""), file)]), None)
    if not header:
        raise ConfigurationError(f"{file} has no header line")
    kinds = ["integer"] * len(header)
    for chunk in cut(records_of(file, skip_header=True)()):
        for row in csv.reader(_text(chunk, file).splitlines()):
            for index, value in enumerate(row[: len(kinds)]):
                kinds[index] = _widen(kinds[index], value)
    return [
        Column(name=name, type=kind, minimum=None, maximum=None)  # type: ignore[arg-type]  # one of its literals
        for name, kind in zip(header, kinds, strict=True)
    ]


def _widen(kind: str, value: str) -> str:
    if kind == "integer":
        if value.lstrip("-").isdigit() and value.isascii():
            return kind
        kind = "number"
    if kind == "number":
        try:
            float(value)
        except ValueError:
            return "text"
    return kind


def _text(data: bytes, file: Path) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise ConfigurationError(f"{file} is not text in UTF-8") from None
