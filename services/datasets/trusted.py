"""Whether the signature of a promoted version counts now.

If this fails: rows that a stolen key signed are given out, or push others out of their dataset's retention.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.errors import NotFound, PermissionDenied

if TYPE_CHECKING:
    from casemate.signing.statements import SignerResolver
    from services.datasets.upload import Upload


def require_trusted(upload: Upload, resolve: SignerResolver) -> None:
    """Returns if the signer's key counted when the version was promoted, as known now.

    A compromise date before the promotion thus quarantines at once, with no
    row to change. A signer that the trust feed no longer knows does too.

    Raises:
        NotFound: it did not count.
    """
    signer = resolve(upload.signer_key_id)
    if signer is None or upload.promoted_at is None or signer.tenant != upload.tenant:
        raise NotFound(f"the signer of {upload.id} is not known")
    try:
        signer.judge(upload.promoted_at)
    except PermissionDenied as refusal:
        raise NotFound(f"upload {upload.id} is quarantined: {refusal}") from refusal


def is_trusted(upload: Upload, resolve: SignerResolver) -> bool:
    """Whether `require_trusted` would return."""
    try:
        require_trusted(upload, resolve)
    except NotFound:
        return False
    return True
