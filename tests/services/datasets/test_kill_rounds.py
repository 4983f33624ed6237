"""E18, E19: PostgreSQL and the service killed at random points under uploads, and a history that is checked.

A sample of rounds runs with the other tests; `make test-long` runs two hundred of each
and writes docs/records/datasets-kill-rounds.txt.
"""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sys
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import grpc
import pytest
import pytest_asyncio

from bench.report import hardware
from casemate.errors import CasemateError, Conflict, NotFound, Unavailable
from casemate.storage.embedded import EmbeddedPostgres
from tests.services.datasets.history import Attempt, History, Outcome, Stored, outcome_of
from tests.services.datasets.test_shred import _told
from tests.services.datasets.world import (
    FINISH,
    World,
    build_settings,
    chunk_messages,
    manifest_message,
    manifest_of,
    our_errors,
    password,
)
from tests.support.postgres import make_reachable_folder

CHECKOUT = Path(__file__).parents[3]
RECORD = CHECKOUT / "docs" / "records" / "datasets-kill-rounds.txt"
WRITERS = 3
LATEST_KILL_S = 0.25
"""A push takes about a tenth of a second here: kills fall before, into and behind every step of one."""

STATE = """
SELECT state, next_offset, next_batch, next_ordinal,
       (SELECT count(*) FROM batches b WHERE b.upload = u.id) AS batches,
       (SELECT count(*) FROM sealed_rows r WHERE r.upload = u.id) AS rows,
       (SELECT count(*) FROM log_entries WHERE position('"kind":"promotion"'::bytea in entry) > 0
          AND position(convert_to(format('"dataset":"%s"', u.dataset), 'UTF8') in entry) > 0
          AND position(convert_to(format('"version":%s}', u.version), 'UTF8') in entry) > 0) AS promotions
  FROM uploads u WHERE dataset = $1 AND version = $2
"""


class Service:
    """The service in a process; the world's callers find it by `port`."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts it, and returns when it takes calls."""
        told = _told(self._world) | {
            "supplier": self._world.supplier.public.der,
            "token_key": self._world.verification_key.public_key_der,
        }
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.services.datasets.crashing"),
            cwd=CHECKOUT,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.DEVNULL,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(repr(told).encode() + b"\n")
        await self._process.stdin.drain()
        async with asyncio.timeout(60):
            port = await self._process.stdout.readline()
        self._world.running = SimpleNamespace(port=int(port))

    async def kill(self) -> None:
        if self._process is not None and self._process.returncode is None:
            self._process.send_signal(signal.SIGKILL)
            await self._process.wait()


@pytest_asyncio.fixture
async def crash_world(leaf, tmp_path):
    """A world on a PostgreSQL of its own, which may be killed without harm to other tests."""
    parent = make_reachable_folder()
    server = EmbeddedPostgres(directory=parent / "postgres")
    await server.start()
    rows, keys = [await server.ensure_database(name, password()) for name in ("crash_rows", "crash_keys")]
    settings = build_settings(
        identity=leaf("service", service="datasets"), database=rows, data_keys=keys, state=tmp_path
    )
    world = World(settings=settings, leaf=leaf, superuser=server.superuser)
    service = Service(world)
    await service.start()
    try:
        yield world, server, service
    finally:
        await service.kill()
        await server.erase()
        shutil.rmtree(parent)


