"""No rpc of any service is left to the generated class, which would answer that it is not implemented."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

import casemate
import services
from casemate.inference.v1 import model_service_pb2
from casemate.transport.registry import registered
from services.inference.servicers import model_service

SOURCE = Path(casemate.__file__).parent
PROGRAMS = Path(next(iter(services.__path__)))


def _modules(package, pattern):
    """Modules of a package whose path is of this form."""
    for path in sorted(package.rglob(pattern)):
        yield importlib.import_module(".".join(path.relative_to(package.parent).with_suffix("").parts))


def _services():
    """Every service of our protos, with its generated servicer and what registers one."""
    for generated in _modules(SOURCE, "*_pb2_grpc.py"):
        descriptor = importlib.import_module(generated.__name__.removesuffix("_grpc")).DESCRIPTOR
        for service in descriptor.services_by_name.values():
            add = getattr(generated, f"add_{service.name}Servicer_to_server")
            yield service, getattr(generated, f"{service.name}Servicer"), add


SERVICES = {service.full_name: (service, base, add) for service, base, add in _services()}
HOST_FREE = {"casemate.inference.v1.ModelService"}
"""Registered by a table instead of a class."""


def _ours(base):
    """The classes of our programs that are whole servicers: those that nothing is derived from."""
    for found in base.__subclasses__():
        derived = list(_ours(found))
        yield from derived or ([found] if found.__module__.startswith("services.") else [])


def _generated(service, base, servicer):
    return [method.name for method in service.methods if getattr(servicer, method.name) is getattr(base, method.name)]


@pytest.mark.parametrize("name", sorted(SERVICES.keys() - HOST_FREE))
def test_every_rpc_is_written_by_every_servicer_of_its_service(name):
    assert list(_modules(PROGRAMS, "*servicer*.py"))
    assert list(_modules(PROGRAMS, "keys/blocking.py"))
    service, base, _ = SERVICES[name]
    servicers = list(_ours(base))
    assert servicers, f"nobody serves {name}"
    for servicer in servicers:
        assert _generated(service, base, servicer) == []


def test_what_is_registered_by_a_table_is_registered_whole():
    """The table of the Open Inference protocol is held to its own descriptor by the tests of inference."""
    service = model_service_pb2.DESCRIPTOR.services_by_name["ModelService"]
    table = model_service(publishing=_Anything(), index=_Anything())
    assert (table.name, set(table.handlers)) == (service.full_name, {method.name for method in service.methods})


def test_an_rpc_that_nobody_wrote_is_found():
    service, base, add = SERVICES["casemate.auth.v1.AdminService"]

    class Forgetful(base):
        def CreateTenant(self, request, context):  # noqa: N802  # the protocol's name
            """Written."""

    forgotten = _generated(service, base, Forgetful)
    assert forgotten == [method.name for method in service.methods if method.name != "CreateTenant"]
    assert set(registered(add, Forgetful()).handlers) == {method.name for method in service.methods}


class _Anything:
    """Has whatever is asked of it: nothing here is called."""

    def __getattr__(self, name):
        return name
