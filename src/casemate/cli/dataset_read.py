"""`casemate dataset pull|describe`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import click

from casemate.cli.connection import tenant_of, with_session
from casemate.cli.keys import load_public_key
from casemate.client.datasets import BatchOrder, Datasets, PulledDataset
from casemate.client.session import Session
from casemate.errors import ConfigurationError
from casemate.signing import dsse
from casemate.signing.framing import join_rows
from casemate.signing.statements import DATASET_MANIFEST_TYPE, DatasetManifest


@click.command("pull")
@click.argument("dataset")
@click.option("--version", type=click.IntRange(min=1), default=None, show_default="what --label names")
@click.option(
    "--trust", type=click.Path(path_type=Path, exists=True), required=True, help="Supplier's public key (PEM)."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="File to write, with a header line.")
@click.option("--label", default=None, show_default="latest", help="Instead of a version.")
@click.option("--shard", default="0/1", metavar="K/N", help="Shard K, from 0, of N.", show_default=True)
@click.option("--seed", type=click.IntRange(min=0), default=None, help="Shuffle the batches by this seed.")
@click.option("--receipt", type=click.Path(path_type=Path), default=None, help="File for the signed receipt.")
@click.option("--unsafe-accept-pkcs1", is_flag=True, help="Take an RSA key's PKCS#1 v1.5 signature too.")
@with_session
def pull(
    session: Session,
    dataset: str,
    *,
    version: int | None,
    trust: Path,
    out: Path,
    label: str | None,
    shard: str,
    seed: int | None,
    receipt: Path | None,
    unsafe_accept_pkcs1: bool,
) -> None:
    """Writes a version to a file, every batch proven under the root that the trusted key signed.

    The file appears only when all that was asked for was proven. CSV gets a header line,
    Arrow becomes an IPC stream.
    """
    if version is not None and label is not None:
        raise click.UsageError("say --version or --label, not both")
    if out.exists() and not out.is_file():
        raise ConfigurationError(f"{out} is no file, and is not replaced by one")
    key = load_public_key(trust)
    if unsafe_accept_pkcs1:
        key = key.unsafe_also_pkcs1()
    pulled = Datasets(session).pull(
        dataset,
        version or 0,
        tenant=tenant_of(session),
        trusted=[key],
        label="" if version else label or "latest",
        order=_order(shard, seed),
    )
    place = out.resolve()  # a link stays one
    unproven = place.with_name(place.name + ".part")
    try:
        with unproven.open("wb") as file:
            file.writelines(_pieces(pulled))
        unproven.replace(place)
    finally:
        unproven.unlink(missing_ok=True)
    if receipt is not None and pulled.receipt is not None:
        receipt.write_bytes(pulled.receipt.envelope + b"\n")
    click.echo(f"{dataset} version {pulled.version}: proven, root {pulled.root.hex()}, written to {out}")


def _order(shard: str, seed: int | None) -> BatchOrder:
    part, _, parts = shard.partition("/")
    if not (part.isascii() and part.isdigit() and parts.isascii() and parts.isdigit()):
        raise ConfigurationError(f"--shard {shard}: say K/N, as 0/4")
    return BatchOrder(shard=int(part), shards=int(parts), shuffle_seed=seed)


def _pieces(pulled: PulledDataset) -> Iterator[bytes]:
    """The bytes of a file that holds the records."""
    manifest = pulled.manifest.manifest
    if manifest.format == "arrow":
        from casemate.signing.arrow_form import arrow_stream  # noqa: PLC0415  # pyarrow is optional

        rows = (record for batch in pulled for record in batch.records)
        yield from arrow_stream(rows, manifest.schema)
        return
    if manifest.format == "csv":
        yield ",".join(column.name for column in manifest.schema).encode() + b"\n"
    for batch in pulled:
        yield join_rows(batch.records, encoding=manifest.format)


@click.command("describe")
@click.argument("dataset")
@click.option("--version", type=click.IntRange(min=1), default=None, show_default="what --label names")
@click.option("--label", default="latest", show_default=True, help="Instead of a version.")
@click.option("--croissant", is_flag=True, help="As Croissant 1.1 JSON-LD, for catalogues.")
@with_session
def describe(session: Session, dataset: str, version: int | None, label: str, croissant: bool) -> None:
    """Prints what is known of a version, as JSON."""
    datasets, named = Datasets(session), "" if version else label
    if croissant:
        click.echo(datasets.croissant(dataset, version or 0, label=named).decode())
        return
    found = datasets.describe(dataset, version or 0, label=named)
    said = {
        "dataset": dataset,
        "version": found.version,
        "rows": found.rows,
        "records": _records(bytes(found.manifest)),
        "root": found.root.hex(),
        "signer": found.signer_key_id,
        "promoted_at": found.promoted_at.ToJsonString(),
        "shredded_at": found.shredded_at.ToJsonString() if found.HasField("shredded_at") else None,
        "labels": list(found.labels),
    }
    click.echo(json.dumps(said, indent=1))


def _records(envelope: bytes) -> int:
    """How many records the manifest counts: a row of Arrow holds many."""
    return DatasetManifest.parse(dsse.peek_payload(envelope, DATASET_MANIFEST_TYPE)).records
