"""A container engine: the one that answers, or one of our own that ends with us and leaves nothing behind."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

PACKAGES = ("docker.io", "docker-compose", "mmdebstrap", "iptables")
START_SECONDS = 60


class NoEngine(Exception):
    """There is none, and none can be made here; says why."""


class Engine:
    """Commands of one engine. Everything it is asked for is said by its exit status."""

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self.compose_command = _compose_command(self.environment)

    def docker(self, *arguments: str, check: bool = True, stdin: bytes | None = None) -> str:
        """Runs `docker …` and gives what it printed."""
        return _run(["docker", *arguments], self.environment, check=check, stdin=stdin)

    def export(self, container: str) -> bytes:
        """A container's file system, as a tar archive."""
        return subprocess.run(
            ["docker", "export", container], env=self.environment, capture_output=True, check=True
        ).stdout

    def copy_out(self, container: str, path: str) -> bytes:
        """A folder in a container, volumes included, as a tar archive; works on one without a shell too."""
        command = ["docker", "cp", f"{container}:{path}", "-"]
        return subprocess.run(command, env=self.environment, capture_output=True, check=True).stdout

    def logs(self, container: str) -> str:
        """All that a container wrote, to either stream."""
        command = ["docker", "logs", container]
        done = subprocess.run(
            command, env=self.environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False
        )
        return done.stdout.decode(errors="replace")

    def answers(self, *arguments: str) -> bool:
        """Whether `docker …` exits 0."""
        command = ["docker", *arguments]
        return subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode == 0

    def compose(self, *arguments: str) -> str:
        """Runs compose, version 1 or 2, on the checkout's file."""
        return _run([*self.compose_command, *arguments], self.environment, check=True)


def _run(command: list[str], environment: Mapping[str, str], *, check: bool, stdin: bytes | None = None) -> str:
    done = subprocess.run(command, env=dict(environment), input=stdin, capture_output=True, check=False)
    if check and done.returncode:
        said = (done.stderr or done.stdout).decode(errors="replace").strip()
        raise RuntimeError(f"{' '.join(command)[:200]}: {said[-2000:]}")
    return done.stdout.decode(errors="replace")


def _compose_command(environment: Mapping[str, str]) -> list[str]:
    if subprocess.run(["docker", "compose", "version"], env=environment, capture_output=True, check=False).returncode:
        return ["docker-compose"]
    return ["docker", "compose"]


@contextmanager
def engine(say) -> Iterator[Engine]:
    """The engine that answers; otherwise one of our own, for the length of the block.

    Raises:
        NoEngine: none answers and we are not root, or it does not install or start.
    """
    environment = {**os.environ, "COMPOSE_DOCKER_CLI_BUILD": "1", "DOCKER_CLI_HINTS": "false"}
    if shutil.which("docker") and _answers(environment):
        say("using the engine that answers")
        yield Engine(environment)
        return
    if os.geteuid() != 0:
        raise NoEngine("no container engine answers, and only root could start one")
    _install(say)
    with _started(say) as socket:
        yield Engine({**environment, "DOCKER_HOST": f"unix://{socket}"})


def _answers(environment: Mapping[str, str]) -> bool:
    return subprocess.run(["docker", "info"], env=environment, capture_output=True, check=False).returncode == 0


def _install(say) -> None:
    wanted = {"dockerd": "docker.io", "docker": "docker.io", "docker-compose": "docker-compose", "iptables": "iptables"}
    if all(shutil.which(program) for program in wanted):
        return
    if not shutil.which("apt-get"):
        raise NoEngine("no container engine answers, and there is no apt-get to install one with")
    say("installing Debian's docker.io and docker-compose (once)")
    apt = ["apt-get", "-qq", "-o=Dpkg::Use-Pty=0"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    for command in ([*apt, "update"], [*apt, "install", "--yes", "--no-install-recommends", *PACKAGES]):
        done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, capture_output=True, check=False)
        if done.returncode:
            last = (done.stderr.decode(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise NoEngine(f"{command[0]} {command[3]} failed: {last}")


@contextmanager
def _started(say) -> Iterator[Path]:
    """Our own dockerd, on a folder of its own: ended by its own pid, its folder removed."""
    root = Path(tempfile.mkdtemp(prefix="casemate-engine-", dir="/var/lib"))
    runtime = Path(tempfile.mkdtemp(prefix="casemate-engine-"))
    socket, log = runtime / "docker.sock", runtime / "log"
    with log.open("wb") as output:
        daemon = subprocess.Popen(
            [
                "dockerd", f"--data-root={root}", f"--exec-root={runtime / 'exec'}", f"--host=unix://{socket}",
                f"--pidfile={runtime / 'pid'}", "--bridge=none",
            ],
            stdout=output,
            stderr=output,
            start_new_session=True,
        )  # fmt: skip
    say(f"started an engine of our own (pid {daemon.pid})")
    try:
        _wait_until_up(daemon, socket, log)
        yield socket
    finally:
        daemon.send_signal(signal.SIGTERM)
        try:
            daemon.wait(60)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()
        say("stopped the engine of our own")
        for folder in (root, runtime):
            shutil.rmtree(folder, ignore_errors=True)


def _wait_until_up(daemon: subprocess.Popen[bytes], socket: Path, log: Path) -> None:
    environment = {**os.environ, "DOCKER_HOST": f"unix://{socket}"}
    deadline = time.monotonic() + START_SECONDS
    while not _answers(environment):
        if daemon.poll() is not None or time.monotonic() > deadline:
            last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
            raise NoEngine(f"dockerd does not start here: {last[-400:]}")
        time.sleep(0.2)
