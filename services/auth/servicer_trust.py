"""TrustService on the wire."""

from __future__ import annotations

import asyncio
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
from services.auth.snapshot_parts import PART_BYTES, parts_of
from services.auth.store.news import News
from services.auth.told import told_to

Context = grpc.aio.ServicerContext[Any, Any]


class TrustServicer(TrustServiceServicer):
    """Translates, and tells each service its part; `TrustPublisher` reads and tells."""

    def __init__(
        self,
        *,
        publisher: TrustPublisher,
        clock: Clock,
        audiences: Audiences = OURS,
        part_bytes: int = PART_BYTES,
    ) -> None:
        self._part_bytes = part_bytes
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
                told = news
                if told.snapshot is None:
                    message = self._message(told_to(service, told, self._audiences))
                    if message.ByteSize() <= self._part_bytes:
                        yield message
                        continue
                    # More changes at once than one message holds, and half of them would be no truth of any moment.
                    told = await self._publisher.everything()
                # In a thread: with very many grants it takes a second, and calls must not wait for it.
                for part in await asyncio.to_thread(self._parts, service, told):
                    message = self._message(told)
                    message.snapshot.CopyFrom(part)
                    yield message

    def _parts(self, service: str, news: News) -> list[messages.TrustSnapshot]:
        snapshot = told_to(service, news, self._audiences).snapshot
        return [] if snapshot is None else list(parts_of(snapshot_to_message(snapshot), limit=self._part_bytes))

    def _message(self, news: News) -> messages.WatchTrustResponse:
        read_age = Duration()
        read_age.FromTimedelta(timedelta(seconds=max(0.0, self._clock.monotonic() - news.read_at)))
        message = messages.WatchTrustResponse(epoch=news.epoch, sequence=news.sequence, read_age=read_age)
        if news.snapshot is not None:
            return message
        if news.is_heartbeat:
            message.heartbeat.SetInParent()
        else:
            message.delta.CopyFrom(delta_to_message(news.changes))
        return message
