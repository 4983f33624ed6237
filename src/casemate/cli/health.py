"""`casemate health`, and the same question for the supervisor."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from casemate.cli.certificates import OPERATOR
from casemate.cli.connection import Place
from casemate.cli.main import Options
from casemate.cli.state import SERVICES, StateDirectory
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel

TIMEOUT_SECONDS = 2.0


def serving(address: str, service: str, source: CertificateSource, trust_domain: str) -> bool:
    """Whether the service at `address` proves its name and says SERVING. Waits two seconds at most."""
    return _asked(address, service, source, trust_domain) == int(health_pb2.HealthCheckResponse.SERVING)


def answering(address: str, service: str, source: CertificateSource, trust_domain: str) -> bool:
    """Whether it proves its name and answers at all: one that does not serve for now need not be killed."""
    return _asked(address, service, source, trust_domain) is not None


def _asked(address: str, service: str, source: CertificateSource, trust_domain: str) -> int | None:
    channel = RotatingChannel(target=address, service_name=f"{service}.{trust_domain}", source=source)
    try:
        answer = health_pb2_grpc.HealthStub(channel).Check(
            health_pb2.HealthCheckRequest(), timeout=TIMEOUT_SECONDS, wait_for_ready=False
        )
    except grpc.RpcError:
        return None
    finally:
        channel.close()
    return int(answer.status)


@click.command("health")
@click.argument("service", type=click.Choice(SERVICES))
@click.option("--address", default=None, help="host:port of the service [default: of the cluster on this machine].")
@click.option(
    "--identity",
    type=click.Path(path_type=Path, exists=True),
    default=None,
    help="Leaf directory [default: the operator's].",
)
@click.option("--trust-domain", default=None, help="SPIFFE trust domain [default: the identity's].")
@click.option("--answers", is_flag=True, help="Be content with any answer: whether it lives, not whether it serves.")
@click.pass_obj
def health_command(
    options: Options,
    service: str,
    address: str | None,
    identity: Path | None,
    trust_domain: str | None,
    *,
    answers: bool,
) -> None:
    """Exits 0 when SERVICE proves its name and says that it serves."""
    place = Place.of(options)
    source = CertificateSource(identity or place.identity or StateDirectory(options.state).client_leaf(*OPERATOR))
    whom = (address or place.endpoints.of(service), service, source, trust_domain or source.current.trust_domain)
    if answers:
        healthy = answering(*whom)
        click.echo("ANSWERS" if healthy else "DOES NOT ANSWER")
    else:
        healthy = serving(*whom)
        click.echo("SERVING" if healthy else "NOT SERVING")
    sys.exit(0 if healthy else 1)
