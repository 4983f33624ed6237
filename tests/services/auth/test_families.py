"""Refresh families: attacks R1 to R8, each beside what rightly succeeds."""

from __future__ import annotations

import asyncio
import random
import re
from dataclasses import replace
from datetime import timedelta

import pytest
import pytest_asyncio

from casemate.errors import CasemateError, PermissionDenied, Reason, Unauthenticated
from casemate.gate.core.records import Revocation, RevocationKind
from casemate.sealing.authority_rows import AuthorityKey
from casemate.sealing.keys import DataKey
from services.auth.refresh_tokens import RefreshTokens
from services.auth.store.changes import begin_change
from services.auth.store.families import FamilyStore, end_families
from services.auth.store.revoking import add_revocation
from services.auth.token_issuer import Entitlement
from tests.services.auth.lines import GATEWAY, OWNER, THIEF, begin_line, enlist
from tests.services.auth.world import SOON

SECOND = timedelta(seconds=1)


@pytest_asyncio.fixture
async def line(shelf):
    await enlist(shelf)
    return await begin_line(shelf)


async def _refused(call):
    with pytest.raises(Unauthenticated) as raised:
        await call
    assert raised.value.reason is Reason.GRANT_INVALID


async def _is_dead(line, access):
    with pytest.raises(Unauthenticated) as raised:
        await line.check_access(access.token)
    assert raised.value.reason is Reason.TOKEN_REVOKED
    assert (await line.row()).ended_at is not None


async def test_a_refresh_gives_the_successor_and_an_access_token_of_the_session(line):
    refreshed = await line.refresh(line.first)
    token = await line.check_access(refreshed.access.token)
    assert (token.session_id, token.subject, token.client_id) == (line.family.id, "idp:alice", "acme-gateway")
    assert token.scopes == {"models.infer", "reflection"}
    assert refreshed.refresh.reveal() != line.first
    again = await line.refresh(refreshed.refresh.reveal(), thumbprint="B" * 43)
    assert line.verified(again.access.token).certificate_thumbprint == "B" * 43
    assert (await line.row()).generation == 3
    assert line.outcomes == ["rotated", "rotated"]


async def test_r1_fifty_refreshes_at_once_get_one_successor_and_move_the_family_once(line):
    answers = await asyncio.gather(*(line.refresh(line.first) for _ in range(50)))
    assert len({answer.refresh.reveal() for answer in answers}) == 1
    assert len({answer.access.token_id for answer in answers}) == 50
    assert (await line.row()).generation == 2
    assert sorted(line.outcomes) == ["retried"] * 49 + ["rotated"]
    await line.refresh(answers[0].refresh.reveal())


async def test_r2_a_retry_within_ten_seconds_gets_the_same_successor(line):
    first = await line.refresh(line.first)
    line.clock.pass_by(10 * SECOND)
    again = await line.refresh(line.first)
    assert again.refresh == first.refresh
    assert (await line.row()).ended_at is None


async def test_r2_a_token_used_again_later_ends_the_family_and_its_access_tokens(line, caplog):
    first = await line.refresh(line.first)
    line.clock.pass_by(10 * SECOND + timedelta(microseconds=1))
    await line.check_access(first.access.token)
    await _refused(line.refresh(line.first))
    await _is_dead(line, first.access)
    await _refused(line.refresh(first.refresh.reveal()))
    assert f"refresh token reused: family={line.family.id}" in caplog.text
    assert line.first not in caplog.text
    assert line.outcomes[-2:] == ["reused", "ended"]


async def test_r2_a_token_two_generations_old_ends_the_family_even_within_ten_seconds(line):
    second = await line.refresh(line.first)
    third = await line.refresh(second.refresh.reveal())
    await _refused(line.refresh(line.first))
    await _is_dead(line, third.access)


async def test_r3_the_current_token_from_another_spiffe_id_ends_the_family(line, caplog):
    first = await line.refresh(line.first)
    thief = replace(GATEWAY, client_id="acme-mallory", spiffe_id=THIEF)
    await _refused(line.refresh(first.refresh.reveal(), by=THIEF, client=thief))
    await _is_dead(line, first.access)
    await _refused(line.refresh(first.refresh.reveal()))
    assert f"presented by {THIEF}, bound to {OWNER}" in caplog.text


async def test_r3_another_spiffe_id_that_is_no_client_ends_it_too(line):
    await _refused(line.refresh(line.first, by=THIEF, client=None))
    assert (await line.row()).ended_at is not None


