"""`casemate dataset pull|describe`."""

from __future__ import annotations

import json
from pathlib import Path

import click

from casemate.cli.connection import tenant_of, with_session
from casemate.cli.keys import load_public_key
from casemate.client.datasets import Datasets
from casemate.client.session import Session


@click.command("pull")
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


@click.command("describe")
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
