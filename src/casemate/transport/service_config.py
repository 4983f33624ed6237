"""gRPC's service configuration of a channel: balancing, health, retries (gRFC A6, A17)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from casemate.policy.v1 import policy_pb2

if TYPE_CHECKING:
    from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor

_RETRY_POLICY = {
    "maxAttempts": 4,
    "initialBackoff": "0.1s",
    "maxBackoff": "1s",
    "backoffMultiplier": 2,
    "retryableStatusCodes": ["UNAVAILABLE"],
}


def idempotent_methods(*services: ServiceDescriptor) -> frozenset[str]:
    """Full names of the methods whose policy option says that a repeated call has the effect of one."""
    return frozenset(
        f"/{service.full_name}/{method.name}"
        for service in services
        for method in service.methods
        if _policy(method).idempotent
    )


def _policy(method: MethodDescriptor) -> policy_pb2.MethodPolicy:
    return method.GetOptions().Extensions[policy_pb2.method]  # type: ignore[index]  # the stub says FieldDescriptor


def service_config(idempotent: frozenset[str]) -> str:
    """The configuration as JSON.

    Half of `maxTokens` failures without a success in between stop the retries of
    a channel, so that a service which is down is not kept down by them.
    """
    config: dict[str, object] = {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
    }
    if idempotent:
        names = [path.strip("/").split("/") for path in sorted(idempotent)]
        config["methodConfig"] = [
            {
                "name": [{"service": service, "method": method} for service, method in names],
                "retryPolicy": _RETRY_POLICY,
            }
        ]
        config["retryThrottling"] = {"maxTokens": 100, "tokenRatio": 0.5}
    return json.dumps(config)
