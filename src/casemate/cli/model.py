"""`casemate model …`: publish, list, label and reload."""

from __future__ import annotations

import json
from pathlib import Path

import click

from casemate.cli.connection import tenant_of, with_session
from casemate.cli.keys import load_signing_key
from casemate.cli.listing import show, with_json
from casemate.client.labels import Labels
from casemate.client.models import ListedModel, Models
from casemate.client.session import Session

_UPSTREAM = "upstream.json"


@click.group("model")
def model_command() -> None:
    """Signed models."""


@model_command.command("publish")
@click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option(
    "--options",
    "serving",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="serving.json: batching, limits and samples to warm up with, signed with the model.",
)
@click.option("--name", required=True, help="Name of the model.")
@click.option("--number", type=click.IntRange(min=1), required=True, help="Number of this version.")
@click.option("--key", type=click.Path(path_type=Path, exists=True), required=True, help="The publisher's private key.")
@click.option("--dataset-root", "roots", multiple=True, required=True, help="Root (hex) of a dataset trained on.")
@click.option("--metric", "metrics", multiple=True, metavar="NAME=VALUE", help="Measured quality, signed with it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@with_session
def publish(
    session: Session,
    file: Path,
    serving: Path | None,
    name: str,
    number: int,
    key: Path,
    roots: tuple[str, ...],
    metrics: tuple[str, ...],
    as_json: bool,
) -> None:
    """Signs FILE as a version of a model, naming the datasets it was trained on, and publishes it.

    FILE is an ONNX model, or an `upstream.json` that names a back end's.
    """
    files = {_UPSTREAM if file.name == _UPSTREAM else "model.onnx": file.read_bytes()}
    if serving is not None:
        files["serving.json"] = serving.read_bytes()
    done = Models(session).publish(
        files,
        tenant=tenant_of(session),
        model=name,
        number=number,
        signing_key=load_signing_key(key),
        dataset_roots=[_root(text) for text in roots],
        metrics=dict(_metric(text) for text in metrics),
    )
    if as_json:
        said = {"model": name, "number": done.number, "digest": done.manifest_sha256.hex()}
        click.echo(json.dumps(said))
    else:
        click.echo(f"{name} version {done.number} is served; digest {done.manifest_sha256.hex()}")


@model_command.command("list")
@with_json
@with_session
def list_models(session: Session, as_json: bool) -> None:
    """Lists the models that you may describe: each version with its state, and what labels name.

    States are those of the replica that answers.
    """
    show(map(_with_versions if as_json else _in_short, Models(session).list()), as_json=as_json)


@model_command.command("label")
@click.argument("name")
@click.argument("label")
@click.option("--number", type=click.IntRange(min=0), required=True, help="The version; 0 takes the label away.")
@click.option("--digest", default="", help="The version's digest (hex), as `model publish` printed it.")
@click.option("--key", type=click.Path(path_type=Path, exists=True), required=True, help="The operator's private key.")
@click.option("--tenant", help="Of the model; yours if you name none.")
@with_session
def label_version(
    session: Session, name: str, label: str, number: int, digest: str, key: Path, tenant: str | None
) -> None:
    """Has LABEL name a version of model NAME; `stable` is what requests without a version get.

    The only way back to an older version: it takes your token and the operator's key.
    """
    labels = Labels(session).set(
        tenant=tenant or tenant_of(session),
        model=name,
        label=label,
        number=number,
        manifest_sha256=_root(digest, "--digest") if number else b"",
        signing_key=load_signing_key(key),
    )
    click.echo("  ".join(f"{each}={labels[each]}" for each in sorted(labels)) or f"{name} has no label")


@model_command.command("reload")
@click.argument("name")
@click.option("--number", type=click.IntRange(min=1), default=None, show_default="newest")
@with_session
def reload(session: Session, name: str, number: int | None) -> None:
    """Has the service verify every stored byte again and load the version anew."""
    loaded = Models(session).reload(name, number or 0)
    click.echo(f"{name} version {loaded} verified and loaded")


def _in_short(model: ListedModel) -> dict[str, object]:
    return {
        "model": model.name,
        "versions": [f"{one.number}:{one.state}" for one in model.versions],
        "labels": [f"{name}={number}" for name, number in sorted(model.labels.items())],
    }


def _with_versions(model: ListedModel) -> dict[str, object]:
    versions = [
        {
            "number": one.number,
            "state": one.state,
            "reason": one.reason or None,
            "manifest_sha256": one.manifest_sha256.hex(),
            "signer_key_id": one.signer_key_id,
        }
        for one in model.versions
    ]
    return {"model": model.name, "versions": versions, "labels": dict(sorted(model.labels.items()))}


def _root(text: str, option: str = "--dataset-root") -> bytes:
    try:
        root = bytes.fromhex(text)
    except ValueError:
        raise click.BadParameter("not hexadecimal", param_hint=option) from None
    if len(root) != 32:
        raise click.BadParameter("not 32 bytes", param_hint=option)
    return root


def _metric(text: str) -> tuple[str, float]:
    name, _, value = text.partition("=")
    try:
        return name, float(value)
    except ValueError:
        raise click.BadParameter("give NAME=NUMBER", param_hint="--metric") from None
