"""The `casemate` command: its options, and one line for every error."""

from __future__ import annotations

import importlib
import logging
import sys
from dataclasses import dataclass
from pathlib import Path

import click

from casemate.cli.plain_text import plain
from casemate.errors import CasemateError, ConfigurationError

COMMANDS = {
    "up": ("casemate.cli.up", "Start everything on this machine; Ctrl-C stops it."),
    "demo": ("casemate.cli.demo", "Run the whole story on throw-away state."),
    "try": ("casemate.cli.attempts", "Three things to try against a running `up`."),
    "profile": ("casemate.cli.profile", "Named deployments to call, each as somebody."),
    "pki": ("casemate.cli.pki", "The development certificate authority."),
    "operator": ("casemate.cli.administration", "Operators, and the first of them."),
    "tenant": ("casemate.cli.administration", "Tenants."),
    "client": ("casemate.cli.administration", "Who may ask for tokens."),
    "grant": ("casemate.cli.administration", "Who may do what to which resource."),
    "issuer": ("casemate.cli.credentials", "External issuers, and who may speak for their subjects."),
    "token-key": ("casemate.cli.credentials", "The keys that sign access tokens."),
    "revoke": ("casemate.cli.revoke", "End tokens, sessions, clients, subjects and certificates at once."),
    "revocation": ("casemate.cli.listing", "What was revoked."),
    "signer": ("casemate.cli.administration", "Whose signatures count."),
    "dataset": ("casemate.cli.dataset", "Push, pull and describe signed datasets."),
    "kek": ("casemate.cli.kek", "Rotate key-encryption keys, and see what they wrap."),
    "model": ("casemate.cli.model", "Publish, list, label and reload signed models."),
    "release": ("casemate.cli.listing", "Which versions of models may be served."),
    "backup": ("casemate.cli.backup", "Back up, verify, and restore on an empty machine."),
    "log": ("casemate.cli.log", "Prove, verify and watch the transparency log."),
    "token": ("casemate.cli.token", "Print a token, for grpcurl and its kin."),
    "audit": ("casemate.cli.audit", "Whether the audit is whole, and why a call was refused."),
    "health": ("casemate.cli.health", "Ask a service whether it serves."),
}
"""Command → module and first line: a module is loaded only when its command runs."""


@dataclass(frozen=True, slots=True)
class Options:
    """What every command knows."""

    state: Path
    profile: str | None
    profiles: Path


class LazyGroup(click.Group):
    """Loads a command's module when it is asked for, so that `--help` is immediate."""

    def list_commands(self, _context: click.Context) -> list[str]:
        """All commands, in the order of the help."""
        return list(COMMANDS)

    def get_command(self, _context: click.Context, name: str) -> click.Command | None:
        """The command, loaded; nothing for an unknown name."""
        if name not in COMMANDS:
            return None
        module = importlib.import_module(COMMANDS[name][0])
        command: click.Command = getattr(module, f"{name.replace('-', '_')}_command")
        return command

    def format_commands(self, _context: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands, without loading them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.option(
    "--state",
    type=click.Path(path_type=Path, file_okay=False),
    default=None,
    help="State directory of the cluster on this machine [default: .casemate in the checkout].",
)
@click.option(
    "--profile", default=None, envvar="CASEMATE_PROFILE", help="Deployment to call; made by `casemate profile create`."
)
@click.option("--profiles", type=click.Path(path_type=Path, file_okay=False), default=None, hidden=True)
@click.pass_context
def command(context: click.Context, state: Path | None, profile: str | None, profiles: Path | None) -> None:
    """Casemate: a model server on which stolen tokens, dumped databases and tampered datasets are useless."""
    context.obj = Options(
        state=(state or _default_state()).absolute(),
        profile=profile,
        profiles=profiles or Path(click.get_app_dir("casemate")) / "profiles",
    )


def _default_state() -> Path:
    import casemate  # noqa: PLC0415  # only for its place

    root = Path(casemate.__file__).resolve().parents[2]
    return (root if (root / "services").is_dir() else Path.cwd()) / ".casemate"


def main() -> None:
    """Runs the command; prints our errors as one line each, and exits 1 on them."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    try:
        command(prog_name="casemate")
    except CasemateError as error:
        for violation in error.violations:
            if f"{violation.field} {violation.description}" == str(error):
                continue  # found on this machine: the error says it
            click.echo(plain(f"casemate: {violation.field}: {violation.description}"), err=True)
        # What this machine says itself may have lines.
        is_own = isinstance(error, ConfigurationError)
        click.echo(
            f"casemate: {error}" if is_own else plain(f"casemate: {error.code} / {error.reason}: {error}"), err=True
        )
        sys.exit(1)
    except OSError as error:
        # Files that people name; everything else that fails this way has an error of ours.
        click.echo(f"casemate: {error.filename or 'cannot go on'}: {error.strerror or error}", err=True)
        sys.exit(1)
