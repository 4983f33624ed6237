"""What is in the images, and what is not."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from tests.compose.bases import IMAGES, Bases, layers, size
from tests.compose.engine import Engine

BUDGETS_MB = {"auth": 100, "datasets": 300, "inference": 300, "tools": 100}
"""What each may add to its base."""

SERVICES = ("auth", "datasets", "inference")
NOT_IN = {
    "auth": {"pyarrow", "onnxruntime", "numpy"},
    "datasets": {"onnxruntime", "aiohttp"},
    "inference": {"asyncpg", "pyarrow", "aiohttp"},
    "tools": {"asyncpg", "pyarrow", "onnxruntime", "aiohttp", "grpc_reflection"},
}
PROGRAMS = {"sh", "bash", "dash", "busybox", "pip", "pip3", "gcc", "cc", "ld", "apt", "apt-get", "dpkg", "perl"}


class Images:
    """The images of one build."""

    def __init__(self, engine: Engine, bases: Bases, tag: str, *, context: Path) -> None:
        self.context = context
        self.engine = engine
        self._bases = bases
        self._tag = tag
        self._files: dict[str, list[tarfile.TarInfo]] = {}

    @property
    def watchers(self) -> tuple[str, ...]:
        """Services of the profile `observability` that can be had here."""
        return self._bases.watchers

    def name(self, target: str) -> str:
        """The name that the compose file knows it by."""
        return f"casemate/{target}:{self._tag}"

    def build(self, target: str, *, cached: bool = True, name: str | None = None, capabilities: str = "") -> None:
        """Builds one target of the Dockerfile."""
        arguments = [f"--build-arg={key}={value}" for key, value in self._bases.arguments.items()]
        if capabilities:
            arguments.append(f"--build-arg=CAPABILITIES={capabilities}")
        if not cached:
            arguments.append("--no-cache")
        # Nothing that runs in a build needs a network but pip, which stand-ins answer by themselves.
        network = ["--network=none"] if self._bases.made else []
        self.engine.docker(
            "build",
            "--quiet",
            *network,
            *arguments,
            f"--target={target}",
            f"--tag={name or self.name(target)}",
            str(self.context),
        )

    def remove(self) -> None:
        """Removes what `build` made."""
        for target in (*IMAGES, "backup", "postgres", *self.watchers):
            names = [f"{self.name(target)}{suffix}" for suffix in ("", "-again", "-aws")]
            self.engine.docker("image", "rm", "--force", *names, check=False)

    def added_megabytes(self) -> Iterator[tuple[str, float, int]]:
        """Target, megabytes on top of its base, and its budget."""
        base = size(self.engine, self._bases.arguments["RUNTIME"])
        for target, budget in BUDGETS_MB.items():
            yield target, (size(self.engine, self.name(target)) - base) / 1e6, budget

    def require_configured(self) -> None:
        """User, entry point, health check and labels are as the Dockerfile promises."""
        for target in (*SERVICES, "tools"):
            config = json.loads(
                self.engine.docker("image", "inspect", "--format", "{{json .Config}}", self.name(target))
            )
            assert config["User"] == "65532:65532", target
            assert config["Entrypoint"][0] == "python3", target
            assert not config.get("Cmd"), target
            labels = {key.removeprefix("org.opencontainers.image.") for key in config["Labels"]}
            assert {"title", "description", "licenses", "vendor", "version", "revision"} <= labels, target
            if target != "tools":
                test = config["Healthcheck"]["Test"]
                assert test[:5] == ["CMD", "python3", "-m", "casemate.cli", "health"], target
                assert test[-2:] == ["--identity", "/run/casemate/service"], target

    def require_bare(self) -> None:
        """No shell, no package manager, no compiler, no pip: neither as a program nor as a module."""
        for target in (*SERVICES, "tools"):
            files = self.files(target)
            programs = {
                PurePosixPath(file.name).name
                for file in files
                if PurePosixPath(file.name).parent.name in {"bin", "sbin"}
            }
            assert not programs & PROGRAMS, (target, programs & PROGRAMS)
            modules = {PurePosixPath(file.name).name for file in files}
            assert not modules & {"pip", "setuptools", "ensurepip"}, target
            setuid = [file.name for file in files if file.isfile() and file.mode & 0o6000]
            assert not setuid, (target, setuid)
            assert not self.engine.answers(
                "run", "--rm", "--network=none", "--entrypoint=sh", self.name(target), "-c", "true"
            )

    def require_own_alone(self) -> None:
        """Each holds its own service and its own dependencies; none holds another's."""
        for target in (*SERVICES, "tools"):
            names = {file.name for file in self.files(target)}
            services = {
                PurePosixPath(name).parts[2]
                for name in names
                if name.startswith("app/services/") and name.count("/") == 2
            }
            folders = {name for name in services if "." not in name and name != "__pycache__"}
            assert folders == ({target, "keys"} if target in SERVICES else set()), (target, folders)
            packages = {
                PurePosixPath(name).parts[2]
                for name in names
                if name.startswith("app/packages/") and name.count("/") >= 2
            }
            assert not packages & NOT_IN[target], (target, packages & NOT_IN[target])
            ours = [file for file in self.files(target) if file.name.startswith("app/") and file.isfile()]
            assert not [file.name for file in ours if file.mode & 0o022 or file.uid], target

    def require_reproducible(self, target: str) -> None:
        """A second build that takes nothing from the first ends in the same layers."""
        again = f"{self.name(target)}-again"
        self.build(target, cached=False, name=again)
        first, second = layers(self.engine, self.name(target)), layers(self.engine, again)
        assert first == second, (first, second)

    def require_capable(self) -> str:
        """Built with `aws`, inference has the clients of S3 and KMS; without, it has neither."""
        name = f"{self.name('inference')}-aws"
        self.build("inference", name=name, capabilities="aws")
        loads = ("run", "--rm", "--network=none", "--read-only", "--entrypoint=python3")
        loaded = "; ".join(
            (
                "import aioboto3, s3fs, casemate.sealing.aws_kms",
                "from services.inference.object_repository import object_place, open_object_repository",
                "open_object_repository(object_place('s3://bucket'), address=None)",
            )
        )
        assert self.engine.answers(*loads, name, "-c", loaded), self.engine.docker(*loads, name, "-c", loaded)
        assert not self.engine.answers(*loads, self.name("inference"), "-c", "import s3fs")
        added = (size(self.engine, name) - size(self.engine, self.name("inference"))) / 1e6
        return f"{added:.0f} MB more"

    def files(self, target: str) -> list[tarfile.TarInfo]:
        """Everything in the image's file system."""
        if target not in self._files:
            container = self.engine.docker("create", "--network=none", self.name(target)).strip()
            try:
                packed = self.engine.export(container)
            finally:
                self.engine.docker("rm", "--force", container)
            with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
                self._files[target] = archive.getmembers()
        return self._files[target]
