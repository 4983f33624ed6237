"""`casemate pki root …`: another root for the development certificate authority, without a failed call."""

from __future__ import annotations

import click

from casemate.cli.certificates import Certificates
from casemate.cli.main import Options
from casemate.cli.state import StateDirectory
from casemate.clock import SystemClock
from casemate.pki.succession import Succession
from casemate.sealing.local import LocalKeyRing

_DOMAIN = click.option("--trust-domain", default="casemate.internal", show_default=True)


@click.group("root")
def root_command() -> None:
    """Changes the root in three steps: prepare, switch, finish. See docs/runbooks/rotation.md."""


@root_command.command("prepare")
@_DOMAIN
@click.pass_obj
def prepare(options: Options, trust_domain: str) -> None:
    """Makes the next root, and has every leaf of the state directory trust both."""
    _succession(options, trust_domain).prepare()
    _open(options, trust_domain).give_roots()
    click.echo("Both roots are trusted. Give ca.pem to whoever holds a leaf elsewhere; then: casemate pki root switch")


@root_command.command("switch")
@_DOMAIN
@click.pass_obj
def switch(options: Options, trust_domain: str) -> None:
    """Issues every leaf anew under the next root; the old one stays trusted."""
    _succession(options, trust_domain).switch()
    _open(options, trust_domain).reissue_all()
    click.echo("Leaves are of the new root. When nobody has one of the old: casemate pki root finish")


@root_command.command("finish")
@_DOMAIN
@click.pass_obj
def finish(options: Options, trust_domain: str) -> None:
    """Has the old root trusted no more."""
    _succession(options, trust_domain).finish()
    _open(options, trust_domain).give_roots()
    click.echo("The new root alone is trusted.")


@root_command.command("status")
@_DOMAIN
@click.pass_obj
def status(options: Options, trust_domain: str) -> None:
    """Says how far a change of roots is: settled, prepared or switched."""
    click.echo(_succession(options, trust_domain).step.value)


def _succession(options: Options, trust_domain: str) -> Succession:
    state = StateDirectory(options.state)
    ring = LocalKeyRing.load(state.kek("pki"))
    return Succession(directory=state.authority, trust_domain=trust_domain, key_encryption=ring, clock=SystemClock())


def _open(options: Options, trust_domain: str) -> Certificates:
    return Certificates.open(StateDirectory(options.state), trust_domain=trust_domain, report=click.echo)
