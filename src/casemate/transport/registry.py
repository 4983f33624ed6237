"""A service as data: its name and its handlers, before any server exists.

The gate must see every method to refuse to start without a policy; generated
code gives handlers only to a server. A recorder stands in for that server.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, TypeAlias

import grpc

from casemate.errors import ConfigurationError

Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"

Behavior: TypeAlias = Callable[[Any, Any], Any]
"""What serves a message, in its context."""
AtOnce: TypeAlias = Callable[[Any, Any, Any], Behavior | None]
"""What serves a caller's message in its context by so little work that it needs no thread; None: give it one.

Called on the thread that serves all calls, where the behavior then runs as well: neither may wait for
anything nor compute for long."""

LATER: Final = object()
"""What a behavior returns whose context is an `AnswersLater`, when somebody else is to end the call."""


class AnswersLater(ABC):
    """The context of a call for which no thread has to wait: its behavior returns `LATER`, and `conclude` ends it."""

    @abstractmethod
    def conclude(self, reply: Callable[[], Any]) -> None:
        """Ends the call as if its behavior had returned, or raised, what `reply` does.

        Once, from any thread, also before the behavior has returned `LATER`. Never waits for the peer;
        whatever `reply` raises is this call's alone.
        """

    @abstractmethod
    def in_thread(self, work: Callable[[], object]) -> None:
        """Gives work a thread of the server, in the line of the call's tenant.

        Raises:
            RuntimeError: the server ends, and no thread is left.
        """


@dataclass(frozen=True, slots=True)
class RegisteredService:
    """One service: its full name, and its handlers by bare method name.

    Attributes:
        name: full name.
        handlers: by bare method name.
        at_once: see `AtOnce`; of unary methods, by bare method name.
    """

    name: str
    handlers: Mapping[str, Handler]
    at_once: Mapping[str, AtOnce] = field(default_factory=lambda: MappingProxyType({}))

    @property
    def methods(self) -> frozenset[str]:
        """Full names as they stand in `:path`: `/package.Service/Method`."""
        return frozenset(f"/{self.name}/{method}" for method in self.handlers)


def registered(add_to_server: Callable[[Any, Any], None], servicer: object) -> RegisteredService:
    """The service that a generated `add_…Servicer_to_server` would add.

    Raises:
        ConfigurationError: the function registered no service, or more than one.
    """
    recorder = _Recorder()
    add_to_server(servicer, recorder)
    if len(recorder.services) != 1:
        raise ConfigurationError(f"{add_to_server.__name__} registered {len(recorder.services)} services, not one")
    return recorder.services[0]


def methods_of(services: Iterable[RegisteredService]) -> frozenset[str]:
    """Full names of all methods of all services."""
    return frozenset(method for service in services for method in service.methods)


class _Recorder:
    """Takes what a server takes, and keeps it."""

    def __init__(self) -> None:
        self.services: list[RegisteredService] = []

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        """Ignored: the same handlers come by name as well."""

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        self.services.append(RegisteredService(service_name, MappingProxyType(dict(method_handlers))))
