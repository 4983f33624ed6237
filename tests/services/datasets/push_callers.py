"""Our own client in front of a service of these tests, which no auth service stands behind."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from casemate.client.datasets import Datasets
from casemate.signing.dataset_manifest import MAXIMUM_MESSAGE_BYTES
from casemate.transport.certificates import CertificateSource, load_pair
from casemate.transport.channel import RotatingChannel
from tests.services.datasets.world import DOMAIN, World

SCOPES = "datasets.read datasets.write"


class WorldSession:
    """What `Datasets` asks of a session, with tokens that the world signs."""

    def __init__(self, world: World, name: str) -> None:
        directory = world.leaf("client", tenant="acme", name=name)
        self.caller = load_pair(directory).spiffe_id
        self._channel = RotatingChannel(
            target=f"127.0.0.1:{world.running.port}",
            service_name=self.service_name("datasets"),
            source=CertificateSource(directory),
            max_message_bytes=MAXIMUM_MESSAGE_BYTES,
            call_metadata=lambda _pair: [
                ("authorization", f"Bearer {world._token(directory, 'acme', name, SCOPES)}"),
            ],
        )

    def channel(self, _service: str) -> RotatingChannel:
        return self._channel

    def service_name(self, service: str) -> str:
        return f"{service}.{DOMAIN}"

    def close(self) -> None:
        self._channel.close()


@contextmanager
def client_of(world: World, name: str = "sender") -> Iterator[Datasets]:
    """Our client, synchronous: to be called in a thread."""
    session = WorldSession(world, name)
    try:
        yield Datasets(session)
    finally:
        session.close()
