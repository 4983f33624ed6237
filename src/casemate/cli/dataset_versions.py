"""`casemate dataset list|label|labels|lineage|compromise|retain`: what is known and decided of versions."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import click

from casemate.cli.connection import with_session
from casemate.cli.listing import moment, show, with_json
from casemate.client.datasets import Datasets
from casemate.client.session import Session
from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.errors import ConfigurationError


@click.command("list")
@with_json
@with_session
def list_datasets(session: Session, as_json: bool) -> None:
    """Lists the datasets of your tenant that you may read, by the newest version of each."""
    show(map(_listed, Datasets(session).listed()), as_json=as_json)


@click.command("label")
@click.argument("dataset")
@click.argument("label")
@click.option("--version", type=click.IntRange(min=1), default=None, help="The version that it is to name.")
@click.option("--remove", is_flag=True, help="Take the label away.")
@click.option(
    "--from", "expected", type=click.IntRange(min=0), default=None, help="What it names now [default: asked]."
)
@with_session
def label(session: Session, dataset: str, label: str, version: int | None, remove: bool, expected: int | None) -> None:
    """Has LABEL name another version of DATASET, if nobody moved it meanwhile."""
    if (version is None) != remove:
        raise ConfigurationError("say either --version or --remove")
    datasets = Datasets(session)
    before = datasets.labels(dataset).get(label, 0) if expected is None else expected
    after = datasets.set_label(dataset, label, version or 0, expected=before)
    click.echo(json.dumps(after, sort_keys=True))


@click.command("labels")
@click.argument("dataset")
@with_session
def labels(session: Session, dataset: str) -> None:
    """Prints the labels of DATASET and the versions that they name, as JSON."""
    click.echo(json.dumps(Datasets(session).labels(dataset), sort_keys=True))


@click.command("lineage")
@click.argument("dataset")
@click.option("--version", type=click.IntRange(min=1), default=None, show_default="newest")
@click.option("--label", default="", help="Instead of a version.")
@with_session
def lineage(session: Session, dataset: str, version: int | None, label: str) -> None:
    """Prints which version a version came from, and which models were trained on it, as JSON."""
    found = Datasets(session).lineage(dataset, version or 0, label=label)
    said = {
        "dataset": dataset,
        "version": found.version,
        "root": found.root.hex(),
        "previous_root": found.previous_root.hex() or None,
        "signer": found.signer_key_id,
        "quarantined": found.quarantined,
        "models": [_model(model) for model in found.models],
    }
    click.echo(json.dumps(said, indent=1))


@click.command("compromise")
@click.argument("key_id")
@click.option("--since", type=click.DateTime(), default=None, help="UTC [default: the declared compromise].")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a version.")
@with_session
def compromise(session: Session, key_id: str, since: datetime | None, as_json: bool) -> None:
    """Prints what the supplier's key KEY_ID signed since a date, and which models were trained on it.

    With --since it says what a compromise from that date on would reach, before it is
    declared by `casemate signer revoke`.
    """
    moment = None if since is None else since.replace(tzinfo=UTC)
    count, models = 0, set[tuple[str, str, int]]()
    for found in Datasets(session).signed_since(key_id, moment):
        count += 1
        models |= {(found.tenant, model.model, model.number) for model in found.models}
        click.echo(json.dumps(_affected(found)) if as_json else _affected_shown(found))
    if not as_json:
        click.echo(f"{count} versions signed since, {len(models)} models trained on them")


@click.command("retain")
@click.argument("dataset")
@click.option("--keep", type=click.IntRange(min=0), default=0, help="So many of the newest versions; 0: any number.")
@click.option("--days", type=click.IntRange(min=1), default=None, help="Each so long; without end if not given.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@with_session
def retain(session: Session, dataset: str, keep: int, days: int | None, yes: bool) -> None:
    """Sets how long versions of DATASET are kept. What is beyond is shredded, for ever.

    What is too old goes within a minute, and what newer versions took the place of a week after they did, or however
    long the service's CASEMATE_DATASETS_SURPLUS_KEPT_FOR says.
    """
    said = ", ".join(filter(None, (f"the newest {keep}" if keep else "", f"each {days} days" if days else "")))
    if said and not yes:
        click.confirm(f"Keep {said}, and shred what is beyond? Nobody can undo it", abort=True)
    index = Datasets(session).set_retention(
        dataset, keep_versions=keep, keep_for=None if days is None else timedelta(days=days)
    )
    click.echo(f"{dataset}: {said or 'everything is kept'}; log entry {index}")


def _listed(found: messages.ListedDataset) -> dict[str, object]:
    return {
        "dataset": found.dataset,
        "version": found.version,
        "rows": found.rows,
        "root": found.root.hex(),
        "promoted": moment(found, "promoted_at"),
        "state": "shredded" if found.shredded else "readable",
    }


def _model(model: messages.TrainedModel) -> dict[str, object]:
    return {
        "model": model.model,
        "version": model.number,
        "manifest_sha256": model.manifest_sha256.hex(),
        "signer": model.signer_key_id,
        "log_index": model.log_index,
        "released": model.released,
        "labels": list(model.labels),
    }


def _affected(found: messages.ReportSignerResponse) -> dict[str, object]:
    return {
        "tenant": found.tenant,
        "dataset": found.dataset,
        "version": found.version,
        "root": found.root.hex(),
        "promoted_at": found.promoted_at.ToJsonString(),
        "quarantined": found.quarantined,
        "shredded": found.shredded,
        "models": [_model(model) for model in found.models],
    }


def _affected_shown(found: messages.ReportSignerResponse) -> str:
    states = [name for name, holds in (("quarantined", found.quarantined), ("shredded", found.shredded)) if holds]
    head = f"{found.tenant}/{found.dataset} version {found.version}: {', '.join(states) or 'readable'}"
    lines = [
        f"  {model.model} version {model.number}{', may be served' if model.released else ''}" for model in found.models
    ]
    return "\n".join([head, *(lines or ["  no model was trained on it"])])
