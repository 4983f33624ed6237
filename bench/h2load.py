"""Load by `h2load` (Debian's nghttp2-client), a C client: it leaves the other core to itself.

It has no option for a client certificate, so a library of some lines is compiled
and preloaded that gives one to each TLS context.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path

_SHIM = r"""
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
typedef struct ssl_ctx_st SSL_CTX;
SSL_CTX *SSL_CTX_new(const void *method) {
    SSL_CTX *(*make)(const void *) = dlsym(RTLD_NEXT, "SSL_CTX_new");
    int (*chain)(SSL_CTX *, const char *) = dlsym(RTLD_NEXT, "SSL_CTX_use_certificate_chain_file");
    int (*key)(SSL_CTX *, const char *, int) = dlsym(RTLD_NEXT, "SSL_CTX_use_PrivateKey_file");
    SSL_CTX *context = make(method);
    if (context && (chain(context, getenv("BENCH_CERT")) != 1 || key(context, getenv("BENCH_KEY"), 1) != 1)) abort();
    return context;
}
"""
# Now and then it takes a handshake for one without ALPN, and sends nothing.
_ATTEMPTS = 4
_RATE = re.compile(r"finished in [^,]+, ([0-9.]+) req/s")
_DONE = re.compile(r"requests: \d+ total, \d+ started, \d+ done, (\d+) succeeded")


class H2load:
    """A load generator with the certificate of `directory/client`."""

    def __init__(self, directory: Path) -> None:
        source, self._library = directory / "shim.c", directory / "shim.so"
        source.write_text(_SHIM)
        compiler = shutil.which("cc") or "cc"
        subprocess.run(  # noqa: S603  # our own source
            [compiler, "-shared", "-fPIC", "-o", str(self._library), str(source), "-ldl"], check=True
        )
        self._directory = directory

    @staticmethod
    def available() -> bool:
        """Whether this machine has it, and a compiler."""
        return bool(shutil.which("h2load") and shutil.which("cc"))

    def rate(  # what a load is
        self,
        *,
        port: int,
        token: str,
        method: str,
        payload: Path,
        at_once: int,
        calls: int,
        secure: bool = True,
        core: int | None = None,
    ) -> float:
        """Calls a second of so many callers, each waiting for its answer.

        It counts HTTP statuses only: compare the server's own counts to know that the answers were good.

        Args:
            port: of a server on this machine.
            token: sent with each call, if there is one.
            method: what is called.
            payload: file of the message.
            at_once: callers.
            calls: of all callers together.
            secure: by mutual TLS, or in plaintext.
            core: where it runs.
        """
        framed = self._directory / f"{payload.name}.framed"
        body = payload.read_bytes()
        framed.write_bytes(b"\0" + len(body).to_bytes(4, "big") + body)
        connections = min(at_once, 8)
        command = [
            *(("/usr/bin/taskset", "-c", str(core)) if core is not None else ()),
            *("h2load", "-n", str(calls), "-c", str(connections), "-m", str(max(1, at_once // connections))),
            *("-t", "1", "-d", str(framed), "-w", "24", "-W", "24"),
            *("-H", "content-type: application/grpc", "-H", "te: trailers"),
            *(("-H", f"authorization: Bearer {token}") if token else ()),
            f"{'https' if secure else 'http'}://127.0.0.1:{port}{method}",
        ]
        environment = {
            **os.environ,  # noqa: TID251  # its own, and where the certificate lies
            "LD_PRELOAD": str(self._library),
            "BENCH_CERT": str(self._directory / "client" / "cert.pem"),
            "BENCH_KEY": str(self._directory / "client" / "key.pem"),
        }
        said = ""
        for _ in range(_ATTEMPTS):
            said = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout  # noqa: S603
            rate, done = _RATE.search(said), _DONE.search(said)
            if rate is not None and done is not None and int(done[1]) == calls:
                return float(rate[1])
        raise RuntimeError(f"h2load did not finish: {said}")
