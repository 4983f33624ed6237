"""JSON that means one thing to every reader."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from casemate.errors import InvalidRequest, Reason
from casemate.signing.strict_json import canonical, parse_object


def nested(depth: int) -> str:
    """An object that holds `depth` - 1 lists, each in the one before."""
    return '{"a":' + "[" * (depth - 1) + "]" * (depth - 1) + "}"


@pytest.mark.parametrize(
    ("refused", "twin"),
    [
        ('{"a":1,"a":1}', '{"a":1,"b":1}'),
        ('{"x":{"a":1,"a":1}}', '{"x":{"a":1,"b":1}}'),
        ('{"a":1,"\\u0061":1}', '{"a":1,"\\u0062":1}'),
        ('{"a":NaN}', '{"a":1}'),
        ('{"a":[-Infinity]}', '{"a":[-1]}'),
        ('{"a":["\\ud800"]}', '{"a":["\\ud83d\\ude00"]}'),
        ('{"\\ud800":1}', '{"\\ud83d\\ude00":1}'),
        (nested(17), nested(16)),
        ('{"a":[0,0,0,0,0,0,0,0,0]}', '{"a":[0,0,0,0,0,0,0]}'),
        ("\ufeff{}", "{}"),
        ("[]", "{}"),
        ("{}x", "{} "),
    ],
    ids=[
        "twice",
        "twice inside",
        "twice escaped",
        "nan",
        "inf",
        "lone",
        "lone name",
        "deep",
        "many",
        "bom",
        "list",
        "x",
    ],
)
def test_what_could_mean_two_things_is_refused(refused, twin):
    limit = 32 if refused.startswith('{"a":[[') else 9
    assert parse_object(twin.encode(), field="f", maximum_items=limit) == json.loads(twin)
    with pytest.raises(InvalidRequest) as refusal:
        parse_object(refused.encode(), field="f", maximum_items=limit)
    assert refusal.value.reason is Reason.MANIFEST_INVALID
    assert refusal.value.violations[0].field == "f"


@given(st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False)))
def test_canonical_json_is_read_back_and_does_not_depend_on_order(members):
    finite = {name: value for name, value in members.items() if value not in (float("inf"), float("-inf"))}
    written = canonical(finite)
    assert written == canonical(dict(reversed(finite.items())))
    assert parse_object(written, field="f", maximum_items=10**6) == finite
