"""Lets an unmodified tritonclient talk to inference.

tritonclient takes channel credentials and plugins; ours give it the caller's
certificate and put a fresh token on every request.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import grpc

from casemate.client.session import Session

if TYPE_CHECKING:
    from tritonclient.grpc import InferenceServerClient

MAXIMUM_MESSAGE_BYTES = 64 * 1024 * 1024


class _Request(Protocol):
    headers: dict[str, str]


class BearerPlugin:
    """A tritonclient plugin that adds the session's token.

    Register it with `client.register_plugin(BearerPlugin(session))`.
    """

    def __init__(self, session: Session) -> None:
        self._session = session

    def __call__(self, request: _Request) -> None:
        """Adds the token; tritonclient calls this for each request."""
        # gRPC metadata keys are lower case; tritonclient passes them on as they are.
        request.headers.update(dict(self._session.metadata("inference")))


def triton_client(session: Session) -> InferenceServerClient:
    """An unmodified tritonclient, with the session's certificate and tokens.

    It holds the certificate of this moment: make a new one after a renewal.
    """
    client = bare_triton_client(session)
    client.register_plugin(BearerPlugin(session))
    return client


def bare_triton_client(session: Session) -> InferenceServerClient:
    """An unmodified tritonclient with the session's certificate, and no token."""
    from tritonclient.grpc import InferenceServerClient  # noqa: PLC0415  # an optional dependency

    pair = session.source.current
    return InferenceServerClient(
        session.endpoints.inference,
        creds=grpc.ssl_channel_credentials(pair.roots_pem, pair.private_key_pem.reveal(), pair.certificate_chain_pem),
        channel_args=[
            ("grpc.ssl_target_name_override", session.service_name("inference")),
            ("grpc.enable_http_proxy", 0),
            ("grpc.max_receive_message_length", MAXIMUM_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAXIMUM_MESSAGE_BYTES),
        ],
    )
