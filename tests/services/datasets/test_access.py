"""Every rpc of the service, found in its descriptors: who gets nothing from it, and by which status.

A new rpc is tried here without a line being added; one that needs more than empty
fields has its request in `REQUESTS`, and one that is missing there fails.
"""

from __future__ import annotations

from datetime import timedelta

import grpc
import pytest
import pytest_asyncio

from casemate.datasets.v1 import dataset_service_pb2 as messages
from casemate.datasets.v1 import log_service_pb2
from casemate.datasets.v1.dataset_service_pb2_grpc import DatasetServiceStub
from casemate.datasets.v1.log_service_pb2_grpc import LogServiceStub
from casemate.policy.v1 import policy_pb2
from services.datasets.store import VersionStore
from services.datasets.versions import Versions
from tests.services.datasets import conftest
from tests.services.datasets.world import (
    OPTIONS,
    TRIES,
    World,
    build_settings,
    credentials,
    manifest_message,
    write_met_the_end,
)

SERVICES = {
    "DatasetService": (messages, DatasetServiceStub),
    "LogService": (log_service_pb2, LogServiceStub),
}
METHODS = [
    (service, method.name)
    for service, (module, _) in SERVICES.items()
    for method in module.DESCRIPTOR.services_by_name[service].methods
]
TOKENS = [
    (service, name)
    for service, name in METHODS
    if SERVICES[service][0]
    .DESCRIPTOR.services_by_name[service]
    .methods_by_name[name]
    .GetOptions()
    .Extensions[policy_pb2.method]
    .HasField("token")
]
PEERS = [method for method in METHODS if method not in TOKENS]
NAMED = {
    "PushDataset": manifest_message(b"{}"),
    "GetVersion": messages.GetVersionRequest(dataset="digits"),
    "PullDataset": messages.PullDatasetRequest(dataset="digits"),
    "ShredVersion": messages.ShredVersionRequest(dataset="digits", version=1),
    "SetLabel": messages.SetLabelRequest(dataset="digits", label="golden", version=1),
    "ListLabels": messages.ListLabelsRequest(dataset="digits"),
    "GetLineage": messages.GetLineageRequest(dataset="digits"),
    "GetCroissant": messages.GetCroissantRequest(dataset="digits"),
    "SetRetention": messages.SetRetentionRequest(dataset="digits", keep_versions=1),
}
"""Requests that name a dataset: of another tenant, or without a grant, it is as if it were not there."""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def house(embedded_postgres, leaf, tmp_path_factory):
    """One service for all of these tests, which change nothing."""
    database, data_keys = [await conftest._emptied(embedded_postgres, name) for name in ("access_rows", "access_keys")]
    settings = build_settings(
        identity=leaf("service", service="datasets"),
        database=database,
        data_keys=data_keys,
        state=tmp_path_factory.mktemp("access"),
    )
    world = World(settings=settings, leaf=leaf, superuser=embedded_postgres.superuser)
    async with world.serve():
        owner = world.actor()
        await owner.push_all(world.signed())
        moved = messages.SetLabelRequest(dataset="digits", label="golden", version=1)
        await owner.datasets.SetLabel(moved, metadata=owner.metadata)
        yield world


async def refusal(world: World, service: str, name: str, metadata, directory) -> grpc.StatusCode:
    """The status that a call ends in; OK if it answers."""
    address = f"127.0.0.1:{world.running.port}"
    async with grpc.aio.secure_channel(address, credentials(directory), OPTIONS) as channel:
        for _ in range(TRIES):
            try:
                await answer(channel, service, name, metadata)
            except grpc.aio.AioRpcError as error:
                if not write_met_the_end(error):
                    return error.code()
            else:
                return grpc.StatusCode.OK
    raise AssertionError("grpc.aio never told what the server said")


async def answer(channel: grpc.aio.Channel, service: str, name: str, metadata) -> None:
    module, stub = SERVICES[service]
    method = module.DESCRIPTOR.services_by_name[service].methods_by_name[name]
    request = NAMED.get(name) or getattr(module, method.input_type.name)()
    rpc = getattr(stub(channel), name)
    if method.client_streaming:
        _ = [each async for each in rpc(iter([request]), metadata=metadata, timeout=20)]
    elif method.server_streaming:
        _ = [each async for each in rpc(request, metadata=metadata, timeout=20)]
    else:
        await rpc(request, metadata=metadata, timeout=20)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("service", "name"), TOKENS)
