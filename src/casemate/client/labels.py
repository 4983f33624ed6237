"""Signed labels of model versions, `stable` among them: the one way back to an older version."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING

import grpc

from casemate.auth.v1 import release_service_pb2 as messages
from casemate.auth.v1.release_service_pb2_grpc import ReleaseServiceStub
from casemate.clock import Clock, SystemClock
from casemate.signing.release_label import ReleaseLabel, sign_release_label
from casemate.transport.status import from_rpc_error

if TYPE_CHECKING:
    from casemate.client.session import Session
    from casemate.signing.keys import SigningKey

LABEL_LIFETIME = timedelta(hours=1)
"""How long a signed label may be used."""


class Labels:
    """The labels of models, moved with an administrator's token and an operator's key."""

    def __init__(self, session: Session, *, clock: Clock | None = None) -> None:
        self._session = session
        self._clock = clock or SystemClock()
        self._stub = ReleaseServiceStub(session.channel("auth"))

    def set(
        self, *, tenant: str, model: str, label: str, number: int, manifest_sha256: bytes, signing_key: SigningKey
    ) -> dict[str, int]:
        """Signs that a label names a version, and has it recorded; returns all labels of the model.

        Args:
            tenant: of the model.
            model: its name.
            label: `stable` is what a request without a version gets.
            number: of the version; zero takes the label away.
            manifest_sha256: the version's digest, so that nobody can mean another one; empty for zero.
            signing_key: a registered operator's key.

        Raises:
            NotFound: no such version was released.
            PermissionDenied: the key is no operator's.
            Conflict: the label was moved later than by this clock.
        """
        now = self._clock.now()
        statement = ReleaseLabel(
            audience=self._session.service_name("auth"),
            tenant=tenant,
            model=model,
            label=label,
            number=number,
            manifest_sha256=manifest_sha256,
            revision=int(now.timestamp() * 1000),
            expires_at=now + LABEL_LIFETIME,
        )
        request = messages.SetLabelRequest(
            envelope=sign_release_label(statement, signing_key), signer_key_id=signing_key.public.key_id
        )
        try:
            return dict(self._stub.SetLabel(request).release.labels)
        except grpc.RpcError as error:
            raise from_rpc_error(error) from error
