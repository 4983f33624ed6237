"""The images that ours begin with: the real ones where a registry answers, local stand-ins of the same shape elsewhere.

A stand-in for Python is Debian's own python3 at the same minor version; the one for the final
stages has been stripped of everything but the interpreter, as a distroless image is.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.compose.engine import Engine, NoEngine

CHECKOUT = Path(__file__).resolve().parents[2]
CACHE = Path(os.environ.get("CASEMATE_COMPOSE_CACHE", "/var/cache/casemate-compose"))
IMAGES = ("auth", "datasets", "inference", "tools")
BUILT_FROM = (
    *("Dockerfile", ".dockerignore", "docker-compose.yml", "pyproject.toml", "README.md", "LICENSE"),
    *("requirements", "src", "services", "deploy"),
)
REAL = {
    "BUILDER": "python:3.11-slim-bookworm",
    "RUNTIME": "gcr.io/distroless/python3-debian12",
    "POSTGRES": "postgres:17-bookworm",
    "PROMETHEUS": "prom/prometheus:v2.55.1",
    "COLLECTOR": "otel/opentelemetry-collector-contrib:0.115.1",
    "GRAFANA": "grafana/grafana:12.2.1",
}
_ALIKE = "python3,python3-venv,ca-certificates"

_KEPT = re.compile(
    r"\./(?:(?:bin|lib|lib64|sbin|usr|usr/bin|usr/lib|usr/lib64|usr/lib/[^/]+-linux-gnu|etc|etc/ssl|etc/ssl/certs|tmp)/?"
    r"|usr/bin/python3[^/]*|usr/bin/prom(?:etheus|tool)|usr/lib/python3(?:\.\d+)?/.*|usr/lib/[^/]+-linux-gnu/[^/]+\.so[^/]*|usr/lib64/.*"
    r"|etc/(?:passwd|group|nsswitch\.conf|os-release|ssl/certs/ca-certificates\.crt)|usr/lib/os-release)"
)
_DROPPED = re.compile(
    r"\./usr/lib/python3(?:/dist-packages|\.\d+/(?:ensurepip|lib2to3|idlelib|test|turtledemo))|\./usr/lib/[^/]+/lib(?:apt|perl)"
)


@dataclass(frozen=True, slots=True)
class Bases:
    """Build arguments, and the images to remove again."""

    arguments: dict[str, str]
    made: tuple[str, ...]

    @property
    def watchers(self) -> tuple[str, ...]:
        """What of the profile `observability` can be run: Debian has Prometheus, and neither of the others."""
        return ("prometheus",) if self.made else ("prometheus", "collector", "grafana")


def snapshot(target: Path) -> Path:
    """A copy of what builds read: two builds of it have one source, whatever is edited meanwhile."""
    target.mkdir()
    for name in BUILT_FROM:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(source, target / name)
    return target


def bases(engine: Engine, tag: str, say) -> Bases:
    """Real images if the first of them can be pulled; stand-ins otherwise.

    Raises:
        NoEngine: neither can be had.
    """
    if engine.answers("pull", "--quiet", REAL["BUILDER"]):
        say("a registry answers: the real base images are used")
        for image in list(REAL.values())[1:]:
            engine.docker("pull", "--quiet", image)
        return Bases(dict(REAL), ())
    say("no registry answers: base images are made from Debian's packages")
    CACHE.mkdir(parents=True, exist_ok=True)
    full, bare, postgres, prometheus, builder = (
        f"casemate-standin/{name}:{tag}" for name in ("full", "bare", "postgres", "prometheus", "builder")
    )
    python = _debian("python", _ALIKE, say)
    engine.docker("import", str(python), full)
    engine.docker("import", str(_stripped(python)), bare)
    engine.docker("import", str(_debian("postgres", "postgresql,ca-certificates", say)), postgres)
    # As the real one: the program is what is started, and configuration is what it is told.
    started = '--change=ENTRYPOINT ["/usr/bin/prometheus"]'
    watcher = _stripped(_debian("prometheus", "prometheus,ca-certificates", say))
    engine.docker("import", started, str(watcher), prometheus)
    _wheels(say)
    context = _context({"Dockerfile": f"FROM {full}\nCOPY pip.conf /etc/pip.conf\nCOPY wheels /wheels\n".encode(),
                        "pip.conf": b"[global]\nno-index = true\nfind-links = /wheels\n"})  # fmt: skip
    engine.docker("build", "--quiet", "--tag", builder, "-", stdin=context)
    found = {"BUILDER": builder, "RUNTIME": bare, "POSTGRES": postgres, "PROMETHEUS": prometheus}
    return Bases(found, (builder, full, bare, postgres, prometheus))


def _debian(name: str, packages: str, say) -> Path:
    """A tarball of Debian bookworm with these packages, made once."""
    made = CACHE / f"{name}.tar"
    if not made.exists():
        if not shutil.which("mmdebstrap"):
            raise NoEngine("no registry answers, and there is no mmdebstrap to make base images with")
        say(f"making a base of {packages} (once; half a minute)")
        new = made.with_name(f"{name}.new.tar")
        command = ["mmdebstrap", "--quiet", "--variant=minbase", f"--include={packages}", "bookworm", str(new)]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode:
            raise NoEngine(f"mmdebstrap failed: {done.stderr.decode(errors='replace').strip()[-400:]}")
        new.rename(made)
    return made


def _stripped(full: Path) -> Path:
    """Only the interpreter or the program, its libraries and a root certificate store; no shell, no package manager."""
    bare = full.with_name(f"{full.stem}-bare.tar")
    if bare.exists():
        return bare
    new = bare.with_name(f"{bare.stem}.new.tar")
    with tarfile.open(full) as source, tarfile.open(new, "w") as target:
        for member in source:
            if _KEPT.fullmatch(member.name) and not _DROPPED.match(member.name):
                target.addfile(member, source.extractfile(member) if member.isfile() else None)
    new.rename(bare)
    return bare


def _wheels(say) -> None:
    """The wheels that the locks name, fetched here: a build reaches no index."""
    locks = [CHECKOUT / "requirements" / f"{name}.txt" for name in ("build", "aws", *IMAGES)]
    digest = hashlib.sha256(b"".join(lock.read_bytes() for lock in locks)).hexdigest()
    folder, stamp = CACHE / "wheels", CACHE / "wheels.sha256"
    if stamp.exists() and stamp.read_text() == digest:
        return
    say("fetching the wheels that the locks name (once for each change of them)")
    shutil.rmtree(folder, ignore_errors=True)
    platforms = [f"--platform=manylinux{tag}_x86_64" for tag in ("_2_28", "_2_27", "2014", "_2_17")]
    for lock in locks:
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
        command += ["--require-hashes", "--only-binary=:all:", "--python-version=3.11", *platforms]
        done = subprocess.run([*command, f"--dest={folder}", f"--requirement={lock}"], capture_output=True, check=False)
        if done.returncode:
            raise NoEngine(f"the wheels cannot be fetched: {done.stderr.decode(errors='replace').strip()[-400:]}")
    stamp.write_text(digest)


def _context(files: dict[str, bytes]) -> bytes:
    """A build context of these files and the wheels."""
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
        archive.add(CACHE / "wheels", "wheels")
    return packed.getvalue()


def layers(engine: Engine, image: str) -> list[str]:
    """Digests of an image's layers, as they are uncompressed."""
    return json.loads(engine.docker("image", "inspect", "--format", "{{json .RootFS.Layers}}", image))


def size(engine: Engine, image: str) -> int:
    """Bytes of all of an image's layers."""
    return int(engine.docker("image", "inspect", "--format", "{{.Size}}", image))
