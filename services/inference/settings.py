"""The settings of the inference service."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from casemate.sealing.provider import KekSettings
from casemate.settings import (
    IdentitySettings,
    ListenSettings,
    TrustSettings,
    address,
    boolean,
    duration,
    integer,
    path,
    setting,
)
from services.inference.object_repository import SCHEME, ObjectPlace, endpoint, object_place
from services.inference.version_policy import VersionPolicies, version_policies

_MIB = 1024 * 1024


def repository_place(text: str) -> Path | ObjectPlace:
    """Parses where the sealed models lie: a folder, or `s3://bucket/path`.

    Raises:
        ValueError: it is neither.
    """
    return object_place(text) if text.startswith(SCHEME) else path(text)


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """How much is served at once, and how large."""

    threads: int = setting("THREADS", parse=integer(2, 256), default=64, help="calls that run or wait at once")
    max_message_mib: int = setting(
        "MAX_MESSAGE_MIB", parse=integer(1, 1024), default=64, help="largest request or reply, in MiB"
    )
    max_model_mib: int = setting(
        "MAX_MODEL_MIB", parse=integer(1, 16384), default=256, help="all files of one model version, in MiB"
    )
    uploads: int = setting("UPLOADS", parse=integer(1, 16), default=2, help="models that may be published at once")
    versions: VersionPolicies = setting(
        "VERSIONS",
        parse=version_policies,
        default=VersionPolicies(),
        help="versions that stay loaded: latest:N, all or 1,3; then tenant/model=… where one differs",
    )
    reload_retry: timedelta = setting(
        "RELOAD_RETRY",
        parse=duration,
        default=timedelta(seconds=30),
        help="how soon a version that could not be loaded is tried again",
    )
    load_patience: timedelta = setting(
        "LOAD_PATIENCE",
        parse=duration,
        default=timedelta(seconds=30),
        help="how long the load of one version may hold up the others; it then goes on by itself",
    )

    deadline: timedelta = setting(
        "DEADLINE", parse=duration, default=timedelta(seconds=60), help="longest that one prediction may take or wait"
    )
    stream_idle: timedelta = setting(
        "STREAM_IDLE",
        parse=duration,
        default=timedelta(minutes=5),
        help="how long a stream's peer may neither send nor read",
    )

    upload_idle: timedelta = setting(
        "UPLOAD_IDLE",
        parse=duration,
        default=timedelta(seconds=30),
        help="how long a publisher may send nothing before its upload is cut",
    )

    model_memory_mib: int = setting(
        "MODEL_MEMORY_MIB",
        parse=integer(0, 1024 * 1024),
        default=0,
        help="memory of all models and their runs together, in MiB; 0 for half of the machine's or the container's",
    )

    unsafe_division: bool = setting(
        "UNSAFE_DIVISION",
        parse=boolean,
        default=False,
        help="also models that divide whole numbers which their callers choose: by some, the process ends",
    )

    trace_one_in: int = setting(
        "TRACE_ONE_IN", parse=integer(0, 1_000_000), default=0, help="every so-manieth prediction is traced; 0 for none"
    )

    @property
    def max_message_bytes(self) -> int:
        """The largest message, in bytes."""
        return self.max_message_mib * _MIB

    @property
    def max_model_bytes(self) -> int:
        """All files of one version together, in bytes."""
        return self.max_model_mib * _MIB

    @property
    def model_memory_bytes(self) -> int:
        """Of all models together, in bytes; 0 where it is not said."""
        return self.model_memory_mib * _MIB


@dataclass(frozen=True, slots=True)
class WorkerSettings:
    """How many processes serve, and when one of several is replaced."""

    count: int = setting("WORKERS", parse=integer(1, 64), default=1, help="processes that serve on the one port")
    memory_mib: int = setting(
        "WORKER_MEMORY_MIB",
        parse=integer(0, 1024 * 1024),
        default=0,
        help="one of several workers is replaced when it has more in memory, in MiB; 0 for no limit",
    )
    silence: timedelta = setting(
        "WORKER_SILENCE",
        parse=duration,
        default=timedelta(seconds=10),
        help="one of several workers is replaced when its main thread has said nothing for so long",
    )
    longest_run: timedelta = setting(
        "WORKER_LONGEST_RUN",
        parse=duration,
        default=timedelta(seconds=90),
        help="one of several workers is replaced when a run of a model takes longer",
    )


@dataclass(frozen=True, slots=True)
class InferenceSettings:
    """Everything that `python -m services.inference` reads from its environment."""

    listen: ListenSettings
    identity: IdentitySettings
    trust: TrustSettings
    serving: ServingSettings
    workers: WorkerSettings
    kek: KekSettings
    auth_address: str = setting("AUTH_ADDRESS", parse=address, default="127.0.0.1:7401", help="host:port of auth")
    datasets_address: str = setting(
        "DATASETS_ADDRESS", parse=address, default="127.0.0.1:7403", help="host:port of datasets"
    )
    repository: Path | ObjectPlace = setting(
        "REPOSITORY_DIR", parse=repository_place, help="folder of the sealed models, or s3://bucket/path"
    )
    repository_endpoint: str | None = setting(
        "REPOSITORY_ENDPOINT", parse=endpoint, default=None, help="the S3 server, where it is not AWS's own"
    )
    backends_file: Path | None = setting(
        "BACKENDS_FILE", parse=path, default=None, help="TOML file of the upstream back ends that models may name"
    )
    audit_file: Path = setting("AUDIT_FILE", parse=path, help="file that decisions are appended to")
