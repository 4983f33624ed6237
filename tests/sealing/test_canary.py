"""Keys show themselves nowhere, and the canary that watches the whole suite sees one that does."""

from __future__ import annotations

import copy
import logging
import pickle
import secrets
import traceback

import pytest

from casemate.clock import SystemClock
from casemate.sealing.authority_rows import AuthorityKey
from casemate.sealing.key_ring import DataKeyRing
from casemate.sealing.keys import DataKey, KeyContext
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.rewrapping import StoredWrap
from casemate.sealing.watched_ring import WatchedKeyRing
from casemate.secret import Secret
from tests.support import canary
from tests.support.canary import shown_keys, spellings

CONTEXT = KeyContext(purpose="test", tenant="acme", name="digits", version=1)


def test_the_canary_sees_a_key_in_every_spelling_and_nothing_where_none_is() -> None:
    key = secrets.token_bytes(32)
    for spelling in spellings(key):
        assert shown_keys(f"before {spelling} after", [key]) == 1
    assert shown_keys("before after", [key]) == 0


@pytest.fixture(scope="module")
def shared():
    """A key that is older than most tests of this module."""
    return DataKey.generate()


@pytest.mark.parametrize("time", ["first", "second"])
def test_keys_of_fixtures_that_tests_share_are_looked_for_in_each_and_so_are_plain_secrets(shared, time) -> None:
    plain, short = Secret(secrets.token_bytes(32)), Secret(secrets.token_bytes(31))
    assert shared.reveal() in canary._noted, time
    assert plain.reveal() in canary._noted
    assert short.reveal() not in canary._noted


@pytest.fixture
async def holders(tmp_path):
    """Everything that holds a key, with the keys that it holds."""
    value = secrets.token_bytes(32)
    path = tmp_path / "kek.json"
    LocalKeyRing.create(path)
    watched = WatchedKeyRing(path)
    ring = DataKeyRing(kek=watched, clock=SystemClock())
    wrapped = await watched.wrap(DataKey(value), CONTEXT)

    async def load():
        return wrapped

    await ring.key("one", CONTEXT, load)
    stored = StoredWrap(identifier="one", context=CONTEXT, stored=wrapped.to_bytes())
    return value, [DataKey(value), Secret(value), ring, watched, AuthorityKey(DataKey(value)), stored, wrapped]


async def test_no_holder_shows_its_key_by_repr_str_format_or_in_a_log(holders, caplog) -> None:
    value, held = holders
    for holder in held:
        logging.getLogger("canary").warning("%s %r", holder, holder)
        assert shown_keys(f"{holder!r} {holder!s} {holder}", [value]) == 0
    assert shown_keys(caplog.text, [value]) == 0


async def test_no_holder_of_a_plain_key_is_pickled_or_shown_by_a_traceback(holders) -> None:
    value, held = holders
    for holder in held:
        data, said = b"", ""
        try:
            data = pickle.dumps(holder)
        except (TypeError, AttributeError, pickle.PicklingError) as error:
            said = "".join(traceback.format_exception(error))
        assert value not in data
        assert shown_keys(said, [value]) == 0
    with pytest.raises(TypeError):
        copy.deepcopy(held[0])