async def push(actor, attempt: Attempt, history: History) -> None:
    """Goes on with an upload from where the service says, noting every answer; ends at the first lost one."""
    operation = "open"
    try:
        with our_errors():
            call = actor.datasets.PushDataset(metadata=actor.metadata, timeout=30)
            for request in [
                manifest_message(attempt.envelope, attempt.dataset),
                *chunk_messages(attempt.chunks),
                FINISH,
            ]:
                operation = str(request.WhichOneof("step"))
                if operation == "chunk" and request.chunk.offset < attempt.acknowledged:
                    continue
                try:
                    await call.write(request)
                    answer = await call.read()
                except grpc.aio.UsageError:
                    answer = grpc.aio.EOF
                if answer is grpc.aio.EOF:
                    await call.code()
                    raise Unavailable("ended without an answer")
                history.note(Outcome.DONE)
                if answer.next_offset < attempt.acknowledged:
                    history.problems.append(f"{attempt.dataset}: {attempt.acknowledged} went back")
                attempt.acknowledged = max(attempt.acknowledged, answer.next_offset)
                if answer.HasField("promoted"):
                    attempt.finish = Outcome.DONE
    except CasemateError as error:
        outcome = outcome_of(error)
        history.note(outcome)
        if outcome is Outcome.FAILED:
            history.problems.append(f"{attempt.dataset}/{attempt.version}: {operation} failed: {error.code}")
        elif operation == "finish" and attempt.finish is None:
            attempt.finish = Outcome.UNKNOWN


async def supply(world: World, actor, name: str, history: History, ended: asyncio.Event) -> None:
    """One supplier: finishes what was left unfinished, then pushes version after version."""
    while not ended.is_set():
        mine = [attempt for attempt in history.attempts if attempt.dataset == name]
        if not mine or mine[-1].finish is Outcome.DONE:
            version = len(mine) + 1
            chunks = tuple(b"%d,v%d\n%d,w\n" % (n, version, n) for n in range(5))
            previous = manifest_of(mine[-1].chunks).root if mine else None
            manifest = manifest_of(chunks, dataset=name, version=version, previous_root=previous)
            mine = [Attempt(name, version, world.signed(manifest), chunks)]
            history.attempts += mine
        before = history.counts[Outcome.UNKNOWN]
        await push(actor, mine[-1], history)
        if history.counts[Outcome.UNKNOWN] != before:
            return  # somebody was killed: the round is over for this one


async def check(world: World, history: History) -> None:
    """Every supplier's last two attempts: the ones before were held against the same long ago."""
    reader = world.actor()
    async with world.sql() as sql:
        for name in {attempt.dataset for attempt in history.attempts}:
            for attempt in [attempt for attempt in history.attempts if attempt.dataset == name][-2:]:
                record = await sql.fetchrow(STATE, attempt.dataset, attempt.version)
                try:
                    _, batches = await reader.pull(attempt.dataset, attempt.version)
                    read = b"".join(row + b"\n" for batch in batches for row in batch.records)
                except NotFound:
                    read = None
                history.check(attempt, None if record is None else Stored(**dict(record)), read)


async def round_of(crash_world, history: History, *, kill: str, delay: float) -> None:
    """Suppliers push; something is killed; it is started again; what is there is held against what was said."""
    world, server, service = crash_world
    ended = asyncio.Event()
    actors = [world.actor(f"supplier-{number}") for number in range(WRITERS)]
    suppliers = [
        asyncio.create_task(supply(world, actor, f"d{number}", history, ended)) for number, actor in enumerate(actors)
    ]
    await asyncio.sleep(delay)  # the random point
    if kill == "postgres":
        assert server.pid is not None
        os.kill(server.pid, signal.SIGKILL)
        await server.stop()
    else:
        await service.kill()
    ended.set()
    async with asyncio.timeout(60):
        await asyncio.gather(*suppliers)
    await (server.start() if kill == "postgres" else service.start())
    async with asyncio.timeout(60):
        while True:
            try:
                await world.actor().version("d0")
            except Unavailable:
                await asyncio.sleep(0.02)  # its pool is still finding out
            except NotFound:
                break
            else:
                break
    await check(world, history)
    for channel in world._channels:
        await channel.close()
    world._channels.clear()


async def finish_all(world: World, history: History) -> None:
    """Asks again for whatever is unknown, until everything is done; then everything is checked."""
    actor = world.actor()
    for attempt in history.attempts:
        while attempt.finish is not Outcome.DONE:
            await push(actor, attempt, history)
    await check(world, history)


