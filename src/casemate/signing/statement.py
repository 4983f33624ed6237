"""in-toto Statement v1, the frame of every manifest (in-toto/attestation, spec/v1/statement.md)."""

from __future__ import annotations

from typing import Final

from casemate.signing import fields, strict_json
from casemate.signing.strict_json import invalid

STATEMENT_TYPE: Final = "https://in-toto.io/Statement/v1"
MAXIMUM_STATEMENT_ITEMS: Final = 160_000  # 20,000 chunks of 5, 4,096 columns of 8 and 10,000 categories, with room

_STATEMENT: Final = frozenset({"_type", "subject", "predicateType", "predicate"})


def write_statement(predicate_type: str, subject: list[object], predicate: dict[str, object]) -> bytes:
    """The statement in canonical JSON."""
    return strict_json.canonical(
        {"_type": STATEMENT_TYPE, "subject": subject, "predicateType": predicate_type, "predicate": predicate}
    )


def open_statement(payload: bytes, predicate_type: str, names: frozenset[str]) -> tuple[object, dict[str, object]]:
    """Subject and predicate of a statement of this type, whose predicate has exactly these names.

    Raises:
        InvalidRequest: `MANIFEST_INVALID`.
    """
    parsed = strict_json.parse_object(payload, field="statement", maximum_items=MAXIMUM_STATEMENT_ITEMS)
    statement = fields.members(parsed, "statement", _STATEMENT)
    if statement["_type"] != STATEMENT_TYPE:
        raise invalid("_type", "is not an in-toto Statement v1")
    if statement["predicateType"] != predicate_type:
        raise invalid("predicateType", "is not the one that is wanted")
    return statement["subject"], fields.members(statement["predicate"], "predicate", names)
