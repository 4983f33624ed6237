"""Policies of services whose protos are not ours and cannot carry the option."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

from casemate.gate.core.method_policy import MethodPolicy, PeerAccess, ResourceSelector, TokenAccess

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_HEALTH = "/grpc.health.v1.Health/"
_REFLECTIONS = ("/grpc.reflection.v1alpha.ServerReflection/", "/grpc.reflection.v1.ServerReflection/")
_OPEN_INFERENCE = "/inference.GRPCInferenceService/"

_ABOUT_SERVER = ("ServerLive", "ServerReady", "ServerMetadata", "RepositoryIndex")
_ABOUT_MODEL = ("ModelReady", "ModelMetadata", "ModelConfig")
_PREDICTING = ("ModelInfer", "ModelStreamInfer")
_CHANGING_MODEL = ("RepositoryModelLoad", "RepositoryModelUnload")
_CHANGING_SERVER = (
    "SystemSharedMemoryStatus",
    "SystemSharedMemoryRegister",
    "SystemSharedMemoryUnregister",
    "CudaSharedMemoryStatus",
    "CudaSharedMemoryRegister",
    "CudaSharedMemoryUnregister",
    "TraceSetting",
    "LogSettings",
)

INFER_SCOPE = "models.infer"
PUBLISH_SCOPE = "models.publish"

LOADED_MODEL = ResourceSelector(type="model", field="model_name", fallback="repository_name")
"""What a request to load or unload is about: KServe puts the model's name where Triton has the repository's."""


def _health() -> Iterator[MethodPolicy]:
    for name, unwrapped in (("Check", False), ("List", False), ("Watch", True)):
        yield MethodPolicy(
            method=_HEALTH + name, access=PeerAccess(), idempotent=True, needs_trust=False, unwrapped=unwrapped
        )


def _reflection() -> Iterator[MethodPolicy]:
    for prefix in _REFLECTIONS:
        yield MethodPolicy(method=prefix + "ServerReflectionInfo", access=TokenAccess("reflection"), idempotent=True)


def _open_inference() -> Iterator[MethodPolicy]:
    for name in _ABOUT_SERVER:
        yield MethodPolicy(method=_OPEN_INFERENCE + name, access=TokenAccess(INFER_SCOPE), idempotent=True)
    for name in _ABOUT_MODEL:
        yield MethodPolicy(
            method=_OPEN_INFERENCE + name,
            access=TokenAccess(INFER_SCOPE, "describe"),
            idempotent=True,
            resource=ResourceSelector(type="model", field="name"),
        )
    yield MethodPolicy(
        method=_OPEN_INFERENCE + "ModelStatistics",
        access=TokenAccess(INFER_SCOPE, "describe"),
        idempotent=True,
        resource=ResourceSelector(type="model", field="name", optional=True),  # without a name: all of the caller's
    )
    for name in _PREDICTING:
        yield MethodPolicy(
            method=_OPEN_INFERENCE + name,
            access=TokenAccess(INFER_SCOPE, "infer"),
            idempotent=name == "ModelInfer",
            resource=ResourceSelector(type="model", field="model_name"),
        )
    for name in _CHANGING_MODEL:
        yield MethodPolicy(
            method=_OPEN_INFERENCE + name,
            access=TokenAccess(PUBLISH_SCOPE, "publish"),
            sensitive=True,
            audit_allowed=True,
            resource=LOADED_MODEL,
        )
    for name in _CHANGING_SERVER:
        yield MethodPolicy(
            method=_OPEN_INFERENCE + name, access=TokenAccess(PUBLISH_SCOPE), sensitive=True, audit_allowed=True
        )


FOREIGN: Mapping[str, MethodPolicy] = MappingProxyType(
    {policy.method: policy for policies in (_health(), _reflection(), _open_inference()) for policy in policies}
)
"""Health, reflection and the 20 rpcs of Open Inference, by full method name."""
