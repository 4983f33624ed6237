"""`casemate demo`: the whole story on throw-away state, thefts and tampering included."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import click
import numpy as np

from casemate.cli import digits
from casemate.cli.attacks import Attacks, Outcome
from casemate.cli.children import find_checkout
from casemate.cli.cluster import Cluster
from casemate.cli.environment import require_unset
from casemate.cli.ports import Ports
from casemate.cli.prediction import ask_as
from casemate.cli.state import StateDirectory
from casemate.cli.story import DATASET, MODEL, Story
from casemate.cli.table import render
from casemate.cli.up import DEFAULT_TRUST_DOMAIN
from casemate.errors import ConfigurationError

REQUIRED_ACCURACY = 0.95

MEASURES = (
    ("no token", "Access token on every call", "casemate.gate.core.verifier", "token checked, cached"),
    ("stolen token", "Token bound to its owner's certificate", "casemate.gate.core.peer", "certificate and binding"),
    ("TLS 1.2 client", "Mutual TLS 1.3, and no other version", "casemate.transport.floor", "mutual TLS 1.3"),
    ("unsigned dataset", "Signed manifest", "casemate.signing.dsse", "signature verified"),
    ("changed byte in upload", "Merkle root over the chunks", "casemate.signing.merkle", "chunk hashed"),
    ("rows swapped in PostgreSQL", "Rows sealed, their place bound in", "casemate.sealing.rows", "row sealed"),
    ("grant inserted by SQL", "MAC on every row of authority", "casemate.sealing.authority_rows", "row verified"),
    ("bit flipped in model file", "Signed and sealed models", "casemate.sealing.files", "model opened"),
)
"""Attack, the measure that stops it, the module that says the worst if it fails, and its cost in the bench."""


@dataclass(frozen=True, slots=True)
class Told:
    """What the story came to."""

    accuracy: float
    outcomes: tuple[Outcome, ...]

    @property
    def held(self) -> bool:
        """Whether everything was as it must be."""
        return self.accuracy > REQUIRED_ACCURACY and all(outcome.held for outcome in self.outcomes)


@click.command("demo")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
def demo_command(as_json: bool) -> None:
    """Tells the whole story on throw-away state and free ports; exits 0 only if everything held."""
    require_unset(os.environ)  # noqa: TID251  # where the environment enters
    begun = time.monotonic()
    told = asyncio.run(_run())
    costs = _measure_costs()
    _conclude(told, costs, time.monotonic() - begun, as_json=as_json)
    sys.exit(0 if told.held else 1)


async def _run() -> Told:
    root = Path(tempfile.mkdtemp(prefix="casemate-demo-"))
    cluster = Cluster(
        state=StateDirectory(root / "state"), ports=Ports.free(), trust_domain=DEFAULT_TRUST_DOMAIN, report=click.echo
    )
    try:
        click.echo("Casemate demo: three services and a database of their own, on throw-away state\n")
        begun = time.monotonic()
        await cluster.start()
        click.echo(f"0. Started: certificates made, database made, services healthy ({time.monotonic() - begun:.1f} s)")
        return await asyncio.to_thread(_tell, cluster)
    finally:
        await cluster.stop()
        await cluster.postgres.erase()
        shutil.rmtree(root, ignore_errors=True)


def _tell(cluster: Cluster) -> Told:
    story = Story(cluster)
    try:
        training, held_out = digits.split()
        records = digits.to_records(training)
        story.admit()
        pushed = story.supply(records, digits.SCHEMA)
        if pushed is None:
            raise ConfigurationError("the state is not fresh")
        click.echo(
            f"1. The supplier signed {pushed.rows} handwritten digits and pushed them: {DATASET} version "
            f"{pushed.version}\n   every row sealed, promoted, log entry {pushed.log_index}; root {pushed.root.hex()}"
        )
        pulled = story.pull()
        images = digits.from_records(pulled.records())
        click.echo(
            f"2. The trainer pulled version {pulled.version}; every batch is proven under the signed root, which is "
            f"{'the same' if pulled.root == pushed.root else 'ANOTHER'}"
        )
        onnx, measured = digits.train(images)
        story.publish(onnx, pulled.root, measured)
        click.echo(
            f"   trained on it (accuracy {measured:.3f} on a part kept back), "
            "and published a signed model that names the root"
        )
        seen = ask_as(story.session("caller"), MODEL, held_out.pixels)
        accuracy = float(np.mean(seen == held_out.digits))
        click.echo(
            f"3. A caller asked for {len(seen)} held-out images by an unmodified tritonclient: accuracy {accuracy:.3f}"
        )
        click.echo("\n".join("      " + line for line in digits.draw(held_out.pixels[0]).splitlines()))
        click.echo(f"      prediction: {seen[0]}, and it is a {held_out.digits[0]}")
        click.echo("4. What must fail:")
        outcomes = []
        for outcome in Attacks(cluster, story, records, digits.SCHEMA).all():
            outcomes.append(outcome)
            click.echo(f"   {'held' if outcome.held else 'BROKEN':<7}{outcome.name:<28}{outcome.answer}")
        return Told(accuracy, tuple(outcomes))
    finally:
        story.close()


def _measure_costs() -> Mapping[str, str]:
    """What each measure costs, by the bench of the checkout; about ten seconds."""
    click.echo("5. What it costs on this machine (ten seconds of measuring)")
    sys.path.insert(0, str(find_checkout()))
    costs = importlib.import_module("bench.costs")
    return {result.name: _quoted(result.value, result.unit) for result in costs.measure()}


def _quoted(value: float, unit: str) -> str:
    if value <= 0:
        return f"less than this machine's noise ({unit})"
    return f"{value:.2g} {unit}" if value < 10 else f"{value:.0f} {unit}"


def _conclude(told: Told, costs: Mapping[str, str], seconds: float, *, as_json: bool) -> None:
    by_name = {outcome.name: outcome for outcome in told.outcomes}
    rows = [
        (
            measure,
            f"{attack}: {by_name[attack].answer}" + ("" if by_name[attack].held else "  ** DID NOT HOLD **"),
            costs[cost],
            worst_if_it_fails(module),
        )
        for attack, measure, module, cost in MEASURES
    ]
    header = ("measure", "what it stopped just now", "what it cost", "the worst if it fails")
    click.echo("\n" + render(header, rows, (24, 30, 22, 46)))
    verdict = "Everything held" if told.held else "SOMETHING DID NOT HOLD"
    click.echo(f"\n{verdict}; accuracy {told.accuracy:.3f}; {seconds:.0f} s.")
    if as_json:
        click.echo(json.dumps({"held": told.held, "accuracy": told.accuracy, "rows": _as_objects(header, rows)}))


def _as_objects(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[dict[str, str]]:
    return [dict(zip(header, row, strict=True)) for row in rows]


def worst_if_it_fails(module: str) -> str:
    """What a module's own documentation says of its failure: its paragraph `If this fails:`."""
    text = inspect.getdoc(importlib.import_module(module)) or ""
    found = re.search(r"If this fails:\s*(.+?)(?:\n\n|\Z)", text, re.DOTALL)
    if found is None:
        raise ConfigurationError(f"{module} does not say what happens if it fails")
    return " ".join(found.group(1).split())
