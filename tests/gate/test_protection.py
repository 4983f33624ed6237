"""`Protection`: what it refuses to start with."""

from __future__ import annotations

import grpc
import pytest

from casemate.errors import ConfigurationError
from casemate.gate.adapters.protection import Protection
from casemate.gate.core.policy import MethodPolicy, ResourceSelector, TokenAccess
from casemate.transport.registry import RegisteredService

AUDITED = MethodPolicy(method="/test.Echo/Open", access=TokenAccess("x"), audit_allowed=True)
SERVICE = RegisteredService("test.Echo", {"Open": grpc.unary_unary_rpc_method_handler(lambda request, _: request)})


@pytest.fixture(scope="module")
def identity(leaf):
    return leaf("service", service="greeter")


def protect(identity, policy=AUDITED, **settings):
    return Protection(identity=identity, auth="127.0.0.1:1", audience="greeter", policies=[policy], **settings)


def test_a_resource_that_no_grant_can_name_is_refused_before_anything_is_served(identity):
    def about(kind):
        return MethodPolicy(
            method="/test.Echo/Open",
            access=TokenAccess("greetings.read", "read"),
            resource=ResourceSelector(type=kind, field="name"),
        )

    odd = r"/test\.Echo/Open: the resource is a 'greeting'.*greeter/NAME"
    with protect(identity, about("greeting")) as protection, pytest.raises(ConfigurationError, match=odd):
        protection.server([SERVICE], address="127.0.0.1:0")
    for kind in ("greeter", "model"):
        with protect(identity, about(kind)) as protection:
            protection.server([SERVICE], address="127.0.0.1:0").stop()


def test_methods_that_are_to_be_audited_need_an_audit_file_or_a_word_that_they_do_not(identity, tmp_path):
    with protect(identity) as protection, pytest.raises(ConfigurationError, match=r"audit_file .*/test\.Echo/Open"):
        protection.server([SERVICE], address="127.0.0.1:0")
    for settings in ({"audit_file": tmp_path / "audit.jsonl"}, {"unsafe_without_audit": True}):
        with protect(identity, **settings) as protection:
            protection.server([SERVICE], address="127.0.0.1:0").stop()


def test_streams_of_a_protected_server_never_hold_all_its_threads(identity):
    with protect(identity, unsafe_without_audit=True) as protection:
        for threads in (0, 1, 3):
            with pytest.raises(ConfigurationError, match="4 or more"):
                protection.server([SERVICE], address="127.0.0.1:0", threads=threads)
        for threads, most in ((4, 1), (5, 2), (8, 5), (16, 9)):
            protection.server([SERVICE], address="127.0.0.1:0", threads=threads).stop()
            places = protection._interceptors[-1]._streams
            taken = sum(places.take("acme") for _ in range(threads))
            assert taken == most
            assert places.take("globex")
            while places.take("globex") or places.take("initech"):
                taken += 1
            assert taken + 1 <= threads - 2
