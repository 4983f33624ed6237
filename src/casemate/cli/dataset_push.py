"""`casemate dataset push|manifest|push-signed`."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import click

from casemate.cli.connection import Connection, tenant_of, with_connection, with_session
from casemate.cli.keys import load_public_key, load_signing_key
from casemate.client.chunks import cut_as_signed, read_pieces
from casemate.client.dataset_files import DatasetFile, load_declared, open_dataset_file, read_as_signed
from casemate.client.datasets import Datasets
from casemate.client.datasets_push import MANIFEST_LIFETIME
from casemate.client.next_version import NextVersion
from casemate.client.session import Session
from casemate.clock import SystemClock
from casemate.errors import DigestMismatch, InvalidRequest
from casemate.signing import dsse
from casemate.signing.merkle import leaf_hash
from casemate.signing.statements import DATASET_MANIFEST_TYPE, DatasetManifest

_SCHEMA_HELP = (
    "JSON list of columns that are not what the data suggests: name, and any of type, minimum, maximum, nullable, "
    "categories, storage."
)


@click.command("push")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--key", type=click.Path(path_type=Path, exists=True), required=True, help="The signer's private key.")
@click.option("--name", default=None, help="Name of the dataset [default: the file's].")
@click.option("--schema", type=click.Path(path_type=Path, exists=True, dir_okay=False), help=_SCHEMA_HELP)
@click.option(
    "--trust",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="Public key (PEM) of who may have signed the version before [default: the service's word].",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@with_session
def push(
    session: Session,
    file: Path,
    *,
    key: Path,
    name: str | None,
    schema: Path | None,
    trust: tuple[Path, ...],
    as_json: bool,
) -> None:
    """Signs FILE as the next version of a dataset, and pushes it.

    FILE is CSV with a header line, JSON Lines, Arrow or Parquet, by the ending of its name. Column types are
    read off the data. A push that was cut off goes on by itself.
    """
    dataset = name or file.stem
    datasets = Datasets(session)
    signing_key = load_signing_key(key)
    opened = _opened(file, schema)
    trusted = [load_public_key(path) for path in trust] if trust else None
    manifest = datasets.manifest_of(opened, tenant=tenant_of(session), dataset=dataset, trusted=trusted)
    with click.progressbar(length=manifest.bytes, label="Pushing", file=sys.stderr) as bar:
        done = datasets.push_file(
            opened,
            manifest=manifest,
            signing_key=signing_key,
            progress=lambda durable: bar.update(durable - bar.pos),
            take_number=trusted is None,
        )
    if as_json:
        said = {"dataset": dataset, "version": done.version, "root": done.root.hex(), "rows": done.rows}
        click.echo(json.dumps(said | {"records": manifest.records}))
    else:
        click.echo(f"{dataset} version {done.version}: {manifest.records} rows, root {done.root.hex()}")


@click.command("manifest")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--name", default=None, help="Name of the dataset [default: the file's].")
@click.option("--schema", type=click.Path(path_type=Path, exists=True, dir_okay=False), help=_SCHEMA_HELP)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write the statement to.")
@click.option(
    "--after",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="Manifest or envelope of the version before; then no service is asked.",
)
@click.option("--first", metavar="TENANT", default=None, help="A tenant's first version; then no service is asked.")
@with_connection
def manifest(
    connection: Connection,
    file: Path,
    *,
    name: str | None,
    schema: Path | None,
    out: Path,
    after: Path | None,
    first: str | None,
) -> None:
    """Writes what would be signed for FILE, as `push` takes it, for a key that is kept elsewhere.

    The service says which version is the next, unless --after or --first does: then nobody needs to say who they are.
    Sign it as docs/how-to/sign-with-openssl.md says, then `push-signed --header`.
    """
    if after is not None and first is not None:
        raise click.UsageError("say --after or --first, not both")
    if after is None and first is None:
        session = connection.session()
        opened = _opened(file, schema)
        made = Datasets(session).manifest_of(opened, tenant=tenant_of(session), dataset=name or file.stem)
    else:
        audience = f"datasets.{connection.trust_domain}"
        following = _after(after) if after else NextVersion(audience=audience, tenant=first or "", dataset=file.stem)
        following = replace(following, dataset=name or following.dataset)
        opened = _opened(file, schema)
        expires_at = SystemClock().now() + MANIFEST_LIFETIME
        made = following.manifest(opened.chunks(), schema=opened.schema, encoding=opened.format, expires_at=expires_at)
    out.write_bytes(made.to_statement())
    click.echo(f"{made.dataset} version {made.version}: {made.records} rows, root {made.root.hex()}, to sign: {out}")


@click.command("push-signed")
@click.argument("envelope", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--header", is_flag=True, help="FILE is what `manifest` was given, a header line and all.")
@with_session
def push_signed(session: Session, envelope: Path, file: Path, header: bool) -> None:
    """Pushes the records in FILE under ENVELOPE, a manifest that was signed elsewhere (DSSE, JSON).

    Safe to repeat after a crash. FILE holds exactly the bytes that the manifest names.
    """
    signed = envelope.read_bytes()
    manifest = DatasetManifest.parse(dsse.peek_payload(signed, DATASET_MANIFEST_TYPE))
    sizes = [chunk.bytes for chunk in manifest.chunks]

    def chunks() -> Iterator[bytes]:
        return cut_as_signed(read_as_signed(file, manifest) if header else read_pieces(file), sizes)

    # Twice through the file: a difference is told here, by number, before anything is sent.
    for number, data in enumerate(chunks()):
        if leaf_hash(data) != manifest.chunks[number].leaf_hash:
            raise DigestMismatch(f"chunk {number} of {file} is not the one that was signed")
    done = Datasets(session).push_envelope(signed, chunks(), dataset=manifest.dataset)
    said = f"{done.dataset} version {done.version}: {manifest.records} rows, root {done.root.hex()}"
    click.echo(f"{said}, log entry {done.log_index}")


def _after(path: Path) -> NextVersion:
    """The version behind the one that a file is the manifest of, signed or not: the service judges by its own."""
    said = path.read_bytes()
    try:
        payload = dsse.peek_payload(said, DATASET_MANIFEST_TYPE)
    except InvalidRequest:
        payload = said
    return NextVersion.after(DatasetManifest.parse(payload))


def _opened(file: Path, schema: Path | None) -> DatasetFile:
    opened = open_dataset_file(file, declared=load_declared(schema) if schema else ())
    for remark in opened.remarks:
        click.echo(f"casemate: note: {remark}", err=True)
    return opened
