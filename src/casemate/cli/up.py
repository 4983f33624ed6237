"""`casemate up`: the cluster on this machine, until Ctrl-C."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shlex
import signal
import sys
import time
from pathlib import Path

import click

from casemate.cli.audiences import RememberedAudiences
from casemate.cli.cluster import Cluster
from casemate.cli.environment import require_unset
from casemate.cli.main import Options
from casemate.cli.ports import Ports
from casemate.cli.state import SERVICES, StateDirectory

DEFAULT_TRUST_DOMAIN = "casemate.internal"


@click.command("up")
@click.option("--trust-domain", default=DEFAULT_TRUST_DOMAIN, show_default=True, help="SPIFFE trust domain.")
@click.option("--seed/--no-seed", default=True, help="Publish the digits model on first start.")
@click.option("--free-ports", is_flag=True, help="Listen on ports that are free, not on the documented ones.")
@click.option(
    "--audience",
    "audiences",
    multiple=True,
    metavar="NAME=SCOPE,…",
    help="Another team's service that tokens may be for, and that may follow the trust feed (svc/NAME). Remembered; "
    "NAME= forgets it.",
)
@click.option(
    "--inference-workers",
    type=click.IntRange(1, 64),
    default=1,
    show_default=True,
    metavar="N",
    help="Processes of inference on its one port.",
)
@click.pass_obj
def up_command(
    options: Options,
    trust_domain: str,
    seed: bool,
    free_ports: bool,
    inference_workers: int,
    audiences: tuple[str, ...],
) -> None:
    """Starts auth, inference, datasets and their database, and keeps them running.

    State lies in the state directory and survives. Certificates are renewed at half
    their life. A service that dies is started again.
    """
    require_unset(os.environ)  # noqa: TID251  # where the environment enters
    ports = Ports.free() if free_ports else Ports.fixed()
    state = StateDirectory(options.state)
    others = RememberedAudiences(state.audiences, audiences)
    cluster = Cluster(
        state=state,
        ports=ports,
        trust_domain=trust_domain,
        report=say,
        inference_workers=inference_workers,
        audiences=others.setting,
    )
    asyncio.run(_run(state, cluster, others, seed=seed))


def say(line: str) -> None:
    """One line for the person at the terminal."""
    click.echo(line)


def _say_once(marker: Path, lines: str) -> None:
    """Says what a person reads once; the marker remembers."""
    if not marker.exists():
        say(lines)
        marker.touch(mode=0o600)


async def _run(state: StateDirectory, cluster: Cluster, others: RememberedAudiences, *, seed: bool) -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        loop.add_signal_handler(number, stop.set)
    begun = time.monotonic()
    first = not (state.root / "seeded").exists()
    say(f"Starting Casemate on {state.root}" + (" (first start: keys, database, certificates)" if first else ""))
    starting = asyncio.create_task(_start(cluster, seed=seed and first))
    stopped = asyncio.create_task(stop.wait())
    try:
        await asyncio.wait((starting, stopped), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            others.keep()
            _announce(cluster, others, time.monotonic() - begun)
            await stopped
    finally:
        starting.cancel()
        with contextlib.suppress(BaseException):
            await starting
        if cluster.started:
            say("Stopping")
            await cluster.stop()
            say("Stopped; data and keys are kept")


async def _start(cluster: Cluster, *, seed: bool) -> None:
    await cluster.start()
    if seed:
        from casemate.cli.story import Story  # noqa: PLC0415  # loads scikit-learn

        say("Publishing the first model: signed digits, trained on a dataset that is proven (once)")
        await asyncio.to_thread(lambda: Story(cluster).tell())
        (cluster.state.root / "seeded").touch()


def _announce(cluster: Cluster, others: RememberedAudiences, seconds: float) -> None:
    casemate = shlex.join([str(Path(sys.executable).parent / "casemate"), "--state", str(cluster.state.root)])
    say(f"\nReady in {seconds:.1f} s. mutual TLS 1.3 only, on loopback:")
    for service in SERVICES:
        port, metrics = cluster.ports.grpc[service], cluster.ports.metrics[service]
        say(f"  {service:<10} 127.0.0.1:{port}   metrics https://127.0.0.1:{metrics}/metrics")
        if service in cluster.ports.http:
            say(f"  {'':<10} OAuth 2 over HTTPS: https://127.0.0.1:{cluster.ports.http[service]}/oauth2/token")
    for name, scopes in others.scopes.items():
        say(f"  tokens may also be for {name}: {scopes} (remembered; --audience {name}= forgets it)")
    say("\nFrom any other terminal:")
    say(f"  {casemate} try predict   # ask for a prediction, as a caller with a certificate")
    say(f"  {casemate} try steal     # use the caller's token with another certificate")
    say(f"  {casemate} try rows      # read the dataset's rows straight from PostgreSQL")
    database = cluster.postgres.data_directory
    say(f"\nEverything lies in {cluster.state.root}; the database in {database}.")
    _say_once(
        cluster.state.root / "kek.explained",
        f"\nSaid once: the key-encryption keys are files in {cluster.state.root / 'kek'}. Without them nothing opens "
        "again:\nno dataset, no model, no backup. Copy that folder to another place, apart from the backups, which "
        "leave it out\n(casemate backup create).\n",
    )
    say("Ctrl-C stops everything and keeps the data.")
