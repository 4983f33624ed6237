"""`casemate pki root …`: another root for the development certificate authority, without a failed call."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import click

from casemate.cli.certificates import Certificates
from casemate.cli.deployment import Deployment
from casemate.cli.deployment_options import open_deployment, with_deployment
from casemate.cli.main import Options
from casemate.cli.state import StateDirectory
from casemate.clock import SystemClock
from casemate.pki.succession import Succession
from casemate.sealing.local import LocalKeyRing

_KEPT = "Whoever runs `casemate pki keep` gives it to every leaf. See that they have it"


class _Roots:
    """The authority of a state directory, or that of a deployment, whose leaves another process writes."""

    def __init__(self, state: StateDirectory, trust_domain: str, deployment: Deployment | None) -> None:
        self._state = state
        self._trust_domain = trust_domain
        self._deployment = deployment

    def prepare(self) -> str:
        if self._deployment is not None:
            self._deployment.prepare_root()
            return f"The next root is made. {_KEPT} wherever a leaf was carried; then: casemate pki root switch"
        self._succession().prepare()
        self._certificates().give_roots()
        return "Both roots are trusted. Give ca.pem to whoever holds a leaf elsewhere; then: casemate pki root switch"

    def switch(self) -> str:
        if self._deployment is not None:
            self._deployment.switch_root()
            return f"Leaves come from the new root. {_KEPT} wherever one was carried; then: casemate pki root finish"
        self._succession().switch()
        self._certificates().reissue_all()
        return "Leaves are of the new root. When nobody has one of the old: casemate pki root finish"

    def finish(self) -> str:
        if self._deployment is not None:
            self._deployment.finish_root()
        else:
            self._succession().finish()
            self._certificates().give_roots()
        return "The new root alone is trusted."

    def status(self) -> str:
        return self._succession().step.value if self._deployment is None else self._deployment.root_step

    def _succession(self) -> Succession:
        ring, clock = LocalKeyRing.load(self._state.kek("pki")), SystemClock()
        return Succession(
            directory=self._state.authority, trust_domain=self._trust_domain, key_encryption=ring, clock=clock
        )

    def _certificates(self) -> Certificates:
        return Certificates.open(self._state, trust_domain=self._trust_domain, report=click.echo)


@click.group("root")
def root_command() -> None:
    """Changes the root in three steps: prepare, switch, finish. See docs/runbooks/rotation.md."""


def _step(name: str, does: str, act: Callable[[_Roots], str]) -> None:
    @root_command.command(name, help=does)
    @click.option("--deployment", "deployed", is_flag=True, help="Of what `pki keep` keeps, not of --state.")
    @with_deployment
    @click.pass_obj
    def command(
        options: Options, deployed: bool, authority: Path, issued: Path, trust_domain: str, lifetime: timedelta
    ) -> None:
        deployment = open_deployment(authority, issued, trust_domain, lifetime) if deployed else None
        click.echo(act(_Roots(StateDirectory(options.state), trust_domain, deployment)))


_step("prepare", "Makes the next root, and has every leaf trust both.", _Roots.prepare)
_step("switch", "Issues every leaf anew under the next root; the old one stays trusted.", _Roots.switch)
_step("finish", "Has the old root trusted no more.", _Roots.finish)
_step("status", "Says how far a change of roots is: settled, prepared or switched.", _Roots.status)