async def test_r4_what_was_not_derived_here_changes_nothing(line, shelf):
    other = RefreshTokens(key=AuthorityKey(DataKey.generate()))
    prefix, family, generation, mac = line.first.split(".")
    forged = [
        other.current(line.family).reveal(),
        other.current(replace(line.family, generation=2)).reveal(),
        f"{prefix}.{family}.2.{mac}",
        f"{prefix}.{family}.01.{mac}",
        f"{prefix}.{'A' * 22}.{generation}.{mac}",
        f"rt2.{family}.{generation}.{mac}",
        line.first[:-1],
        line.first + "=",
        line.first + "\n",
        f"{prefix}.{family}.{generation}.{mac[:-1]}{'A' if mac[-1] != 'A' else 'E'}",
        f"{prefix}.{family}.{10**18}.{mac}",
        "",
        "rt1.' OR 1=1--.1.x",
        "rt1." + "A" * 5000,
        f"{prefix}.{family}.\u0661.{mac}",
    ]
    before = await line.row()
    for text in forged:
        for by in (OWNER, THIEF):
            await _refused(line.refresh(text, by=by))
    assert await line.row() == before
    assert await shelf.pool.fetchval("SELECT count(*) FROM revocation") == 0
    await line.refresh(line.first)


async def test_a_family_that_does_not_exist_costs_what_a_wrong_token_of_one_costs(line, shelf, monkeypatch):
    macs = []
    counted = AuthorityKey.mac

    def mac(self, table, primary_key, columns):
        macs.append(table)
        return counted(self, table, primary_key, columns)

    monkeypatch.setattr(AuthorityKey, "mac", mac)
    prefix, family, generation, proof = line.first.split(".")
    work = []
    for name in (family, "A" * 22):
        macs.clear()
        await _refused(line.refresh(f"{prefix}.{name}.{generation}.{proof[::-1]}"))
        work.append(tuple(macs))
    assert work[0] == work[1] == ("refresh_family", "refresh_token")
    await line.refresh(line.first)


async def _race(line, text, generator):
    """One refresh and one revocation of the same family, started together; then nothing of it may work."""
    steps = [line.refresh(text), line.families.end_own(text, client=GATEWAY)]
    delays = [generator.randrange(12), generator.randrange(12)]
    generator.shuffle(delays)

    async def after(delay, step):
        for _ in range(delay):
            await asyncio.sleep(0)
        return await step

    refreshed, ended = await asyncio.gather(
        *(after(delay, step) for delay, step in zip(delays, steps, strict=True)), return_exceptions=True
    )
    assert ended is None
    for known in [text] if isinstance(refreshed, CasemateError) else [text, refreshed.refresh.reveal()]:
        await _refused(line.refresh(known))
    if isinstance(refreshed, CasemateError):
        assert refreshed.reason is Reason.GRANT_INVALID
        return "refused"
    await _is_dead(line, refreshed.access)
    return "refreshed"


async def _race_often(shelf, rounds):
    await enlist(shelf)
    generator = random.Random(5)  # noqa: S311  # an order of events, not a key
    seen = set()
    for _ in range(rounds):
        line = await begin_line(shelf)
        seen.add(await _race(line, line.first, generator))
        await shelf.pool.execute("DELETE FROM revocation")
        await shelf.pool.execute("DELETE FROM refresh_family")
    assert seen == {"refused", "refreshed"}


async def test_r5_nothing_works_once_a_revocation_returned_however_a_refresh_interleaves(shelf):
    await _race_often(shelf, 200)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_r5_ten_thousand_interleavings(shelf):
    await _race_often(shelf, 10_000)


async def test_r6_a_family_ends_when_idle_for_eight_hours(line):
    line.clock.pass_by(timedelta(hours=8) - SECOND)
    refreshed = await line.refresh(line.first)
    line.clock.pass_by(timedelta(hours=8))
    await _refused(line.refresh(refreshed.refresh.reveal()))


async def test_r6_a_family_ends_after_a_day_however_often_it_is_used(line):
    text = line.first
    for _ in range(3):
        line.clock.pass_by(timedelta(hours=7, minutes=59))
        refreshed = await line.refresh(text)
        text = refreshed.refresh.reveal()
    assert refreshed.expires_at == line.family.expires_at
    line.clock.pass_by(timedelta(minutes=3))
    await _refused(line.refresh(text))


async def test_r6_a_refresh_never_widens_and_a_refused_one_uses_nothing_up(line):
    with pytest.raises(PermissionDenied) as raised:
        await line.refresh(line.first, scopes=("models.publish",))
    assert raised.value.reason is Reason.SCOPE_NOT_GRANTED
    with pytest.raises(PermissionDenied):
        # The client lost a scope since; the family does not keep it.
        await line.refresh(line.first, client=replace(GATEWAY, scopes=("models.infer",)))
    assert (await line.row()).generation == 1
    narrow = await line.refresh(line.first, scopes=("models.infer",))
    assert narrow.access.scopes == ("models.infer",)
    # The family keeps its own.
    assert (await line.refresh(narrow.refresh.reveal())).access.scopes == ("models.infer", "reflection")


