"""TrustService on the wire."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from datetime import timedelta
from typing import Any

import grpc
from google.protobuf.duration_pb2 import Duration

from casemate.auth.v1 import trust_service_pb2 as messages
from casemate.auth.v1.trust_service_pb2_grpc import TrustServiceServicer
from casemate.clock import Clock
from casemate.errors import PermissionDenied, Reason
from casemate.gate.adapters.caller_context import current_caller
from casemate.gate.adapters.records import delta_to_message, snapshot_to_message
from services.auth.feed import TrustPublisher
from services.auth.scopes import OURS, Audiences
from services.auth.store.news import News
from services.auth.told import told_to

Context = grpc.aio.ServicerContext[Any, Any]


class TrustServicer(TrustServiceServicer):
    """Translates, and tells each service its part; `TrustPublisher` reads and tells."""

    def __init__(self, *, publisher: TrustPublisher, clock: Clock, audiences: Audiences = OURS) -> None:
        self._audiences = audiences
        self._publisher = publisher
        self._clock = clock

    async def WatchTrust(  # noqa: N802  # the protocol's name
        self, request: messages.WatchTrustRequest, _context: Context
    ) -> AsyncIterator[messages.WatchTrustResponse]:
        """Everything, then every change, as far as it is the watching service's business."""
        service = current_caller().service
        if service is None:
            raise PermissionDenied("only services watch", reason=Reason.CALLER_NOT_ALLOWED)
        async with aclosing(self._publisher.watch(epoch=request.epoch, sequence=request.sequence)) as watch:
            async for news in watch:
                yield self._message(told_to(service, news, self._audiences))

    def _message(self, news: News) -> messages.WatchTrustResponse:
        read_age = Duration()
        read_age.FromTimedelta(timedelta(seconds=max(0.0, self._clock.monotonic() - news.read_at)))
        message = messages.WatchTrustResponse(epoch=news.epoch, sequence=news.sequence, read_age=read_age)
        if news.snapshot is not None:
            message.snapshot.CopyFrom(snapshot_to_message(news.snapshot))
        elif news.is_heartbeat:
            message.heartbeat.SetInParent()
        else:
            message.delta.CopyFrom(delta_to_message(news.changes))
        return message
