"""Several real workers of the service on one port, beside a house that publishes for them."""

from __future__ import annotations

import http.client
import json
import os
import queue
import re
import signal
import ssl
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import grpc

from casemate.auth.v1 import trust_service_pb2, trust_service_pb2_grpc
from casemate.gate.adapters.records import snapshot_to_message
from casemate.open_inference.v2 import open_inference_pb2 as wire
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from casemate.transport.server import build_server, registered
from services.inference.servicers import OPEN_INFERENCE
from tests.services.inference.house import PATIENCE, House
from tests.support.authority import LeafFactory

ROOT = Path(__file__).parents[3]
INFER = f"/{OPEN_INFERENCE}/ModelInfer"


class Feed(trust_service_pb2_grpc.TrustServiceServicer):
    """The house's trust, as auth would push it."""

    def __init__(self, house: House) -> None:
        self._house = house
        self.ended = threading.Event()

    def WatchTrust(self, request, context):  # noqa: N802  # the protocol's name
        told = None
        while context.is_active() and not self.ended.is_set():
            current = self._house.trust.state.current
            news = trust_service_pb2.WatchTrustResponse(epoch=current.epoch, sequence=current.sequence)
            if current is not told and current.sequence != request.sequence:
                news.snapshot.CopyFrom(snapshot_to_message(current))
            else:
                news.heartbeat.SetInParent()
            told = current
            yield news
            self.ended.wait(0.5)


class Hall:
    """`python -m services.inference --workers 2`, over the repository, key and trust of a house."""

    def __init__(self, house: House, leaf: LeafFactory, directory: Path, *, workers: int = 2, **settings: str) -> None:
        self.house, self._leaf, self._directory = house, leaf, directory
        self._feed = Feed(house)
        self._auth = build_server(
            source=CertificateSource(leaf("service", service="auth")),
            services=[registered(trust_service_pb2_grpc.add_TrustServiceServicer_to_server, self._feed)],
            interceptors=(),
            address="127.0.0.1:0",
            lame_duck=timedelta(0),
        )
        self._auth.start()
        self._said: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self.heard: list[str] = []
        self.process = subprocess.Popen(
            [sys.executable, "-m", "services.inference", "--workers", str(workers)],
            cwd=ROOT,
            env=self._environment(settings),
            stderr=subprocess.PIPE,
            text=True,
        )
        self._listener = threading.Thread(target=self._listen, daemon=True)
        self._listener.start()
        ready = self.until(lambda text: text.startswith("ready: rpcs on port")).split()
        self.port, self.metrics_port = int(ready[4].strip(",")), int(ready[-1])

    def until(self, wanted: Callable[[str], bool]) -> str:
        """The next line of the log that is wanted."""
        while (text := self._said.get(timeout=PATIENCE)) is not None:
            self.heard.append(text)
            if wanted(text):
                return text
        raise AssertionError(f"it ended: {self.heard[-5:]}")

    def pids(self) -> set[int]:
        """The workers' processes."""
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return {int(pid) for pid in children.split()}

    def replaced(self, before: set[int]) -> None:
        """Returns when two workers run and one of them is new, and both serve."""
        self.until(lambda text: text.startswith("worker") and "started as process" in text)
        turns = threading.Event()
        for _ in range(int(PATIENCE / 0.05)):
            if self.pids() != before and self.serving() == 2:
                return
            turns.wait(0.05)
        raise AssertionError("no worker took the place of the one that is gone")

    def serving(self) -> int:
        """How many workers serve, by the one page of metrics."""
        return int(float(self.metric("casemate_workers_ready")))

    def runs(self) -> int:
        """How many runs of models are under way."""
        found = re.findall(r"^casemate_inference_runs_under_way\{.*\} (\S+)$", self.page(), re.MULTILINE)
        return int(sum(map(float, found)))

    def metric(self, name: str) -> str:
        """The value of a sample of the page."""
        for line in self.page().splitlines():
            if line.startswith(name + " "):
                return line.rpartition(" ")[2]
        raise AssertionError(name)

    def page(self) -> str:
        """The one page of metrics."""
        leaf = self._leaf("service", service="auth")
        context = ssl.create_default_context(cafile=str(leaf / "ca.pem"))
        context.load_cert_chain(leaf / "cert.pem", leaf / "key.pem")
        context.check_hostname = False
        connection = http.client.HTTPSConnection("127.0.0.1", self.metrics_port, context=context, timeout=PATIENCE)
        try:
            connection.request("GET", "/metrics")
            return connection.getresponse().read().decode()
        finally:
            connection.close()

    def channel(self, *, again: bool = True) -> RotatingChannel:
        """A connection of its own, so to any worker; `again`: calls that find their worker gone are repeated."""
        return RotatingChannel(
            target=f"127.0.0.1:{self.port}",
            service_name="inference",
            source=self.house.caller.source,
            idempotent_methods=frozenset({INFER}) if again else frozenset(),
        )

    def ask(self, request: wire.ModelInferRequest, *, channel: grpc.Channel, timeout: float = PATIENCE) -> bytes:
        """One prediction; raises grpc.RpcError."""
        infer = channel.unary_unary(INFER, None, None)
        message = request.SerializeToString()
        return infer(message, metadata=self.house.metadata(self.house.caller), timeout=timeout)

    def end(self) -> int:
        """Tells it to end; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(PATIENCE)
        finally:
            self.close()

    def close(self) -> None:
        """Ends everything; workers whose supervisor was killed end by themselves."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self._listener.join(PATIENCE)  # the last of them has closed its end
        assert not self._listener.is_alive()
        self.process.stderr.close()
        self._feed.ended.set()
        self._auth.stop(timedelta(0))

    def _listen(self) -> None:
        for line in self.process.stderr:
            try:
                self._said.put(str(json.loads(line)["message"]))
            except ValueError:
                self._said.put(line)
        self._said.put(None)

    def _environment(self, settings: dict[str, str]) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "GRPC_SSL_CIPHER_SUITES": os.environ["GRPC_SSL_CIPHER_SUITES"],
            "CASEMATE_INFERENCE_LISTEN": "127.0.0.1:0",
            "CASEMATE_INFERENCE_METRICS_LISTEN": "127.0.0.1:0",
            "CASEMATE_INFERENCE_IDENTITY_DIR": str(self._leaf("service", service="inference")),
            "CASEMATE_INFERENCE_AUTH_ADDRESS": f"127.0.0.1:{self._auth.port}",
            "CASEMATE_INFERENCE_REPOSITORY_DIR": str(self.house.repository),
            "CASEMATE_INFERENCE_KEK_FILE": str(self.house.kek),
            "CASEMATE_INFERENCE_AUDIT_FILE": str(self._directory / "audit.jsonl"),
            "CASEMATE_INFERENCE_THREADS": "8",
            **{f"CASEMATE_INFERENCE_{name}": value for name, value in settings.items()},
        }
