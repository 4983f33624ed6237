"""The first operator: once per database, locally."""

from __future__ import annotations

import pytest

from casemate.clock import SystemClock
from casemate.errors import AlreadyExists, InvalidRequest
from services.auth.bootstrap import bootstrap_operator
from tests.services.auth.world import spiffe_id
from tests.support.authority import TRUST_DOMAIN


async def _bootstrap(shelf, client_id="operator", name="operator", tenant="casemate"):
    await bootstrap_operator(
        shelf.store,
        client_id=client_id,
        spiffe_id=spiffe_id(tenant, name),
        trust_domain=TRUST_DOMAIN,
        clock=SystemClock(),
    )


async def test_the_first_operator_belongs_to_the_house_and_may_read_nobodys_data(shelf):
    await _bootstrap(shelf)
    operator = await shelf.store.client("operator")
    assert operator.tenant == "casemate"
    assert operator.enabled
    assert operator.scopes == ("admin", "log.read", "reflection")


async def test_there_is_no_second_first_operator(shelf):
    await _bootstrap(shelf)
    for client_id, name in (("second", "second"), ("second", "operator"), ("operator", "second")):
        with pytest.raises(AlreadyExists):
            await _bootstrap(shelf, client_id, name)
    assert await shelf.pool.fetchval("SELECT count(*) FROM client") == 1


async def test_the_same_first_operator_again_changes_nothing(shelf):
    await _bootstrap(shelf)
    await _bootstrap(shelf)
    assert await shelf.pool.fetchval("SELECT count(*) FROM client") == 1


async def test_a_name_outside_of_the_house_is_refused(shelf):
    with pytest.raises(InvalidRequest):
        await _bootstrap(shelf, tenant="acme")
    await _bootstrap(shelf)
