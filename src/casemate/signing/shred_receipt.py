"""The receipt of a shredding: what was destroyed, when, and from when no backup opens it.

Signed (DSSE) by the key of the transparency log, which also holds the entry that the
receipt names. It rests on the operator's word for how long backups are kept.

If this fails: someone is shown a receipt for a version that still opens. The log's
entry, and asking for the version, tell otherwise.
"""

from __future__ import annotations

from dataclasses import InitVar, dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final

from casemate.errors import SignatureInvalid
from casemate.signing import dsse, strict_json
from casemate.signing.strict_json import invalid

if TYPE_CHECKING:
    from casemate.signing.keys import PublicKey, SigningKey

SHRED_RECEIPT_TYPE: Final = "application/vnd.casemate.shred-receipt.v1+json"

_SEAL: Final = object()


@dataclass(frozen=True, slots=True, kw_only=True)
class ShredReceipt:
    """What a receipt says.

    Attributes:
        log: name of the log that signs, `datasets.<domain>/log`.
        log_index: the log's entry about the shredding.
        tenant: whose version it was.
        dataset: its dataset.
        version: its number.
        root: its RFC 6962 root, in hexadecimal.
        manifest_sha256: digest of its signed manifest, in hexadecimal.
        shredded_at: when it ceased to be readable.
        key_deleted_at: when its data key was deleted, or was found deleted.
        no_backup_after: from then on no backup holds the key.
    """

    log: str
    log_index: int
    tenant: str
    dataset: str
    version: int
    root: str
    manifest_sha256: str
    shredded_at: datetime
    key_deleted_at: datetime
    no_backup_after: datetime

    def to_payload(self) -> bytes:
        """The canonical JSON that is signed."""
        return strict_json.canonical(
            {
                "dataset": self.dataset,
                "key_deleted_at": _text(self.key_deleted_at),
                "log": self.log,
                "log_index": self.log_index,
                "manifest_sha256": self.manifest_sha256,
                "no_backup_after": _text(self.no_backup_after),
                "root": self.root,
                "shredded_at": _text(self.shredded_at),
                "tenant": self.tenant,
                "type": SHRED_RECEIPT_TYPE,
                "version": self.version,
            }
        )

    @classmethod
    def parse(cls, payload: bytes) -> ShredReceipt:
        """Reads what `to_payload` wrote, and nothing else.

        Raises:
            InvalidRequest: any other bytes.
        """
        found = strict_json.parse_object(payload, field="receipt", maximum_items=32)
        try:
            receipt = cls(
                log=str(found["log"]),
                log_index=_number(found["log_index"]),
                tenant=str(found["tenant"]),
                dataset=str(found["dataset"]),
                version=_number(found["version"]),
                root=str(found["root"]),
                manifest_sha256=str(found["manifest_sha256"]),
                shredded_at=_moment(found["shredded_at"]),
                key_deleted_at=_moment(found["key_deleted_at"]),
                no_backup_after=_moment(found["no_backup_after"]),
            )
        except (KeyError, TypeError, ValueError):
            raise invalid("receipt", "is not a receipt of a shredding") from None
        if receipt.to_payload() != payload:
            raise invalid("receipt", "is not written in its one spelling")
        return receipt


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifiedReceipt:
    """A receipt that the log signed; only `verify_shred_receipt` makes one."""

    receipt: ShredReceipt
    _seal: InitVar[object] = None

    def __post_init__(self, _seal: object) -> None:
        if _seal is not _SEAL:
            raise TypeError("a VerifiedReceipt is made by verify_shred_receipt")


def sign_shred_receipt(receipt: ShredReceipt, key: SigningKey) -> bytes:
    """The receipt as an envelope."""
    return dsse.sign_envelope(SHRED_RECEIPT_TYPE, receipt.to_payload(), key)


def verify_shred_receipt(envelope: bytes, *, log: str, public_key: PublicKey) -> VerifiedReceipt:
    """The receipt, if the log of this name signed it with this key.

    Raises:
        InvalidRequest: not an envelope of this type.
        SignatureInvalid: signed by another key, or in another log's name.
    """
    verified = dsse.verify_envelope(envelope, payload_type=SHRED_RECEIPT_TYPE, resolve=lambda _hint: public_key)
    receipt = ShredReceipt.parse(verified.payload)
    if receipt.log != log:
        raise SignatureInvalid("the receipt is another log's")
    return VerifiedReceipt(receipt=receipt, _seal=_SEAL)


def _number(value: object) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("not a number")
    return value


def _text(moment: datetime) -> str:
    return moment.astimezone(UTC).isoformat(timespec="microseconds")


def _moment(value: object) -> datetime:
    if not isinstance(value, str):
        raise TypeError("not a moment")
    moment = datetime.fromisoformat(value)
    if moment.utcoffset() != timedelta(0):
        raise ValueError("not in UTC")
    return moment
