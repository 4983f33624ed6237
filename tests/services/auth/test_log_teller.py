"""What the transparency log is told of changes: all of them, in order, by digest and name."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta

import pytest

from casemate.errors import StoredDataUnreadable, Unavailable
from casemate.gate.core.records import Grant, Revocation, RevocationKind
from casemate.signing.keys import SigningKey
from casemate.signing.signers import Signer
from services.auth.log_teller import LogTeller
from services.auth.records import Tenant
from services.auth.store.table import Alarms

NOW = datetime(2026, 1, 2, tzinfo=UTC)
KEY = SigningKey.generate()
SIGNER = Signer(
    key_id=KEY.public.key_id,
    tenant="acme",
    role="supplier",
    public_key=KEY.public,
    valid_from=NOW,
    valid_until=NOW + timedelta(days=1),
)
GRANT = Grant(id="grant-1", tenant="acme", caller="t/acme/*", verb="push", resource="dataset/*")


class Log:
    """A log that keeps what it is told, and can be away."""

    def __init__(self) -> None:
        self.told: list[tuple[str, dict]] = []
        self.away_after: int | None = None

    async def append(self, kind: str, body: bytes) -> int:
        if self.away_after is not None and len(self.told) >= self.away_after:
            raise Unavailable("away")
        found = json.loads(body)
        assert json.dumps(found, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode() == body
        self.told.append((kind, found))
        return len(self.told) - 1


@pytest.fixture
def log():
    return Log()


@pytest.fixture
def lag():
    return []


@pytest.fixture
def teller(shelf, log, lag):
    return teller_of(shelf, log, lag)


def teller_of(shelf, log, lag):
    alarms = Alarms(count=lambda: shelf.alarms.append("alarm"))
    return LogTeller(pool=shelf.pool, tables=shelf.tables, key=shelf.key, alarms=alarms, log=log, lag=lag.append)


async def changed(shelf) -> None:
    await shelf.store.add_tenant(Tenant(name="acme", created_at=NOW))
    await shelf.store.add_grant(GRANT)
    await shelf.store.add_signer(SIGNER)
    await shelf.store.revoke(
        Revocation(id="r-1", kind=RevocationKind.SPIFFE_ID, value="spiffe://x/y", not_before=None, expires_at=None),
        now=NOW,
    )


async def test_changes_are_told_once_in_order_without_names_that_are_nobodys_business(shelf, teller, log, lag):
    await changed(shelf)

    assert await teller.tell() == 4
    assert await teller.tell() == 0
    assert [kind for kind, _ in log.told] == ["tenant", "grant", "signer", "revocation"]
    assert [body["sequence"] for _, body in log.told] == [1, 2, 3, 4]
    grant, signer, revocation = (body for _, body in log.told[1:])
    assert (grant["record"], grant["verb"], grant["resource"]) == (["grant-1"], "push", "dataset/*")
    assert (signer["record"], signer["role"], signer["compromised_since"]) == ([SIGNER.key_id], "supplier", None)
    assert revocation["of"] == RevocationKind.SPIFFE_ID.value
    assert "spiffe://x/y" not in json.dumps(log.told)
    assert lag == [4, 0, 0]


async def test_a_removal_and_a_revoked_signer_are_told(shelf, teller, log):
    await changed(shelf)
    await teller.tell()
    await shelf.store.delete_grant("grant-1", within=None)
    await shelf.store.revoke_signer(SIGNER.key_id, since=NOW, within=None)
    await teller.tell()
    assert log.told[4] == ("grant", {"absent": True, "record": ["grant-1"], "sequence": 5})
    assert log.told[5][1]["compromised_since"] == NOW.isoformat()


async def test_a_log_that_is_away_is_told_later_and_nothing_is_left_out(shelf, teller, log):
    await changed(shelf)
    log.away_after = 2
    with pytest.raises(Unavailable):
        await teller.tell()
    log.away_after = None
    assert await teller_of(shelf, log, []).tell() == 4, "another process goes on where this one stood"
    assert [body["sequence"] for _, body in log.told] == [1, 2, 1, 2, 3, 4]


async def test_a_cursor_set_forward_by_sql_does_not_silence_the_log(shelf, teller, log):
    await changed(shelf)
    await teller.tell()
    await shelf.store.delete_grant("grant-1", within=None)
    await shelf.pool.execute("UPDATE log_cursor SET sequence = 5")
    with pytest.raises(StoredDataUnreadable):
        await teller.tell()
    assert shelf.alarms
    await shelf.pool.execute("UPDATE log_cursor SET sequence = 4")
    assert await teller.tell() == 1
    assert log.told[-1][1]["sequence"] == 5


async def test_changes_that_were_forgotten_before_they_were_told_leave_a_gap_that_shows(shelf, teller, log):
    await changed(shelf)
    await shelf.pool.execute("DELETE FROM trust_event WHERE sequence < 4")
    await teller.tell()
    assert log.told[0] == ("untold", {"first_untold": 1, "record": [], "sequence": 3})
    assert log.told[1][0] == "revocation"


async def test_a_change_of_a_kind_that_only_a_newer_program_knows_is_left_to_that_one(shelf, teller, log):
    await changed(shelf)
    await shelf.pool.execute("UPDATE trust_event SET kind = 'quorum' WHERE sequence = 2")
    with pytest.raises(StoredDataUnreadable):
        await teller.tell()
    await shelf.pool.execute("UPDATE trust_event SET kind = 'grant' WHERE sequence = 2")
    assert await teller.tell() == 4
