"""The peers of `bench.inference`: MLServer, KServe and PyTriton, unmodified, each in an environment of its own.

They serve the same ONNX files in plaintext, without authentication, on the
same core as ours; what they start in turn is pinned with them. The
environments are those of the tests, under `.foreign/`, from the locks in
`requirements/`; a peer that cannot be installed or does not serve is left out,
and what it said is printed.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import socket
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc

from casemate.transport.local_channel import local_channel

ROOT = Path(__file__).resolve().parent.parent
METHOD = "/inference.GRPCInferenceService/ModelInfer"
NAMES = ("mlserver", "kserve", "pytriton")
# PyTriton's process for models is linked with an early 3.11 and takes its standard library from the environment:
# that of a later 3.11 does not fit it.
_PYTHONS = {"pytriton": ("/usr/bin/python3.11", "/usr/bin/python3")}
_START_S = 60.0
_TICKS = os.sysconf("SC_CLK_TCK")


class NoPeer(Exception):
    """A peer that cannot be compared with, and why."""


class Peer:
    """One peer that was started; `require_answers` tells whether it serves.

    Args:
        name: one of `NAMES`.
        models: folder of ONNX files, each with an input `x` and an output `y`.
        scratch: where it may write.
        core: where it and what it starts runs.
        running: ends it.

    Raises:
        NoPeer: it cannot be installed.
    """

    def __init__(self, name: str, models: Path, scratch: Path, *, core: int, running: ExitStack) -> None:
        python = _environment(name)
        with ExitStack() as stack:
            sockets = [stack.enter_context(socket.socket()) for _ in range(3)]
            for each in sockets:
                each.bind(("127.0.0.1", 0))
            self.port, rest, metrics = (each.getsockname()[1] for each in sockets)
        folder = scratch / name
        folder.mkdir()
        log = running.enter_context((folder / "log").open("wb"))
        command = _command(name, python, models, folder, (self.port, rest, metrics))
        self._process = running.enter_context(
            subprocess.Popen(  # noqa: S603  # our own command line, with the system's taskset
                ["/usr/bin/taskset", "-c", str(core), *command],
                stdout=log,
                stderr=log,
                cwd=folder,
                env={**os.environ, "PYTHONPATH": str(folder)},  # noqa: TID251  # its own
            )
        )
        running.callback(self._process.terminate)
        self._models, self._log = models, folder / "log"

    def cpu_seconds(self) -> float:
        """What its processes have used so far."""
        parents: dict[int, int] = {}
        used: dict[int, int] = {}
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = path.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            pid = int(path.parent.name)
            parents[pid], used[pid] = int(fields[1]), int(fields[11]) + int(fields[12])
        return sum(ticks for pid, ticks in used.items() if self._mine(pid, parents)) / _TICKS

    def _mine(self, pid: int, parents: dict[int, int]) -> bool:
        while pid > 1:
            if pid == self._process.pid:
                return True
            pid = parents.get(pid, 0)
        return False

    def require_answers(self) -> None:
        """Returns once it predicts.

        Raises:
            NoPeer: it does not.
        """
        until = time.monotonic() + _START_S
        payload = (self._models / "small.request").read_bytes()
        while time.monotonic() < until and self._process.poll() is None:
            try:
                with local_channel(f"127.0.0.1:{self.port}") as channel:
                    infer: Any = channel.unary_unary(METHOD)
                    infer(payload, timeout=2)
            except grpc.RpcError:
                time.sleep(0.2)
            else:
                return
        said = [line for line in self._log.read_text(errors="replace").splitlines() if line.strip()]
        raise NoPeer(f"it does not serve: {said[-1][:300] if said else 'it says nothing'}")


def _command(name: str, python: Path, models: Path, folder: Path, ports: tuple[int, int, int]) -> list[str]:
    port, rest, metrics = ports
    if name != "mlserver":
        return [str(python), str(ROOT / "bench" / f"peer_{name}.py"), str(models), str(port), str(rest)]
    settings = {"host": "127.0.0.1", "grpc_port": port, "http_port": rest, "metrics_port": metrics}
    (folder / "settings.json").write_text(json.dumps({**settings, "parallel_workers": 0, "debug": False}))
    (folder / "peer_mlserver.py").write_bytes((ROOT / "bench" / "peer_mlserver.py").read_bytes())
    for file in models.glob("*.onnx"):
        (folder / file.stem).mkdir()
        told = {"name": file.stem, "implementation": "peer_mlserver.OnnxModel", "parameters": {"uri": str(file)}}
        (folder / file.stem / "model-settings.json").write_text(json.dumps(told))
    # Not by the installed script: its first line is the path at which the environment was made.
    return [str(python), "-c", "from mlserver.cli import main; main()", "start", str(folder)]


def _environment(name: str) -> Path:
    """The interpreter of the environment that `requirements/<name>.txt` locks; made once.

    Raises:
        NoPeer: it cannot be made.
    """
    lock, directory = ROOT / "requirements" / f"{name}.txt", ROOT / ".foreign" / name
    wanted = hashlib.sha256(lock.read_bytes()).hexdigest()
    directory.parent.mkdir(exist_ok=True)
    with (directory.parent / f"{name}.lock").open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        stamp, python = directory / "lock.sha256", directory / "bin" / "python"
        if stamp.is_file() and stamp.read_text() == wanted:
            return python
        base = next((each for each in _PYTHONS.get(name, ()) if Path(each).exists()), sys.executable)
        uv = str(Path(sys.executable).with_name("uv"))
        for command in (
            [uv, "venv", "--quiet", "--clear", "--python", base, str(directory)],
            [uv, "pip", "install", "--quiet", "--require-hashes", "--python", str(python), "-r", str(lock)],
        ):
            done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # our own
            if done.returncode:
                raise NoPeer(f"it cannot be installed: {done.stderr.strip()[-300:]}")
        stamp.write_text(wanted)
    return python
