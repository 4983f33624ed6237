"""Who may call each method, compiled once from the options in the protos.

If this fails: a method is served to callers that its author did not mean. The
handler's own checks of tenant still hold, and the golden file shows the change.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from casemate.errors import ConfigurationError, NotServed
from casemate.gate.core.foreign import FOREIGN
from casemate.gate.core.method_policy import MethodPolicy, PeerAccess, ResourceSelector, TokenAccess
from casemate.gate.core.records import VERBS
from casemate.policy.v1 import policy_pb2

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from google.protobuf.descriptor import Descriptor, MethodDescriptor, ServiceDescriptor

__all__ = ["FOREIGN", "MethodPolicy", "PeerAccess", "PolicyTable", "ResourceSelector", "TokenAccess"]

# The stubs' own types call an extension a field descriptor, which the runtime's types do not accept as a key.
_METHOD: Any = policy_pb2.method
_RESOURCE: Any = policy_pb2.resource
_VERSION: Any = policy_pb2.resource_version


class PolicyTable:
    """The policies of all methods that a server may register.

    Raises:
        ConfigurationError: a method asks for a verb that no grant can give; names each, and the field.
    """

    def __init__(self, policies: Iterable[MethodPolicy]) -> None:
        self._by_method = {policy.method: policy for policy in policies}
        _require_grantable(self._by_method.values())
        # Every call asks twice, so it asks the map itself.
        self.find: Callable[[str], MethodPolicy | None] = self._by_method.get
        """The policy of a method, or None: for the gate, which must not tell strangers which methods exist."""

    @classmethod
    def from_descriptors(
        cls, services: Iterable[ServiceDescriptor], foreign: Mapping[str, MethodPolicy] | None = None
    ) -> PolicyTable:
        """Compiles the options of every method of `services` and adds the table of foreign methods.

        Args:
            services: descriptors of services that carry our policy option.
            foreign: policies of services that cannot carry it; `FOREIGN` is ours.

        Raises:
            ConfigurationError: a policy contradicts itself; all problems are named.
        """
        problems: list[str] = []
        compiled: list[MethodPolicy] = []
        for service in services:
            for method in service.methods:
                try:
                    policy = _compile(method)
                except ConfigurationError as error:
                    problems.append(str(error))
                else:
                    compiled += [policy] if policy is not None else []
        if problems:
            raise ConfigurationError("; ".join(problems))
        return cls([*(foreign or {}).values(), *compiled])

    def admitting(self, full_method: str, services: Iterable[str]) -> PolicyTable:
        """This table with further services among those that may call one method.

        For what only an installation knows: which other teams' services follow its feed. The policy in
        the proto must name services already, so nothing that asks for a token comes to ask for less.

        Raises:
            ConfigurationError: the method's policy names no services.
        """
        policy = self._by_method.get(full_method)
        if policy is None or not isinstance(policy.access, PeerAccess) or not policy.access.services:
            raise ConfigurationError(f"{full_method} is not for named services")
        access = PeerAccess(policy.access.services | frozenset(services))
        return PolicyTable([*self._by_method.values(), replace(policy, access=access)])

    def of(self, full_method: str) -> MethodPolicy:
        """The policy of a method.

        Raises:
            NotServed: there is none.
        """
        policy = self._by_method.get(full_method)
        if policy is None:
            raise NotServed(f"no policy for {full_method!r}")
        return policy

    def require(self, methods: Iterable[str]) -> None:
        """Refuses to go on when a registered method has no policy.

        Raises:
            ConfigurationError: names every such method.
        """
        missing = sorted(method for method in methods if method not in self._by_method)
        if missing:
            raise ConfigurationError(f"no policy for {', '.join(missing)}: add option (casemate.policy.v1.method)")

    def golden(self) -> str:
        """All policies as text, one line a method, sorted: a loosening shows as a difference."""
        return "".join(f"{policy.line()}\n" for policy in self)

    def __iter__(self) -> Iterator[MethodPolicy]:
        return iter(sorted(self._by_method.values(), key=lambda policy: policy.method))


def _require_grantable(policies: Iterable[MethodPolicy]) -> None:
    """A verb that is misspelt would refuse everybody, as NOT_FOUND, and nobody could see why."""
    odd = sorted(
        f"{policy.method}: token.verb is {policy.access.verb!r}"
        for policy in policies
        if isinstance(policy.access, TokenAccess) and policy.access.verb not in (None, *VERBS)
    )
    if odd:
        raise ConfigurationError(f"{'; '.join(odd)}: grants can give {', '.join(VERBS)}")


def _compile(method: MethodDescriptor) -> MethodPolicy | None:
    options = method.GetOptions()
    if not options.HasExtension(_METHOD):
        return None
    declared = options.Extensions[_METHOD]
    name = f"/{method.containing_service.full_name}/{method.name}"
    kind = declared.WhichOneof("access")
    if kind is None:
        return None
    access = _access(name, declared)
    resource = _selector(name, method.input_type)
    verb = access.verb if isinstance(access, TokenAccess) else None
    if (verb is None) != (resource is None):
        raise ConfigurationError(f"{name}: a verb and a resource field come together")
    return MethodPolicy(
        method=name,
        access=access,
        sensitive=declared.sensitive,
        idempotent=declared.idempotent,
        audit_allowed=declared.audit_allowed,
        only_revokes=declared.only_revokes,
        resource=resource,
    )


def _access(name: str, declared: policy_pb2.MethodPolicy) -> PeerAccess | TokenAccess:
    if declared.WhichOneof("access") == "peer":
        return PeerAccess(services=frozenset(declared.peer.services))
    if not declared.token.scope:
        raise ConfigurationError(f"{name}: a token policy without a scope")
    return TokenAccess(scope=declared.token.scope, verb=declared.token.verb or None)


def _selector(name: str, request: Descriptor) -> ResourceSelector | None:
    marked = [(field.name, kind) for field in request.fields if (kind := field.GetOptions().Extensions[_RESOURCE])]
    if len(marked) > 1:
        raise ConfigurationError(f"{name}: more than one resource field")
    versions = [field.name for field in request.fields if field.GetOptions().Extensions[_VERSION]]
    if len(versions) > len(marked):
        raise ConfigurationError(f"{name}: more versions than resources")
    if not marked:
        return None
    field, kind = marked[0]
    return ResourceSelector(type=kind, field=field, version=next(iter(versions), None))