async def test_a_client_that_is_disabled_refreshes_nothing(line):
    await _refused(line.refresh(line.first, client=None))
    assert (await line.row()).generation == 1
    await line.refresh(line.first)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (RevocationKind.SUBJECT, "idp:alice"),
        (RevocationKind.CLIENT, "acme-gateway"),
        (RevocationKind.SPIFFE_ID, OWNER),
        (RevocationKind.SESSION, None),
    ],
)
async def test_a_family_ends_with_what_it_hangs_on(line, shelf, kind, value):
    others = Revocation(id="r1", kind=kind, value="somebody-else", not_before=line.clock.now())
    await shelf.store.revoke(others, now=line.clock.now())
    refreshed = await line.refresh(line.first)
    own = Revocation(id="r2", kind=kind, value=value or line.family.id, not_before=line.clock.now())
    await shelf.store.revoke(own, now=line.clock.now())
    await _refused(line.refresh(refreshed.refresh.reveal()))


async def test_r8_a_full_dump_without_the_kek_neither_mints_nor_tells_a_token(line, shelf):
    refreshed = await line.refresh(line.first)
    current = refreshed.refresh.reveal()
    dump = ""
    for table in ("refresh_family", "token_key", "client", "revocation", "trust_event"):
        rows = await shelf.pool.fetch(f"SELECT t::text FROM {table} AS t")  # noqa: S608  # from above
        dump += "\n".join(row[0] for row in rows)
    for text in (line.first, current):
        for part in (text, text.split(".")[3]):
            assert part not in dump
    # Whoever has every row but another key derives other tokens, which are refused.
    thief = RefreshTokens(key=AuthorityKey(DataKey.generate()))
    minted = thief.current(await line.row())
    assert re.fullmatch(r"rt1\.[^.]+\.2\.[^.]+", minted.reveal())
    await _refused(line.refresh(minted.reveal()))
    await line.refresh(current)


@pytest.mark.parametrize(
    "change",
    ["ended_at = NULL", "generation = 1", "expires_at = expires_at + interval '1 year'", f"spiffe_id = '{THIEF}'"],
)
async def test_a_family_that_sql_revived_or_changed_is_refused_and_sounds_the_alarm(line, shelf, change):
    refreshed = await line.refresh(line.first)
    await line.families.end_own(line.first, client=GATEWAY)
    await shelf.pool.execute(f"UPDATE refresh_family SET {change}")  # noqa: S608  # from above
    for text in (line.first, refreshed.refresh.reveal()):
        for by in (OWNER, THIEF):
            await _refused(line.refresh(text, by=by))
    assert shelf.alarms


async def test_revoking_another_clients_refresh_token_has_no_effect(line):
    other = replace(GATEWAY, client_id="acme-other")
    await line.families.end_own(line.first, client=other)
    assert (await line.row()).ended_at is None
    await line.families.end_own(line.first, client=GATEWAY)
    assert (await line.row()).ended_at is not None


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (RevocationKind.SUBJECT, "idp:alice"),
        (RevocationKind.SUBJECT, "idp:"),
        (RevocationKind.CLIENT, GATEWAY.client_id),
        (RevocationKind.SPIFFE_ID, OWNER),
    ],
)
async def test_no_family_begins_on_what_was_revoked_since_it_was_looked_at(line, shelf, kind, value):
    """A revocation that commits between the look at the subject and the insert finds no family to end."""
    now = line.clock.now()
    moment = now if kind is not RevocationKind.SPIFFE_ID else None
    said = Revocation(id="r-1", kind=kind, value=value, not_before=moment, expires_at=now + timedelta(minutes=6))
    other = replace(said, id="r-2", value=value + "x")
    entitlement = Entitlement(
        tenant="acme",
        client_id=GATEWAY.client_id,
        subject="idp:alice",
        audience="inference",
        scopes=("models.infer",),
        actors=(GATEWAY.client_id,),
    )
    await shelf.store.revoke(other, now=now)
    _, first = await line.families.begin(entitlement, spiffe_id=OWNER, said_at=now)
    await line.refresh(first.reveal())
    await shelf.store.revoke(said, now=now)
    with pytest.raises(Unauthenticated):
        await line.families.begin(entitlement, spiffe_id=OWNER, said_at=now)
    assert await shelf.pool.fetchval("SELECT count(*) FROM refresh_family WHERE ended_at IS NULL") == 0


async def test_a_family_waits_for_the_change_that_may_end_it(line, shelf):
    """Neither sees nor is seen: without the lock, the revocation ends what is there and the family comes after."""
    now = line.clock.now()
    family = replace(line.family, id="A" * 22)
    revocation = Revocation(
        id="r-1",
        kind=RevocationKind.SUBJECT,
        value="idp:alice",
        not_before=now,
        expires_at=now + timedelta(minutes=6),
    )
    families = FamilyStore(pool=shelf.pool, tables=shelf.tables)
    async with shelf.pool.acquire() as connection, begin_change(connection) as change:
        await end_families(shelf.tables, change, now=now, subject="idp:alice")
        begun = asyncio.create_task(families.add(family, said_at=now))
        async with asyncio.timeout(SOON):
            while not await shelf.pool.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"):
                await asyncio.sleep(0.01)
        await add_revocation(shelf.tables, change, revocation)
    with pytest.raises(Unauthenticated):
        await begun
    assert await families.get(family.id) is None
