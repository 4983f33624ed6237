"""The receipt of an export: who was given which batches of which version, and when.

Signed (DSSE) by the key of the transparency log, which also holds the entry that the
receipt names: that one was written before the first batch left.

If this fails: somebody denies, or invents, that a version was given out. The log's
entries about the export, and the audit, tell otherwise.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import InitVar, asdict, dataclass, field, fields
from datetime import datetime
from typing import TYPE_CHECKING, Final, cast

from casemate.errors import SignatureInvalid
from casemate.signing import dsse, strict_json
from casemate.signing.fields import MAXIMUM_INTEGER, format_moment, hex_digest, integer, moment, parse_moment
from casemate.signing.strict_json import invalid

if TYPE_CHECKING:
    from casemate.signing.keys import PublicKey, SigningKey

EXPORT_RECEIPT_TYPE: Final = "application/vnd.casemate.export-receipt.v1+json"

_SEAL: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReceipt:
    """What a receipt says. Times are cut to whole seconds.

    Attributes:
        log: name of the log that signs, `datasets.<domain>/log`.
        log_index: the log's entry about the beginning of the export.
        caller: SPIFFE ID of whom it was given to.
        client: the client of the caller's token.
        request: identifier of the call, as in the audit.
        tenant: whose version it is.
        dataset: its dataset.
        version: its number.
        root: its RFC 6962 root, in hexadecimal.
        manifest_sha256: digest of its signed manifest, in hexadecimal.
        shard: which part was read; see `batch_order`.
        shards: of how many.
        shuffle_seed: of the order; none: by number.
        position: how many batches of the shard were left out at the beginning.
        batches: how many were sent.
        batches_sha256: of their numbers in order, 8 bytes each, big-endian; in hexadecimal.
        rows: how many records they hold.
        started_at: when it began.
        ended_at: when the last batch had been sent.
    """

    log: str
    log_index: int
    caller: str
    client: str
    request: str
    tenant: str
    dataset: str
    version: int
    root: str
    manifest_sha256: str
    shard: int
    shards: int
    shuffle_seed: int | None
    position: int
    batches: int
    batches_sha256: str
    rows: int
    started_at: datetime
    ended_at: datetime

    def __post_init__(self) -> None:
        for name in ("started_at", "ended_at"):
            object.__setattr__(self, name, moment(getattr(self, name), name))

    def to_payload(self) -> bytes:
        """The canonical JSON that is signed."""
        said = asdict(self) | {
            "started_at": format_moment(self.started_at),
            "ended_at": format_moment(self.ended_at),
            "type": EXPORT_RECEIPT_TYPE,
        }
        return strict_json.canonical(said)

    @classmethod
    def parse(cls, payload: bytes) -> ExportReceipt:
        """Reads what `to_payload` wrote, and nothing else.

        Raises:
            InvalidRequest: any other bytes.
        """
        found = strict_json.parse_object(payload, field="receipt", maximum_items=32)
        if found.keys() != {each.name for each in fields(cls)} | {"type"}:
            raise invalid("receipt", "is not a receipt of an export")
        receipt = cls(**{name: _read(name, value) for name, value in found.items() if name != "type"})  # type: ignore[arg-type]  # each value was judged by its name
        if receipt.to_payload() != payload:
            raise invalid("receipt", "is not written in its one spelling")
        return receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedExportReceipt:
    """A receipt that the log signed, and as it was signed, for keeping; only `verify_export_receipt` makes one."""

    receipt: ExportReceipt
    envelope: bytes = field(repr=False)
    _seal: InitVar[object] = None

    def __post_init__(self, _seal: object) -> None:
        if _seal is not _SEAL:
            raise TypeError("a VerifiedExportReceipt is made by verify_export_receipt")


def sign_export_receipt(receipt: ExportReceipt, key: SigningKey) -> bytes:
    """The receipt as an envelope."""
    return dsse.sign_envelope(EXPORT_RECEIPT_TYPE, receipt.to_payload(), key)


def verify_export_receipt(envelope: bytes, *, log: str, public_key: PublicKey) -> VerifiedExportReceipt:
    """The receipt, if the log of this name signed it with this key.

    Raises:
        InvalidRequest: not an envelope of this type.
        SignatureInvalid: signed by another key, or in another log's name.
    """
    verified = dsse.verify_envelope(envelope, payload_type=EXPORT_RECEIPT_TYPE, resolve=lambda _hint: public_key)
    receipt = ExportReceipt.parse(verified.payload)
    if receipt.log != log:
        raise SignatureInvalid("the receipt is another log's")
    return VerifiedExportReceipt(receipt=receipt, envelope=envelope, _seal=_SEAL)


def numbers_sha256(numbers: Iterable[int]) -> str:
    """The digest of batch numbers in the order in which they were sent, in hexadecimal."""
    digest = hashlib.sha256()
    for number in numbers:
        digest.update(number.to_bytes(8, "big"))
    return digest.hexdigest()


_MOMENTS: Final = frozenset({"started_at", "ended_at"})
_DIGESTS: Final = frozenset({"root", "manifest_sha256", "batches_sha256"})
_TEXTS: Final = frozenset({"log", "caller", "client", "request", "tenant", "dataset"})


def _read(name: str, value: object) -> object:
    if name in _MOMENTS:
        return parse_moment(value, name)
    if name in _DIGESTS:
        hex_digest(value, name)
        return value
    if name in _TEXTS:
        if not isinstance(value, str):
            raise invalid(name, "is not text")
        return value
    if name == "shuffle_seed" and value is None:
        return None
    return integer(cast("int", value), name, minimum=0, maximum=MAXIMUM_INTEGER)