async def rounds(crash_world, *, kills: list[str], seed: int) -> History:
    history, chance = History(), random.Random(seed)  # noqa: S311  # points of time, not secrets
    for kill in kills:
        await round_of(crash_world, history, kill=kill, delay=chance.uniform(0, LATEST_KILL_S))
        assert history.problems == []
    await finish_all(crash_world[0], history)
    return history


def require_sound(history: History) -> None:
    assert history.problems == []
    assert history.counts[Outcome.FAILED] == 0
    assert history.counts[Outcome.UNKNOWN] > 0, "the kills hit uploads"
    assert all(attempt.finish is Outcome.DONE for attempt in history.attempts)


async def test_killed_under_uploads_nothing_acknowledged_is_lost_and_nothing_else_half_visible(crash_world):
    """E18, E19: a sample of five rounds each."""
    require_sound(await rounds(crash_world, kills=["postgres", "service"] * 5, seed=1))


@pytest.mark.long
@pytest.mark.parametrize("block", range(1, 5))
@pytest.mark.parametrize("kill", ["postgres", "service"])
async def test_two_hundred_kills_lose_nothing_that_was_acknowledged(crash_world, kill, block):
    """E18, E19: four blocks of fifty each, every block on a database of its own."""
    begun = time.monotonic()
    history = await rounds(crash_world, kills=[kill] * 50, seed=20261123 + block)
    require_sound(history)
    counts = ", ".join(f"{count} {outcome}" for outcome, count in history.counts.items())
    line = (
        f"{kill} block {block}: 50 kills in {time.monotonic() - begun:.0f} s under {WRITERS} suppliers; operations: "
        f"{counts}; {len(history.attempts)} versions promoted, each once, none lost, none half visible "
        f"({datetime.now(UTC):%F}, {hardware()})\n"
    )
    RECORD.parent.mkdir(exist_ok=True)
    kept = RECORD.read_text().splitlines(keepends=True) if RECORD.exists() else []
    others = [row for row in kept if not row.startswith(f"{kill} block {block}: ")]
    RECORD.write_text("".join(sorted([*others, line])))


def test_the_checker_finds_each_kind_of_loss():
    """What it is worth: every fault that it is there to find is found, and a whole history is not accused."""
    attempt = Attempt("d", 1, b"", (b"1,a\n", b"2,b\n"), acknowledged=8, finish=Outcome.DONE)
    good = Stored(state="promoted", next_offset=8, next_batch=2, next_ordinal=2, batches=2, rows=2, promotions=1)
    whole = b"1,a\n2,b\n"

    def problems(attempt: Attempt, stored: Stored | None, read: bytes | None) -> list[str]:
        history = History()
        history.check(attempt, stored, read)
        return history.problems

    assert problems(attempt, good, whole) == []
    for stored, read in (
        (None, None),
        (replace(good, next_offset=4), whole),
        (replace(good, next_offset=7), whole),
        (replace(good, rows=1), whole),
        (replace(good, batches=1), whole),
        (replace(good, state="receiving", promotions=0), None),
        (replace(good, promotions=2), whole),
        (replace(good, promotions=0), whole),
        (good, None),
        (good, b"1,a\n"),
        (replace(good, state="receiving"), whole),
    ):
        assert problems(attempt, stored, read), (stored, read)
    unknown = replace(attempt, acknowledged=4, finish=Outcome.UNKNOWN)
    receiving = Stored(state="receiving", next_offset=8, next_batch=2, next_ordinal=2, batches=2, rows=2, promotions=0)
    assert problems(unknown, receiving, None) == problems(unknown, good, whole) == []
    assert problems(replace(unknown, acknowledged=0), None, None) == []
    assert (outcome_of(Unavailable()), outcome_of(Conflict())) == (Outcome.UNKNOWN, Outcome.FAILED)
