"""The first operator: once per database, locally."""

from __future__ import annotations

import pytest

from casemate.clock import SystemClock
from casemate.errors import AlreadyExists, InvalidRequest, NotFound, StoredDataUnreadable
from services.auth.bootstrap import OperatorPlace, bootstrap_operator, replace_operator
from tests.services.auth.world import place, spiffe_id
from tests.support.authority import TRUST_DOMAIN


async def _bootstrap(shelf, client_id="operator", name="operator", tenant="casemate"):
    place = OperatorPlace(client_id=client_id, spiffe_id=spiffe_id(tenant, name), trust_domain=TRUST_DOMAIN)
    return await bootstrap_operator(shelf.store, place, clock=SystemClock())


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
    assert await _bootstrap(shelf)
    assert not await _bootstrap(shelf)
    assert await shelf.pool.fetchval("SELECT count(*) FROM client") == 1


async def test_the_first_operator_again_after_it_was_replaced_changes_nothing_and_does_not_revive_it(shelf):
    """A deployment's one-shot job asks for it at every start."""
    await _bootstrap(shelf)
    await _replace(shelf, "second")
    sequence = await shelf.pool.fetchval("SELECT sequence FROM trust_head")
    assert not await _bootstrap(shelf)
    assert not (await shelf.store.client("operator")).enabled
    assert (await shelf.store.client("second")).enabled
    assert await shelf.pool.fetchval("SELECT sequence FROM trust_head") == sequence
    with pytest.raises(AlreadyExists):
        await _bootstrap(shelf, "third", "third")


async def _replace(shelf, name, reason="its key was stolen"):
    return await replace_operator(shelf.store, place(name), reason=reason, clock=SystemClock())


async def test_another_operator_takes_the_place_of_the_last_one_made_which_is_disabled_and_revoked(shelf):
    await _bootstrap(shelf)
    assert await _replace(shelf, "second") == "operator"
    former, present = await shelf.store.client("operator"), await shelf.store.client("second")
    assert (former.enabled, present.enabled, present.scopes) == (False, True, former.scopes)
    rows = await shelf.pool.fetch("SELECT kind FROM revocation WHERE value = 'operator'")
    assert {row["kind"] for row in rows} == {"client", "subject"}
    assert await _replace(shelf, "third") == "second"


async def test_who_was_replaced_when_and_why_is_in_the_authority_and_told_to_the_log(shelf):
    await _bootstrap(shelf)
    await _replace(shelf, "second", " its key was stolen ")
    async with shelf.pool.acquire() as connection:
        made = {one.client_id: one for one in await shelf.tables.operator_changes.all(connection)}
    assert (made["operator"].replaces, made["second"].replaces) == ("", "operator")
    assert made["second"].reason == "its key was stolen"
    kinds = await shelf.pool.fetch("SELECT record_key FROM trust_event WHERE kind = 'operator' ORDER BY sequence")
    assert [row["record_key"] for row in kinds] == [["operator"], ["second"]]
    await shelf.pool.execute("UPDATE operator_change SET reason = 'routine' WHERE client_id = 'second'")
    async with shelf.pool.acquire() as connection:
        with pytest.raises(StoredDataUnreadable):
            await shelf.tables.operator_changes.get(connection, "second")


async def test_without_a_first_one_a_reason_or_a_name_of_its_own_nobody_is_replaced(shelf):
    with pytest.raises(NotFound):
        await _replace(shelf, "second")
    await _bootstrap(shelf)
    for name, reason, error in (
        ("second", "", InvalidRequest),
        ("second", " ", InvalidRequest),
        ("second", "two\nlines", InvalidRequest),
        ("operator", "again", AlreadyExists),
    ):
        with pytest.raises(error):
            await _replace(shelf, name, reason)
    assert (await shelf.store.client("operator")).enabled
    assert await _replace(shelf, "second") == "operator"


async def test_an_operators_row_that_sql_changed_is_replaced_and_stays_refused(shelf):
    await _bootstrap(shelf)
    await shelf.pool.execute("UPDATE client SET scopes = '{admin,datasets.read}' WHERE client_id = 'operator'")
    assert await _replace(shelf, "second") == "operator"
    with pytest.raises(StoredDataUnreadable):
        await shelf.store.client("operator")
    assert shelf.alarms
    assert (await shelf.store.client("second")).enabled


async def test_sql_does_not_choose_who_is_disabled_when_the_glass_is_broken(shelf):
    """A thief with the operator's key and the database would point at somebody else, and go on."""
    await _bootstrap(shelf)
    await _replace(shelf, "second")
    await shelf.pool.execute("UPDATE operator_bootstrap SET client_id = 'operator'")
    assert await _replace(shelf, "third") == "second"
    assert shelf.alarms
    assert not (await shelf.store.client("second")).enabled


async def test_an_operator_from_before_such_rows_were_written_is_replaced_too(shelf):
    await _bootstrap(shelf)
    await shelf.pool.execute("DELETE FROM operator_change")
    assert await _replace(shelf, "second") == "operator"


async def test_a_name_outside_of_the_house_is_refused(shelf):
    with pytest.raises(InvalidRequest):
        await _bootstrap(shelf, tenant="acme")
    await _bootstrap(shelf)
