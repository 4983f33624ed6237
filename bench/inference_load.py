"""Callers of `bench.inference`, in a process of their own: each line of JSON on standard input is one load.

`closed`: so many callers, each waiting for its answer, until so many calls are
done. `open`: calls at a fixed rate for some seconds, each with a deadline, whether
or not the ones before were answered. Answers with one line: calls answered OK,
seconds, and the latencies of those in milliseconds.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import grpc

from casemate.transport.certificates import load_pair

CHANNELS = 4
GRACE_S = 5.0


class Callers:
    """Channels to one server, as one client."""

    def __init__(self, directory: Path, port: int, token: str, method: str) -> None:
        pair = load_pair(directory / "client")
        credentials = grpc.ssl_channel_credentials(
            pair.roots_pem, pair.private_key_pem.reveal(), pair.certificate_chain_pem
        )
        options = [
            ("grpc.ssl_target_name_override", "inference.casemate.internal"),
            ("grpc.use_local_subchannel_pool", 1),
            ("grpc.max_receive_message_length", -1),
            ("grpc.max_send_message_length", -1),
        ]
        self._channels = [grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) for _ in range(CHANNELS)]
        self.calls: list[Any] = [channel.unary_unary(method) for channel in self._channels]
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()

    def close(self) -> None:
        """Ends the channels."""
        for channel in self._channels:
            channel.close()


def closed(callers: Callers, payload: bytes, *, at_once: int, calls: int) -> dict[str, Any]:
    """So many calls by so many callers; a call that fails ends the bench."""
    taken = iter(range(calls))
    lock, latencies = threading.Lock(), [0.0] * calls

    def caller(index: int) -> None:
        call = callers.calls[index % CHANNELS]
        while True:
            with lock:
                place = next(taken, None)
            if place is None:
                return
            begun = time.perf_counter()
            call(payload, metadata=callers.metadata, timeout=60)
            latencies[place] = (time.perf_counter() - begun) * 1000

    threads = [threading.Thread(target=caller, args=(index,)) for index in range(at_once)]
    begun = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - begun
    return {"ok": sum(1 for latency in latencies if latency), "seconds": seconds, "latencies_ms": latencies}


def opened(callers: Callers, payload: bytes, *, rate: float, seconds: float, deadline: float) -> dict[str, Any]:
    """Calls at a rate, however the server fares; what is late is a failure."""
    latencies: list[float] = []
    codes: Counter[str] = Counter()
    sent, late = 0, 0.0
    begun = time.perf_counter()
    while (now := time.perf_counter() - begun) < seconds:
        if now < sent / rate:
            time.sleep(max(0.0, sent / rate - now))
            continue
        late = max(late, now - sent / rate)
        asked = callers.calls[sent % CHANNELS].future(payload, metadata=callers.metadata, timeout=deadline)
        asked.add_done_callback(_noting(time.perf_counter(), latencies, codes))
        sent += 1
    ended = time.perf_counter() + GRACE_S
    while sum(codes.values()) < sent and time.perf_counter() < ended:
        time.sleep(0.01)
    return {
        "ok": len(latencies),
        "sent": sent,
        "seconds": seconds,
        "behind_s": late,
        "latencies_ms": latencies,
        "codes": dict(codes),
    }


def _noting(begun: float, latencies: list[float], codes: Counter[str]) -> Any:  # noqa: ANN401  # a callback
    def note(asked: Any) -> None:  # noqa: ANN401  # a grpc future
        code = asked.code()
        codes[code.name] += 1
        if code is grpc.StatusCode.OK:
            latencies.append((time.perf_counter() - begun) * 1000)

    return note


def main(directory: Path) -> None:
    """Answers until its standard input ends."""
    for line in sys.stdin:
        order = json.loads(line)
        callers = Callers(directory, order["port"], order["token"], order["method"])
        payload = Path(order["payload"]).read_bytes()
        if order["kind"] == "closed":
            closed(callers, payload, at_once=order["at_once"], calls=order["at_once"])  # connects
            said = closed(callers, payload, at_once=order["at_once"], calls=order["calls"])
        else:
            closed(callers, payload, at_once=CHANNELS, calls=CHANNELS)
            said = opened(callers, payload, rate=order["rate"], seconds=order["seconds"], deadline=order["deadline"])
        callers.close()
        print(json.dumps(said), flush=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
