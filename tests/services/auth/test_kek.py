"""KeyService on auth: token keys and the authority key come under a new version, and tokens go on."""

from __future__ import annotations

from casemate.errors import Code
from casemate.keys.v1 import key_service_pb2 as messages
from casemate.keys.v1.key_service_pb2_grpc import KeyServiceStub
from casemate.sealing.local import LocalKeyRing
from tests.services.auth.world import failure, ours


async def _rotated(world, caller) -> messages.GetKekStatusResponse:
    token = (await caller.token("auth")).access_token
    stub, metadata = KeyServiceStub(caller.channel), (("authorization", f"Bearer {token}"),)
    before = await stub.GetKekStatus(messages.GetKekStatusRequest(), metadata=metadata)
    assert {(count.purpose, count.kek_version) for count in before.wrapped} == {("authority-rows", 1), ("token-key", 1)}
    LocalKeyRing.rotate(world.settings.kek.kek_file)
    done = [progress async for progress in stub.RewrapKeys(messages.RewrapKeysRequest(), metadata=metadata)][-1]
    assert (done.rewrapped, done.failed) == (2, 0)
    return await stub.GetKekStatus(messages.GetKekStatusRequest(), metadata=metadata)


async def test_token_keys_are_rewrapped_their_rows_still_verify_and_tokens_are_issued(world):
    operator = world.operator()
    after = await _rotated(world, operator)
    assert {(count.purpose, count.kek_version) for count in after.wrapped} == {("authority-rows", 2), ("token-key", 2)}
    assert after.current_version == 2
    assert world.running.metrics.value("authority_alarms_total") == 0
    world.verified((await operator.token("auth")).access_token, "auth")


async def test_an_operator_has_the_scope_at_every_service_and_a_tenants_client_has_it_nowhere_by_itself(world):
    operator = world.operator()
    for audience in ("auth", "datasets", "inference"):
        assert "admin" in (await operator.token(audience)).scopes


async def test_an_administrator_of_a_tenant_sees_no_keys(world):
    admin = await world.enlist(world.operator(), "acme", "admin", audiences=("auth",), scopes=("admin",))
    token = (await admin.token("auth")).access_token
    call = KeyServiceStub(admin.channel).GetKekStatus(
        messages.GetKekStatusRequest(), metadata=(("authorization", f"Bearer {token}"),)
    )
    assert (await failure(ours(call))).code is Code.PERMISSION_DENIED
