"""What must fail, tried for real against a running cluster.

Each attack returns what happened. An attack that changes state puts it back, and
where it can, shows that the same act succeeds with one thing changed.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from casemate.cli.certificates import OPERATOR
from casemate.cli.figures import read_metrics
from casemate.cli.prediction import ask, ask_as, describe_as
from casemate.cli.story import CHUNK_BYTES, DATASET, MODEL, TENANT, Story
from casemate.client.admin import Administration
from casemate.client.chunks import cut
from casemate.client.datasets import Datasets
from casemate.client.models import Models
from casemate.client.session import Session
from casemate.client.tokens import AccessToken
from casemate.client.triton import bare_triton_client
from casemate.errors import CasemateError, Code, Reason
from casemate.signing.statements import sign_dataset_manifest
from casemate.transport.certificates import CertificateSource

if TYPE_CHECKING:
    from casemate.cli.cluster import Cluster

PIXELS = 64
SETTLE_SECONDS = 5.0
"""How long a change of trust may take to reach every service before we call it lost."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """One attack, and how it ended."""

    name: str
    answer: str
    held: bool


def blank() -> NDArray[np.float32]:
    """One empty image: what is asked when only the answer's status matters."""
    return np.zeros((1, PIXELS), dtype=np.float32)


def refused(name: str, act: Callable[[], object], code: Code, reason: Reason) -> Outcome:
    """Runs `act`, which must be refused with exactly this code and reason."""
    try:
        act()
    except CasemateError as error:
        return Outcome(name, f"{error.code} / {error.reason}", error.code is code and error.reason is reason)
    return Outcome(name, "accepted", held=False)


def replay_with_other_certificate(thief: Session, stolen: AccessToken) -> None:
    """Asks for a prediction with somebody else's token over the thief's own, valid certificate."""
    client = bare_triton_client(thief)
    client.register_plugin(_Authorization(f"Bearer {stolen.text.reveal()}"))
    with contextlib.closing(client):
        ask(client, MODEL, blank())


def ask_without_token(session: Session) -> None:
    """Asks for a prediction with a valid certificate and no token."""
    with contextlib.closing(bare_triton_client(session)) as client:
        ask(client, MODEL, blank())


