"""The options by which a command finds a deployment of containers."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import click

from casemate.cli.deployment import Deployment, DeploymentFolders
from casemate.clock import SystemClock
from casemate.settings import duration


class _Lifetime(click.ParamType[timedelta]):
    name = "duration"

    def convert(self, value: object, parameter: click.Parameter | None, context: click.Context | None) -> timedelta:
        """A duration such as `24h`."""
        try:
            return value if isinstance(value, timedelta) else duration(str(value))
        except ValueError as error:
            self.fail(str(error), parameter, context)


_OPTIONS = (
    click.option(
        "--authority",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("/var/lib/casemate/authority"),
        show_default=True,
        help="Folder of the authority's own keys.",
    ),
    click.option(
        "--issued",
        type=click.Path(path_type=Path, file_okay=False),
        default=Path("/var/lib/casemate/issued"),
        show_default=True,
        help="Folder of what the others are given, one folder each.",
    ),
    click.option("--trust-domain", default="casemate.internal", show_default=True, envvar="CASEMATE_TRUST_DOMAIN"),
    click.option(
        "--lifetime",
        type=_Lifetime(),
        default="24h",
        show_default=True,
        envvar="CASEMATE_LEAF_LIFETIME",
        help="How long a leaf lives; renewed at half.",
    ),
)


def with_deployment(command: Callable[..., None]) -> Callable[..., None]:
    """Gives a command the options that name a deployment."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def open_deployment(
    authority: Path, issued: Path, trust_domain: str, lifetime: timedelta, *, create: bool = False
) -> Deployment:
    """The deployment that those options name.

    Raises:
        ConfigurationError: as `Deployment.open`.
    """
    return Deployment.open(
        DeploymentFolders(authority=authority, issued=issued),
        trust_domain=trust_domain,
        lifetime=lifetime,
        clock=SystemClock(),
        report=click.echo,
        create=create,
    )
