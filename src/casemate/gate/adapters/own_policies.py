"""The policies of every method that Casemate's three services serve, together."""

from __future__ import annotations

from casemate.auth.v1 import (
    admin_service_pb2,
    credential_service_pb2,
    release_service_pb2,
    token_service_pb2,
    trust_service_pb2,
    witness_service_pb2,
)
from casemate.datasets.v1 import dataset_service_pb2, log_service_pb2
from casemate.gate.core.foreign import FOREIGN
from casemate.gate.core.policy import PolicyTable
from casemate.inference.v1 import model_service_pb2
from casemate.keys.v1 import key_service_pb2

_FILES = (
    admin_service_pb2,
    credential_service_pb2,
    release_service_pb2,
    token_service_pb2,
    trust_service_pb2,
    witness_service_pb2,
    dataset_service_pb2,
    log_service_pb2,
    model_service_pb2,
    key_service_pb2,
)


def own_policies() -> PolicyTable:
    """Ours, from their descriptors, and the foreign ones that we serve."""
    services = [service for file in _FILES for service in file.DESCRIPTOR.services_by_name.values()]
    return PolicyTable.from_descriptors(services, FOREIGN)
