"""Clients of AWS, made in one way: bounded in time, and silent about what they carry.

If this fails: a plain key or a secret stands in a log at DEBUG, or a call waits for ever.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import aioboto3
from botocore.config import Config


@asynccontextmanager
async def open_client(
    service: str,
    *,
    region: str,
    attempt: timedelta,
    attempts: int,
    endpoint_url: str | None = None,
    session: aioboto3.Session | None = None,
) -> AsyncIterator[Any]:
    """A client that lives as long as the block. AWS is not asked before the first call.

    Args:
        service: as AWS names it.
        region: such as `eu-central-1`.
        attempt: the longest time for one connection, and for one answer.
        attempts: how often a call is tried that failed in passing.
        endpoint_url: another endpoint than the region's own.
        session: holds credentials; by default from where AWS's tools look for them.
    """
    _silence_bodies()
    seconds = attempt.total_seconds()
    retries: Any = {"mode": "standard", "total_max_attempts": attempts}
    config = Config(connect_timeout=seconds, read_timeout=seconds, retries=retries)
    maker = session or aioboto3.Session()
    async with maker.client(service, region_name=region, endpoint_url=endpoint_url, config=config) as client:
        yield client


def _silence_bodies() -> None:
    """Keeps keys and secrets out of logs: botocore writes every body there at DEBUG."""
    for name in ("botocore", "aiobotocore", "aioboto3", "boto3"):
        logger = logging.getLogger(name)
        if logger.level < logging.INFO:
            logger.setLevel(logging.INFO)
