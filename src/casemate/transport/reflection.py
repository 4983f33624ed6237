"""`grpc.reflection.v1alpha`, over a descriptor pool of its own.

The pool holds our services, health, reflection and the Open Inference Protocol.
The default pool cannot: tritonclient registers its own files for package
`inference` there, and both must import in one process.

If this fails: a caller with the `reflection` scope reads descriptors of more
services than are served. They are public files.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2, reflection_pb2_grpc

from casemate.auth.v1 import (
    admin_service_pb2,
    credential_service_pb2,
    release_service_pb2,
    token_service_pb2,
    trust_service_pb2,
    witness_service_pb2,
)
from casemate.datasets.v1 import dataset_service_pb2, log_service_pb2
from casemate.errors import ConfigurationError
from casemate.inference.v1 import model_service_pb2
from casemate.keys.v1 import key_service_pb2
from casemate.open_inference.v2 import open_inference_pb2
from casemate.transport.registry import RegisteredService, registered

if TYPE_CHECKING:
    from google.protobuf.descriptor import FileDescriptor

SERVICE_NAME = "grpc.reflection.v1alpha.ServerReflection"

_FILES = (
    admin_service_pb2,
    credential_service_pb2,
    dataset_service_pb2,
    health_pb2,
    key_service_pb2,
    log_service_pb2,
    model_service_pb2,
    reflection_pb2,
    release_service_pb2,
    token_service_pb2,
    trust_service_pb2,
    witness_service_pb2,
)


def reflection_service(names: Iterable[str], *, files: Iterable[FileDescriptor] = ()) -> RegisteredService:
    """Reflection for the synchronous server.

    Args:
        names: full names of the services to list; reflection itself is added.
        files: descriptors of services that are not ours.

    Raises:
        ConfigurationError: a name is in none of the files.
    """
    servicer = reflection.ReflectionServicer(*_listed(names, files))
    return registered(reflection_pb2_grpc.add_ServerReflectionServicer_to_server, servicer)


def aio_reflection_service(names: Iterable[str], *, files: Iterable[FileDescriptor] = ()) -> RegisteredService:
    """Reflection for the aio server; the rest as for `reflection_service`."""
    servicer = reflection.aio.ReflectionServicer(*_listed(names, files))
    return registered(reflection_pb2_grpc.add_ServerReflectionServicer_to_server, servicer)


def _listed(
    names: Iterable[str], files: Iterable[FileDescriptor]
) -> tuple[frozenset[str], descriptor_pool.DescriptorPool]:
    pool = _private_pool(files)
    wanted = frozenset(names) | {SERVICE_NAME}
    unknown = sorted(name for name in wanted if not _knows(pool, name))
    if unknown:
        raise ConfigurationError(f"reflection has no descriptor of: {', '.join(unknown)}")
    return wanted, pool


def _private_pool(files: Iterable[FileDescriptor]) -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    added: set[str] = set()
    for descriptor in (*(module.DESCRIPTOR for module in _FILES), *files):
        _add(pool, descriptor, added)
    pool.Add(descriptor_pb2.FileDescriptorProto.FromString(open_inference_pb2.FILE_DESCRIPTOR_PROTO))
    return pool


def _add(pool: descriptor_pool.DescriptorPool, descriptor: FileDescriptor, added: set[str]) -> None:
    """Adds a file after those that it imports, as a pool wants it."""
    if descriptor.name in added:
        return
    added.add(descriptor.name)
    for dependency in descriptor.dependencies:
        _add(pool, dependency, added)
    pool.Add(descriptor_pb2.FileDescriptorProto.FromString(descriptor.serialized_pb))


def _knows(pool: descriptor_pool.DescriptorPool, name: str) -> bool:
    try:
        pool.FindServiceByName(name)
    except KeyError:
        return False
    return True
