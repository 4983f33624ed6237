"""Two replicas of each service on one database, and callers who count what fails."""

from __future__ import annotations

import asyncio
import shutil
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np

from casemate.cli.certificates import OPERATOR
from casemate.cli.children import DATABASES, Launcher, find_checkout
from casemate.cli.cluster import Cluster
from casemate.cli.health import serving
from casemate.cli.ports import Ports
from casemate.cli.state import SERVICES, StateDirectory
from casemate.cli.story import DATASET, MODEL, Story
from casemate.cli.supervisor import Child, ChildCommand
from casemate.client.datasets import Datasets
from casemate.client.session import Endpoints, Session
from casemate.open_inference.v2 import open_inference_pb2 as inference
from casemate.storage.migrations import ADDITIVE
from casemate.transport.certificates import CertificateSource
from casemate.transport.options import RECONNECTED_WITHIN

DOMAIN = "casemate.internal"
INFER = "/inference.GRPCInferenceService/ModelInfer"


class Replicas:
    """A cluster with a second replica of each service beside the first."""

    def __init__(self, root: Path) -> None:
        self.state = StateDirectory(root / "state")
        self.cluster = Cluster(state=self.state, ports=Ports.free(), trust_domain=DOMAIN, report=print)
        self.ports = (self.cluster.ports, Ports.free())
        self.children: dict[str, list[Child]] = {}

    @asynccontextmanager
    async def running(self):
        try:
            await self.cluster.start()
            await asyncio.to_thread(Story(self.cluster).tell)
            self.children = {service: [self.cluster.child(service)] for service in SERVICES}
            for service in SERVICES:
                child = Child(self.command(service, 1), on_restart=lambda *_: None)
                self.children[service].append(child)
                await child.start()
                await self.healthy(service, 1)
            yield self
        finally:
            await asyncio.gather(*(pair[1].stop() for pair in self.children.values() if len(pair) > 1))
            await self.cluster.stop()
            await self.cluster.postgres.erase()

    def command(self, service: str, number: int, *, checkout: Path | None = None) -> ChildCommand:
        """How a replica is run, from this checkout or from another version's."""
        databases = {
            name: replace(self.cluster.postgres.superuser, name=name, user=name, password=self.state.password(name))
            for names in DATABASES.values()
            for name in names
        }
        launcher = Launcher(
            state=self.state,
            ports=self.ports[number],
            trust_domain=DOMAIN,
            checkout=checkout or find_checkout(),
            databases=databases,
        )
        command = launcher.service(service)
        own = {f"CASEMATE_{service.upper()}_AUDIT_FILE": str(self.state.root / "audit" / f"{service}-{number}.jsonl")}
        return replace(command, environment={**command.environment, **own})

    async def roll(self, *services: str, checkout: Path | None = None) -> None:
        """Ends and starts one replica after the other; the next only when callers have found the last again."""
        for service in services or SERVICES:
            for number in (0, 1):
                await self.children[service][number].stop(grace_seconds=30)
                child = Child(self.command(service, number, checkout=checkout), on_restart=lambda *_: None)
                self.children[service][number] = child
                await child.start()
                await self.healthy(service, number)
                await asyncio.sleep(RECONNECTED_WITHIN.total_seconds())
        # So that the cluster ends these, and not the ones that are gone.
        self.cluster._children[:] = [self.children[service][0] for service in SERVICES]

    async def healthy(self, service: str, number: int) -> None:
        source = CertificateSource(self.state.client_leaf(*OPERATOR))
        address = f"127.0.0.1:{self.ports[number].grpc[service]}"
        async with asyncio.timeout(60):
            while not await asyncio.to_thread(serving, address, service, source, DOMAIN):
                assert not self.children[service][number].restarts, (self.state.log(service)).read_text()[-2000:]
                await asyncio.sleep(0.05)

    def session(self, tenant: str, name: str) -> Session:
        """A caller's session over both replicas of each, by client-side round robin."""
        both = {
            service: "ipv4:" + ",".join(f"127.0.0.1:{ports.grpc[service]}" for ports in self.ports)
            for service in SERVICES
        }
        source = CertificateSource(self.state.client_leaf(tenant, name))
        source.start()
        return Session(source=source, endpoints=Endpoints(**both), trust_domain=DOMAIN)

    def next_version(self, folder: Path) -> Path:
        """Another checkout: these services, with one more migration each, that only adds."""
        shutil.copytree(find_checkout() / "services", folder / "services")
        for service, table in (("auth", "client"), ("datasets", "uploads")):
            schema = folder / "services" / service / "schema"
            number = len(list(schema.glob("*.sql"))) + 1
            (schema / f"{number:04}_note.sql").write_text(
                f"{ADDITIVE}\nALTER TABLE {table} ADD COLUMN note text NOT NULL DEFAULT '';\n"
                "CREATE TABLE note (id text PRIMARY KEY);\n"
            )
        return folder


class Load:
    """Callers in threads, one for each kind of call; every call that fails is kept."""

    def __init__(self, replicas: Replicas) -> None:
        self.counts: Counter[str] = Counter()
        self.failures: list[tuple[str, Exception]] = []
        self._done = threading.Event()
        caller, trainer = replicas.session("acme", "caller"), replicas.session("acme", "trainer")
        tokens = replicas.session("acme", "caller")
        self.sessions = [caller, trainer, tokens]
        datasets = Datasets(trainer)
        infer = caller.channel("inference").unary_unary(
            INFER,
            request_serializer=inference.ModelInferRequest.SerializeToString,
            response_deserializer=inference.ModelInferResponse.FromString,
        )

        def ask_for_token() -> None:
            tokens.forget_tokens()
            tokens.token("inference")

        kinds: dict[str, Callable[[], object]] = {
            "predictions": lambda: infer(_question(), timeout=20),
            "datasets": lambda: datasets.describe(DATASET, 1),
            "tokens": ask_for_token,
        }
        self._threads = [threading.Thread(target=self._run, args=kind) for kind in kinds.items()]

    def __enter__(self) -> Load:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._done.set()
        for thread in self._threads:
            thread.join()
        for session in self.sessions:
            session.close()
            session.source.close()

    async def goes_on(self, calls: int = 10) -> None:
        """Returns when every kind of call was made so many times more."""
        seen = Counter(self.counts)
        async with asyncio.timeout(60):
            while any(self.counts[kind] < seen[kind] + calls for kind in ("predictions", "datasets", "tokens")):
                await asyncio.sleep(0.02)

    def _run(self, kind: str, call: Callable[[], object]) -> None:
        while not self._done.wait(0.005):
            try:
                call()
            except Exception as error:  # noqa: BLE001  # every kind of failure is what is counted
                self.failures.append((kind, error))
            self.counts[kind] += 1


def _question() -> inference.ModelInferRequest:
    return inference.ModelInferRequest(
        model_name=MODEL,
        inputs=[inference.ModelInferRequest.InferInputTensor(name="images", datatype="FP32", shape=[1, 64])],
        raw_input_contents=[np.zeros((1, 64), dtype=np.float32).tobytes()],
    )
