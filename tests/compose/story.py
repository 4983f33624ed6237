"""The demo's story, told from outside, and the thefts of it that need nothing but a network."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess

import numpy as np

from casemate.cli import digits
from casemate.cli.attacks import Attacks, blank, offer_tls_1_2
from casemate.cli.prediction import ask_as
from casemate.cli.story import MODEL, Story
from casemate.client.session import Session
from tests.compose.bases import CHECKOUT
from tests.compose.cluster import ComposeCluster

BUF = CHECKOUT / ".venv" / "bin" / "buf"


class ToldStory:
    """One story, and what was learned on the way."""

    def __init__(self, cluster: ComposeCluster) -> None:
        self.cluster = cluster
        self.story = Story(cluster)
        self.training, self.held_out = digits.split()
        self.records = digits.to_records(self.training)

    def tell(self) -> None:
        """Signed dataset in, proven out, signed model in, and an unmodified tritonclient's answers are right."""
        self.story.admit()
        pushed = self.story.supply(self.records, digits.SCHEMA)
        pulled = self.story.pull()
        assert pulled.root == pushed.root
        onnx, accuracy = digits.train(digits.from_records(pulled.records()))
        self.story.publish(onnx, pulled.root, accuracy)
        self.require_answers()

    def require_answers(self) -> None:
        """The model answers as it must."""
        seen = ask_as(self.caller(), MODEL, self.held_out.pixels)
        accuracy = float(np.mean(seen == self.held_out.digits))
        assert accuracy > 0.95, accuracy

    def require_rows(self) -> None:
        """The dataset comes out as it went in, every batch proven."""
        assert self.story.pull().records() == self.records

    def caller(self) -> Session:
        """The caller's session."""
        return self.story.session("caller")

    def attack(self) -> None:
        """No token; a stolen one; an unsigned dataset; a changed byte; TLS 1.2 on every published port."""
        attacks = Attacks(self.cluster, self.story, self.records, digits.SCHEMA)
        for outcome in (attacks.no_token(), attacks.stolen_token(), attacks.unsigned_dataset(), attacks.changed_byte()):
            assert outcome.held, outcome
        caller = self.caller()
        identity = self.cluster.state.client_leaf("acme", "caller")
        for service in ("auth", "datasets", "inference"):
            for kind in ("grpc", "metrics", "https") if service == "auth" else ("grpc", "metrics"):
                port = self.cluster.port(service, kind)
                assert offer_tls_1_2(port, caller.source, identity) == "refused", (service, port)

    def discover(self) -> None:
        """Auth's OAuth metadata (RFC 8414), by its own name."""
        leaf = self.cluster.state.client_leaf("acme", "caller")
        context = ssl.create_default_context(cafile=str(leaf / "ca.pem"))
        context.load_cert_chain(leaf / "cert.pem", leaf / "key.pem")
        name = self.caller().service_name("auth")
        request = f"GET /.well-known/oauth-authorization-server HTTP/1.0\r\nHost: {name}\r\n\r\n"
        with (
            socket.create_connection(("127.0.0.1", self.cluster.port("auth", "https")), 5) as plain,
            context.wrap_socket(plain, server_hostname=name) as secured,
        ):
            secured.sendall(request.encode())
            answer = http.client.HTTPResponse(secured)
            answer.begin()
            said = json.loads(answer.read())
        assert said["issuer"] == f"https://{name}", said
        assert said["token_endpoint"].startswith(f"https://{name}:7404/"), said

    def curl(self) -> None:
        """`buf curl`, a client that is not ours: lists services by reflection, and asks for a prediction."""
        listed = self._buf("--list-services", address="")
        assert "inference.GRPCInferenceService" in listed, listed
        image = {
            "name": "images",
            "datatype": "FP32",
            "shape": [1, 64],
            "contents": {"fp32_contents": blank()[0].tolist()},
        }
        asked = {"model_name": MODEL, "inputs": [image]}
        said = self._buf("--data", json.dumps(asked), address="/inference.GRPCInferenceService/ModelInfer")
        assert json.loads(said)["modelName"] == MODEL, said

    def _buf(self, *arguments: str, address: str) -> str:
        leaf, session = self.cluster.state.client_leaf("acme", "caller"), self.caller()
        header = f"authorization: Bearer {session.token('inference').text.reveal()}"
        command = [
            str(BUF), "curl", "--protocol", "grpc", "--servername", session.service_name("inference"),
            "--cacert", str(leaf / "ca.pem"), "--cert", str(leaf / "cert.pem"), "--key", str(leaf / "key.pem"),
            "--reflect-header", header, "--header", header, *arguments,
            f"https://127.0.0.1:{self.cluster.port('inference')}{address}",
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, check=False, timeout=30)
        assert done.returncode == 0, done.stderr.decode(errors="replace")
        return done.stdout.decode()