def offer_tls_1_2(port: int, source: CertificateSource, identity: Path) -> str:
    """Tries a TLS 1.2 handshake with a valid certificate.

    Returns:
        The version negotiated, or `refused`.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False  # the attack is on the version; the name is not what is tried
    context.load_verify_locations(cadata=source.current.roots_pem.decode())
    context.load_cert_chain(identity / "cert.pem", identity / "key.pem")
    with socket.create_connection(("127.0.0.1", port), timeout=5) as connection:
        try:
            with context.wrap_socket(connection) as secured:
                return secured.version() or "unknown"
        except (ssl.SSLError, ConnectionError):
            return "refused"


class Attacks:
    """The attacks of the demo, on one cluster and with one cast."""

    def __init__(self, cluster: Cluster, story: Story, records: list[bytes], schema: tuple[object, ...]) -> None:
        self._cluster = cluster
        self._story = story
        self._records = records
        self._schema = schema

    def all(self) -> Iterator[Outcome]:
        """Every attack, in the order of the story."""
        yield self.no_token()
        yield self.stolen_token()
        yield self.old_tls()
        yield self.unsigned_dataset()
        yield self.changed_byte()
        yield self.swapped_rows()
        yield self.inserted_grant()
        yield self.flipped_bit()

    def no_token(self) -> Outcome:
        """A prediction without a token."""
        caller = self._story.session("caller")
        return refused("no token", lambda: ask_without_token(caller), Code.UNAUTHENTICATED, Reason.TOKEN_MISSING)

    def stolen_token(self) -> Outcome:
        """The caller's token, warm in every cache, over mallory's certificate."""
        caller, mallory = self._story.session("caller"), self._story.session("mallory")
        ask_as(caller, MODEL, blank())
        stolen = caller.token("inference")
        return refused(
            "stolen token",
            lambda: replay_with_other_certificate(mallory, stolen),
            Code.UNAUTHENTICATED,
            Reason.CERTIFICATE_MISMATCH,
        )

    def old_tls(self) -> Outcome:
        """TLS 1.2 on every port there is."""
        source = self._story.session("caller").source
        identity = self._cluster.state.client_leaf(TENANT, "caller")
        ports = list(self._cluster.ports.all())
        answers = [offer_tls_1_2(port, source, identity) for port in ports]
        held = all(answer == "refused" for answer in answers)
        return Outcome("TLS 1.2 client", f"handshake refused on {answers.count('refused')} of {len(ports)} ports", held)

    def unsigned_dataset(self) -> Outcome:
        """A perfect manifest, by a supplier who may push, with no signature on it."""
        datasets, envelope = self._next_version()
        opened = json.loads(envelope)
        opened["signatures"] = []
        return refused(
            "unsigned dataset",
            lambda: datasets.push_envelope(json.dumps(opened).encode(), self._chunks(), dataset=DATASET),
            Code.INVALID_ARGUMENT,
            Reason.SIGNATURE_INVALID,
        )

    def changed_byte(self) -> Outcome:
        """A signed manifest, and one byte of its records changed on the way."""
        datasets, envelope = self._next_version()

        def tampered() -> Iterator[bytes]:
            for number, chunk in enumerate(self._chunks()):
                yield chunk if number else bytes([chunk[0] ^ 1]) + chunk[1:]

        return refused(
            "changed byte in upload",
            lambda: datasets.push_envelope(envelope, tampered(), dataset=DATASET),
            Code.INVALID_ARGUMENT,
            Reason.DIGEST_MISMATCH,
        )

    def swapped_rows(self) -> Outcome:
        """Two sealed rows swapped by SQL, as the database's superuser; then swapped back."""
        from casemate.cli.tampering import swap_two_rows  # noqa: PLC0415  # loads asyncpg

        state = self._cluster.state
        swap_two_rows(state)
        outcome = refused(
            "rows swapped in PostgreSQL",
            lambda: self._story.pull().records(),
            Code.DATA_LOSS,
            Reason.STORED_DATA_UNREADABLE,
        )
        swap_two_rows(state)
        return _with_twin(outcome, lambda: self._story.pull().records())

    def inserted_grant(self) -> Outcome:
        """A grant for mallory inserted by SQL, MAC copied from a good one; then given by the operator."""
        from casemate.cli.tampering import insert_grant, remove_grant  # noqa: PLC0415  # loads asyncpg

        mallory, path, resource = self._story.session("mallory"), f"t/{TENANT}/mallory", f"model/{MODEL}"
        administration = Administration(self._story.session(*reversed(OPERATOR)))
        alarms = self._alarms()
        forged = insert_grant(self._cluster.state, tenant=TENANT, caller=path, verb="infer", resource=resource)
        # News is told in order: once a later, honest grant counts, the forged one was told and judged.
        later = administration.create_grant(tenant=TENANT, caller=path, verb="describe", resource=resource)
        _eventually(lambda: describe_as(mallory, MODEL))
        outcome = refused(
            "grant inserted by SQL",
            lambda: ask_as(mallory, MODEL, blank()),
            Code.NOT_FOUND,
            Reason.RESOURCE_NOT_FOUND,
        )
        raised = self._alarms() - alarms
        outcome = Outcome(outcome.name, f"{outcome.answer}, alarms raised: {raised:.0f}", outcome.held and raised > 0)
        remove_grant(self._cluster.state, forged)
        given = administration.create_grant(tenant=TENANT, caller=path, verb="infer", resource=resource)
        outcome = _with_twin(outcome, lambda: _eventually(lambda: ask_as(mallory, MODEL, blank())))
        for grant in (given, later):
            administration.delete_grant(grant)
        return outcome

    def flipped_bit(self) -> Outcome:
        """One bit of the stored model flipped: loading it is refused, what runs goes on."""
        models = Models(self._story.session("trainer"))
        stored = max(self._cluster.state.repository.rglob("*"), key=lambda path: path.is_file() and path.stat().st_size)
        _flip_bit(stored)
        outcome = refused(
            "bit flipped in model file",
            lambda: models.reload(MODEL, 1),
            Code.FAILED_PRECONDITION,
            Reason.MODEL_REFUSED,
        )
        ask_as(self._story.session("caller"), MODEL, blank())
        _flip_bit(stored)
        return _with_twin(outcome, lambda: models.reload(MODEL, 1))

    def _alarms(self) -> float:
        """How many rows of authority auth has found to be not its own."""
        operator = self._story.session(*reversed(OPERATOR))
        leaf = self._cluster.state.client_leaf(*OPERATOR)
        port = self._cluster.ports.metrics["auth"]
        figures = read_metrics(port, name=operator.service_name("auth"), identity=leaf)
        return figures.get("casemate_authority_alarms_total", 0.0)

    def _next_version(self) -> tuple[Datasets, bytes]:
        datasets = Datasets(self._story.session("supplier"))
        manifest = datasets.manifest(
            lambda: self._records,
            tenant=TENANT,
            dataset=DATASET,
            schema=self._schema,  # type: ignore[arg-type]  # Column; kept out of this module's imports
            chunk_bytes=CHUNK_BYTES,
        )
        key = self._story.signing_key("supplier")
        return datasets, sign_dataset_manifest(manifest, key)

    def _chunks(self) -> Iterator[bytes]:
        return cut(self._records, chunk_bytes=CHUNK_BYTES)


class _Authorization:
    """A tritonclient plugin that sends one given header."""

    def __init__(self, value: str) -> None:
        self._value = value

    def __call__(self, request: object) -> None:
        request.headers["authorization"] = self._value  # type: ignore[attr-defined]  # tritonclient has no types


def _with_twin(outcome: Outcome, act: Callable[[], object]) -> Outcome:
    """The outcome, if the honest version of the same act succeeds."""
    try:
        act()
    except CasemateError as error:
        return Outcome(outcome.name, f"{outcome.answer}; but undone: {error.code} / {error.reason}", held=False)
    return outcome


def _eventually(act: Callable[[], object]) -> None:
    """Repeats until it succeeds, for as long as a change of trust may take."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while True:
        try:
            act()
        except CasemateError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
        else:
            return


def _flip_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
