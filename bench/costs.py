"""What each protection costs on this machine: `make bench-costs`, and the last column of `make demo`.

Calls are measured one at a time against three servers in turn (plain, mutual TLS,
mutual TLS and the gate), so that a machine that slows down slows all of them; what is
quoted is the median of the differences. Everything else is measured in process.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import grpc

from bench.echo import METHOD, TRUST_DOMAIN, build_gate
from bench.report import Result, publish
from bench.tokens import Mint
from casemate.clock import SystemClock
from casemate.gate.core.admission import Admission
from casemate.pki.authority import CertificateAuthority
from casemate.pki.leaves import write_leaf
from casemate.sealing.authority_rows import AuthorityKey
from casemate.sealing.files import open_bytes, seal_stream
from casemate.sealing.keys import DataKey
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.rows import BatchContext, open_batch, seal_batch
from casemate.signing.dsse import sign_envelope, verify_envelope
from casemate.signing.keys import SigningKey
from casemate.signing.merkle import leaf_hash
from casemate.transport.certificates import CertificatePair, load_pair
from casemate.transport.floor import CIPHER_SUITES, CIPHER_SUITES_VARIABLE

MODES = ("plaintext", "mtls", "gated")
WARM_UP = 200
TURNS = 4000
PAYLOAD = b"x" * 64
ROW = b"x" * 256


def measure() -> list[Result]:
    """All figures, in about ten seconds."""
    with tempfile.TemporaryDirectory(prefix="casemate-bench-") as scratch:
        directory = Path(scratch)
        _make_leaves(directory)
        calls = _calls(directory)
        pair = load_pair(directory / "client")
    return [
        Result("call, plain", calls["plaintext"], "µs a call"),
        Result("mutual TLS 1.3", calls["mtls"], "µs a call more"),
        Result("the whole gate", calls["gated"], "µs a call more"),
        *_decision(pair),
        *_signing(),
        *_sealing(),
    ]


def _make_leaves(directory: Path) -> None:
    ring = LocalKeyRing.create(directory / "kek.json")
    authority = CertificateAuthority.create(
        directory / "ca", trust_domain=TRUST_DOMAIN, key_encryption=ring, clock=SystemClock()
    )
    write_leaf(authority.issue_service(service="inference"), directory / "server")
    write_leaf(authority.issue_client(tenant="acme", name="bench"), directory / "client")


def _calls(directory: Path) -> dict[str, float]:
    """Median microseconds of a plain call, and medians of what each layer adds to the call before it.

    One call to each server in turn, so that whatever slows the machine down slows
    all three; differences are taken within a turn.
    """
    samples: dict[str, list[float]] = {mode: [] for mode in MODES}
    with ExitStack() as running:
        callers = {mode: _caller(mode, directory, running) for mode in MODES}
        for turn in range(WARM_UP + TURNS):
            for mode, call in callers.items():
                begun = time.perf_counter_ns()
                call()
                if turn >= WARM_UP:
                    samples[mode].append((time.perf_counter_ns() - begun) / 1000)
    plain, mtls, gated = (samples[mode] for mode in MODES)
    return {
        "plaintext": statistics.median(plain),
        "mtls": statistics.median(b - a for a, b in zip(plain, mtls, strict=True)),
        "gated": statistics.median(b - a for a, b in zip(mtls, gated, strict=True)),
    }


def _caller(mode: str, directory: Path, running: ExitStack) -> Callable[[], object]:
    process = running.enter_context(
        subprocess.Popen(  # noqa: S603  # our own module, by our own interpreter
            [sys.executable, "-m", "bench.echo", mode, str(directory)],
            env={**os.environ, CIPHER_SUITES_VARIABLE: CIPHER_SUITES},  # noqa: TID251  # its own, and the TLS floor
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=Path(__file__).resolve().parent.parent,
        )
    )
    if process.stdin is None or process.stdout is None:
        raise RuntimeError("no pipes")
    running.callback(process.stdin.close)
    said = json.loads(process.stdout.readline())
    target = f"127.0.0.1:{said['port']}"
    if mode == "plaintext":
        channel = grpc.insecure_channel(target)
    else:
        pair = load_pair(directory / "client")
        credentials = grpc.ssl_channel_credentials(
            pair.roots_pem, pair.private_key_pem.reveal(), pair.certificate_chain_pem
        )
        name = f"inference.{TRUST_DOMAIN}"
        channel = grpc.secure_channel(target, credentials, [("grpc.ssl_target_name_override", name)])
    running.callback(channel.close)
    method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(METHOD)
    metadata = (("authorization", f"Bearer {said['token']}"),) if "token" in said else ()
    return lambda: method(PAYLOAD, metadata=metadata, timeout=10)


def _decision(pair: CertificatePair) -> list[Result]:
    """The decision in process: the token from the cache, with its signature verified, and the certificate."""
    mint = Mint()
    gate = build_gate(mint)
    metadata = (("authorization", f"Bearer {mint.issue(pair.thumbprint)}"),)
    connection = {
        "ssl_tls_version": (b"TLSv1.3",),
        "x509_pem_cert": (pair.certificate_chain_pem,),
        "peer_spiffe_id": (pair.spiffe_id.encode(),),
    }

    def admit(headers: tuple[tuple[str, str], ...]) -> Admission:
        admission = gate.at_headers(METHOD, headers, request_id="bench")
        gate.finish(admission, "OK")
        return admission

    fresh = iter([(("authorization", f"Bearer {mint.issue(pair.thumbprint)}"),) for _ in range(200)])
    cached = _median_us(lambda: admit(metadata), 3000)
    whole = _median_us(lambda: gate.at_message(admit(metadata), connection), 3000)
    return [
        Result("token checked, cached", cached, "µs a call"),
        Result("token checked, first time", _median_us(lambda: admit(next(fresh)), 200), "µs a token"),
        Result("certificate and binding", whole - cached, "µs a call"),
    ]


def _signing() -> list[Result]:
    key = SigningKey.generate()
    kind = "application/vnd.casemate.bench+json"
    envelope = sign_envelope(kind, secrets.token_bytes(2048), key)
    chunk = secrets.token_bytes(256 * 1024)
    verified = _median_us(lambda: verify_envelope(envelope, payload_type=kind, resolve=lambda _key_id: key.public), 300)
    return [
        Result("signature verified", verified, "µs a manifest"),
        Result("chunk hashed", _median_us(lambda: leaf_hash(chunk), 100), "µs for 256 KiB"),
    ]


def _sealing() -> list[Result]:
    key, rows = DataKey.generate(), [ROW] * 1000
    schema = hashlib.sha256(b"schema").digest()
    context = BatchContext(tenant="acme", dataset="digits", version=1, batch=0, schema_sha256=schema)
    sealed = seal_batch(key, context, rows, first_ordinal=0)
    model = secrets.token_bytes(1024 * 1024)
    stored = b"".join(seal_stream(key, [model], context=b"bench"))
    authority = AuthorityKey(DataKey.generate())
    columns = {"caller": "t/acme/caller", "verb": "infer", "resource": "model/digits", "effect": "allow"}
    mac = authority.mac("access_grant", "id", columns)
    sealing = _median_us(lambda: seal_batch(key, context, rows, first_ordinal=0), 30) / len(rows)
    opening = _median_us(lambda: open_batch(key, context, sealed), 30) / len(rows)
    return [
        Result("row sealed", sealing, "µs a row of 256 B"),
        Result("row opened", opening, "µs a row of 256 B"),
        Result(
            "row verified", _median_us(lambda: authority.verify("access_grant", "id", columns, mac), 1000), "µs a row"
        ),
        Result("model opened", _median_us(lambda: open_bytes(key, stored, context=b"bench"), 20) / 1000, "ms a MiB"),
    ]


def _median_us(act: Callable[[], object], times: int) -> float:
    samples = []
    for _ in range(times):
        begun = time.perf_counter_ns()
        act()
        samples.append(time.perf_counter_ns() - begun)
    return statistics.median(samples) / 1000


if __name__ == "__main__":
    publish("costs", measure(), as_json=bool(os.environ.get("JSON")))  # noqa: TID251  # its __main__
