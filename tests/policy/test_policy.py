"""Policies of all methods, and what refuses to start without one."""

from __future__ import annotations

from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from casemate.auth.v1 import (
    admin_service_pb2,
    credential_service_pb2,
    release_service_pb2,
    token_service_pb2,
    trust_service_pb2,
    witness_service_pb2,
)
from casemate.datasets.v1 import dataset_service_pb2, log_service_pb2
from casemate.errors import ConfigurationError, InvalidRequest, NotServed
from casemate.gate.core.policy import FOREIGN, MethodPolicy, PolicyTable, ResourceSelector, TokenAccess
from casemate.gate.core.records import VERBS
from casemate.inference.v1 import model_service_pb2
from casemate.keys.v1 import key_service_pb2
from casemate.open_inference.v2 import open_inference_pb2
from casemate.policy.v1 import policy_pb2

GOLDEN = Path(__file__).parent / "golden.txt"
FILES = (
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
SERVICES = [service for file in FILES for service in file.DESCRIPTOR.services_by_name.values()]
METHODS = [f"/{service.full_name}/{method.name}" for service in SERVICES for method in service.methods]


def table() -> PolicyTable:
    return PolicyTable.from_descriptors(SERVICES, FOREIGN)


def test_every_policy_is_the_one_in_the_golden_file():
    """A difference here is a change of who may call what: look at it, then copy it into the file."""
    assert table().golden() == GOLDEN.read_text()


def test_what_runs_while_the_audit_is_down_is_for_operators_alone_and_is_audited():
    """Anybody else could fill the room in which events are kept meanwhile, and so keep operators from revoking."""
    exempt = [policy for policy in table() if policy.only_revokes]
    assert exempt
    for policy in exempt:
        assert policy.audit_allowed
        assert isinstance(policy.access, TokenAccess)
        assert policy.access.scope == "admin"


def test_every_method_of_ours_has_a_policy():
    table().require(METHODS)


def test_every_method_of_open_inference_has_a_policy_whose_field_exists():
    services = [
        service
        for name in open_inference_pb2.DESCRIPTOR.services_by_name
        for service in (open_inference_pb2.DESCRIPTOR.services_by_name[name],)
    ]
    policies = table()
    assert sum(len(service.methods) for service in services) == 20
    for service in services:
        for method in service.methods:
            policy = policies.of(f"/{service.full_name}/{method.name}")
            assert isinstance(policy.access, TokenAccess)
            assert (policy.access.verb is None) == (policy.resource is None)
            if policy.resource is not None:
                named_by = {policy.resource.field, policy.resource.fallback} - {None}
                assert named_by <= set(method.input_type.fields_by_name)


def test_a_method_without_a_policy_keeps_a_server_from_starting():
    with pytest.raises(ConfigurationError) as refused:
        table().require([*METHODS, "/other.Service/Two", "/other.Service/One"])
    assert "/other.Service/One, /other.Service/Two" in str(refused.value)
    with pytest.raises(NotServed):
        table().of("/other.Service/One")


def compiled(*, token=None, peer=None, marked=(), options=True):
    """The policies of a service with one method, declared as given."""
    file = descriptor_pb2.FileDescriptorProto(
        name="odd.proto", package="odd", syntax="proto3", dependency=["casemate/policy/v1/policy.proto"]
    )
    request = file.message_type.add(name="Request")
    for number, name in enumerate(("first", "second"), start=1):
        field = request.field.add(name=name, number=number, type="TYPE_STRING", label="LABEL_OPTIONAL")
        if name in marked:
            field.options.Extensions[policy_pb2.resource] = "thing"
    method = file.service.add(name="Service").method.add(
        name="Do", input_type=".odd.Request", output_type=".odd.Request"
    )
    if options:
        declared = method.options.Extensions[policy_pb2.method]
        if token is not None:
            declared.token.CopyFrom(policy_pb2.TokenAccess(**token))
        elif peer is not None:
            declared.peer.CopyFrom(policy_pb2.PeerAccess(**peer))
        else:
            declared.sensitive = True
    pool = descriptor_pool.DescriptorPool()
    for needed in ("google/protobuf/descriptor.proto", "casemate/policy/v1/policy.proto"):
        pool.AddSerializedFile(descriptor_pool.Default().FindFileByName(needed).serialized_pb)
    pool.AddSerializedFile(file.SerializeToString())
    return PolicyTable.from_descriptors([pool.FindServiceByName("odd.Service")])


@pytest.mark.parametrize(
    "odd",
    [
        {"token": {"scope": ""}},
        {"token": {"scope": "s", "verb": "read"}},
        {"token": {"scope": "s"}, "marked": ("first",)},
        {"token": {"scope": "s", "verb": "read"}, "marked": ("first", "second")},
        {"peer": {}, "marked": ("first",)},
    ],
    ids=str,
)
def test_a_policy_that_contradicts_itself_is_refused(odd):
    with pytest.raises(ConfigurationError, match=r"/odd\.Service/Do"):
        compiled(**odd)
    assert compiled(token={"scope": "s", "verb": "read"}, marked=("first",)).of("/odd.Service/Do")


def test_a_verb_that_no_grant_can_give_is_refused_by_method_and_field():
    with pytest.raises(ConfigurationError, match=r"/odd\.Service/Do: token\.verb is 'raed'.*describe"):
        compiled(token={"scope": "s", "verb": "raed"}, marked=("first",))
    with pytest.raises(ConfigurationError, match=r"/odd\.Service/Do: token\.verb is '\*'"):
        compiled(token={"scope": "s", "verb": "*"}, marked=("first",))
    for verb in VERBS:
        assert compiled(token={"scope": "s", "verb": verb}, marked=("first",)).of("/odd.Service/Do").access.verb == verb
    foreign = MethodPolicy(
        method="/odd.Service/Do", access=TokenAccess("s", "raed"), resource=ResourceSelector(type="odd", field="first")
    )
    with pytest.raises(ConfigurationError, match="raed"):
        PolicyTable([foreign])


@pytest.mark.parametrize("odd", [{"options": False}, {}], ids=["no option", "an option without access"])
def test_a_method_that_declares_no_access_has_no_policy(odd):
    with pytest.raises(ConfigurationError):
        compiled(**odd).require(["/odd.Service/Do"])
    compiled(peer={}).require(["/odd.Service/Do"])


def test_a_selector_reads_the_field_that_names_the_resource():
    selector = ResourceSelector(type="dataset", field="dataset")
    request = dataset_service_pb2.GetVersionRequest(dataset="digits")
    assert selector.of(request) == "dataset/digits"
    assert selector.of(dataset_service_pb2.GetVersionRequest()) is None
    missing = selector.missing()
    assert isinstance(missing, InvalidRequest)
    assert missing.violations[0].field == "dataset"


def test_a_fallback_counts_only_where_the_field_is_empty():
    selector = ResourceSelector(type="model", field="model_name", fallback="repository_name")
    request = open_inference_pb2.RepositoryModelLoadRequest(repository_name="digits")
    assert selector.of(request) == "model/digits"
    request.model_name = "letters"
    assert selector.of(request) == "model/letters"
    assert selector.of(open_inference_pb2.RepositoryModelLoadRequest()) is None
    assert selector.words() == "on model/{model_name|repository_name}"


def test_only_statistics_may_name_no_resource():
    assert [policy.method for policy in table() if policy.resource is not None and policy.resource.optional] == [
        "/inference.GRPCInferenceService/ModelStatistics"
    ]
