"""`casemate dataset push|manifest|push-signed`."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import click

from casemate.cli.connection import tenant_of, with_session
from casemate.cli.keys import load_signing_key
from casemate.client.chunks import cut, cut_as_signed, read_pieces, records_of
from casemate.client.datasets import Datasets
from casemate.client.session import Session
from casemate.errors import ConfigurationError, DigestMismatch
from casemate.signing import dsse
from casemate.signing.merkle import leaf_hash
from casemate.signing.statements import DATASET_MANIFEST_TYPE, Column, DatasetManifest


@click.command("push")
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


@click.command("manifest")
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


@click.command("push-signed")
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