async def test_without_a_token_with_anothers_or_a_dead_one_nothing_is_had(house, service, name):
    owner = house.actor()
    thief = house.leaf("client", tenant="acme", name="thief")
    dead = (("authorization", owner.metadata[0][1][:-8] + "AAAAAAAA"),)
    before = await state(house)
    for metadata, directory in ((), owner.directory), (owner.metadata, thief), (dead, owner.directory):
        assert await refusal(house, service, name, metadata, directory) is grpc.StatusCode.UNAUTHENTICATED
    house.clock.shift = timedelta(minutes=6)  # a token lives for five
    try:
        assert await refusal(house, service, name, owner.metadata, owner.directory) is grpc.StatusCode.UNAUTHENTICATED
    finally:
        house.clock.shift = timedelta()
    assert await state(house) == before


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("service", "name"), TOKENS)
async def test_a_token_without_the_scope_is_not_enough(house, service, name):
    actor, before = house.actor(scopes="models.infer"), await state(house)
    assert await refusal(house, service, name, actor.metadata, actor.directory) is grpc.StatusCode.PERMISSION_DENIED
    assert await state(house) == before


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", sorted(NAMED))
async def test_without_a_grant_a_dataset_is_as_absent_as_one_that_is_not_there(house, name):
    stranger = house.actor(tenant="initech")  # has every scope, and a grant on nothing
    status = await refusal(house, "DatasetService", name, stranger.metadata, stranger.directory)
    assert status is grpc.StatusCode.NOT_FOUND
    owner, granted = house.actor(), house.grants
    before = await state(house)
    house.grants = []
    house.tell()
    try:  # of its own tenant, where the dataset is: nothing but the grant is missing
        status = await refusal(house, "DatasetService", name, owner.metadata, owner.directory)
    finally:
        house.grants = granted
        house.tell()
    assert status is grpc.StatusCode.NOT_FOUND
    assert await state(house) == before


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", sorted(NAMED.keys() - {"ShredVersion", "SetRetention"}))
async def test_with_the_grant_the_same_call_is_not_refused_as_absent(house, name):
    owner = house.actor()
    status = await refusal(house, "DatasetService", name, owner.metadata, owner.directory)
    assert status is (grpc.StatusCode.INVALID_ARGUMENT if name == "PushDataset" else grpc.StatusCode.OK)


WHICH = {"by number": {"version": 1}, "the newest": {}, "by label": {"label": "golden"}}
READ = {
    "GetVersion": messages.GetVersionRequest,
    "PullDataset": messages.PullDatasetRequest,
    "GetLineage": messages.GetLineageRequest,
    "GetCroissant": messages.GetCroissantRequest,
}


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("which", WHICH)
@pytest.mark.parametrize("name", READ)
async def test_another_tenant_with_every_grant_of_its_own_finds_no_version_however_it_asks(house, name, which):
    """Its grants are on `dataset/*`, so nothing but whose the dataset is stands between: A2, E26."""
    request, before = READ[name](dataset="digits", **WHICH[which]), await state(house)
    assert await sent(name, request, house.actor(tenant="globex")) is grpc.StatusCode.NOT_FOUND
    assert await state(house) == before
    assert await sent(name, request, house.actor()) is grpc.StatusCode.OK


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("gone", ["query", "grant", "query and grant"])
async def test_whose_a_version_is_is_asked_twice_and_either_question_alone_keeps_it(house, monkeypatch, gone):
    """E26: of the database, and of the grants by the row that was found. The twin without both shows what they keep."""
    of_whom = VersionStore.version
    if "query" in gone:
        monkeypatch.setattr(VersionStore, "version", lambda store, _tenant, *rest: of_whom(store, "acme", *rest))
    if "grant" in gone:
        monkeypatch.setattr(Versions, "require_grant", lambda *_: None)
    stranger, expected = house.actor(tenant="globex"), "OK" if " and " in gone else "NOT_FOUND"
    for name in ("GetVersion", "PullDataset", "GetCroissant"):
        request = READ[name](dataset="digits", version=1)
        assert (await sent(name, request, stranger)).name == expected


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize("name", ["ShredVersion", "SetLabel"])
async def test_another_tenant_with_every_grant_of_its_own_destroys_and_names_no_version(house, name):
    """The twins, which change something, are in `test_shred` and `test_labels`."""
    before = await state(house)
    assert await sent(name, NAMED[name], house.actor(tenant="globex")) is grpc.StatusCode.NOT_FOUND
    assert await state(house) == before


@pytest.mark.asyncio(loop_scope="module")
async def test_labels_of_another_tenants_dataset_are_none(house):
    request = messages.ListLabelsRequest(dataset="digits")
    for tenant, labels in (("globex", {}), ("acme", {"golden": 1})):
        actor = house.actor(tenant=tenant)
        assert dict((await actor.datasets.ListLabels(request, metadata=actor.metadata)).labels) == labels


async def sent(name: str, request, actor) -> grpc.StatusCode:
    """The status that this request of a caller ends in."""
    rpc = getattr(actor.datasets, name)
    try:
        if name == "PullDataset":
            _ = [piece async for piece in rpc(request, metadata=actor.metadata)]
        else:
            await rpc(request, metadata=actor.metadata)
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def state(world: World) -> list[tuple[object, ...]]:
    """What a call could have changed."""
    async with world.sql() as sql:
        rows = await sql.fetch("SELECT dataset, version, state::text, log_index FROM uploads ORDER BY version")
        rows += await sql.fetch("SELECT dataset, label, version FROM labels")
        rows += await sql.fetch("SELECT dataset, keep_versions FROM retentions")
        rows += await sql.fetch("SELECT size FROM log_head")
    return [tuple(row) for row in rows]


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.parametrize(("service", "name"), PEERS)
async def test_what_services_call_no_client_calls(house, service, name):
    actor, before = house.actor(), await state(house)
    assert await refusal(house, service, name, actor.metadata, actor.directory) is grpc.StatusCode.PERMISSION_DENIED
    assert await state(house) == before


def test_every_rpc_about_a_dataset_has_its_request_here():
    about = set()
    for method in messages.DESCRIPTOR.services_by_name["DatasetService"].methods:
        fields = method.input_type.fields
        if any(field.GetOptions().Extensions[policy_pb2.resource] for field in fields):
            about.add(method.name)
    assert about == set(NAMED)
