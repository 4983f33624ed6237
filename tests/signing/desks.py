"""A tenant's keys and their registrations."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from casemate.signing.keys import SigningKey
from casemate.signing.signers import Signer

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Desk:
    """A key and its registration."""

    key: SigningKey
    signer: Signer

    def resolve(self, key_id: str) -> Signer | None:
        return self.signer if key_id == self.signer.key_id else None


def desk(role: str, **changes: object) -> Desk:
    key = SigningKey.generate()
    values = {
        "key_id": key.public.key_id,
        "tenant": "acme",
        "role": role,
        "public_key": key.public,
        "valid_from": NOW - timedelta(days=1),
        "valid_until": NOW + timedelta(days=1),
    }
    return Desk(key, Signer(**{**values, **changes}))
