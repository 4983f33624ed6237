"""What must go on working while things are taken away: certificates that renew, processes that are killed."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import pytest

from casemate.cli.cluster import Cluster
from casemate.cli.ports import Ports
from casemate.cli.state import SERVICES, StateDirectory
from casemate.cli.story import TENANT, Story
from casemate.client.datasets import Datasets
from casemate.errors import CasemateError
from casemate.pki.leaves import describe
from casemate.signing.keys import PublicKey
from casemate.signing.statements import Column

DATASET = "digits"
SCHEMA = (Column(name="round", type="integer", minimum=0, maximum=None),)


@asynccontextmanager
async def story_on(tmp_path):
    cluster = Cluster(
        state=StateDirectory(tmp_path / "state"),
        ports=Ports.free(),
        trust_domain="casemate.internal",
        report=lambda _line: None,
    )
    story = Story(cluster)
    try:
        await cluster.start()
        await asyncio.to_thread(story.admit)
        yield cluster, story
    finally:
        await asyncio.to_thread(story.close)
        await cluster.stop()
        await cluster.postgres.erase()


@dataclass
class History:
    """What a supplier was told, so that it can be held against what is there."""

    acknowledged: dict[int, bytes] = field(default_factory=dict)
    unknown: int = 0
    failures: list[CasemateError] = field(default_factory=list)


def push_once(datasets: Datasets, story: Story, number: int, history: History) -> None:
    records = [str(number).encode()] * 300
    try:
        manifest = datasets.manifest(lambda: records, tenant=TENANT, dataset=DATASET, schema=SCHEMA, chunk_bytes=256)
        done = datasets.push(
            lambda: records, manifest=manifest, signing_key=story.signing_key("supplier"), chunk_bytes=256
        )
    except CasemateError as error:
        history.unknown += 1
        history.failures.append(error)
    else:
        history.acknowledged[done.version] = done.root


def check(story: Story, history: History, key: PublicKey) -> int:
    """Every acknowledged version is there, whole and proven; what else is there is whole too. Returns how many."""
    datasets = Datasets(story.session("supplier"))
    latest = datasets.describe(DATASET).version
    assert latest >= max(history.acknowledged)
    for version in range(1, latest + 1):
        pulled = datasets.pull(DATASET, version, tenant=TENANT, trusted=[key])
        assert len(pulled.records()) == 300
        if version in history.acknowledged:
            assert pulled.root == history.acknowledged[version]
    return latest


async def rotate_under_load(tmp_path, times: int) -> None:
    async with story_on(tmp_path) as (cluster, story):
        history, stop = History(), threading.Event()
        source = story.session("supplier").source
        source.start()
        datasets = Datasets(story.session("supplier"))

        def load() -> None:
            number = 0
            while not stop.is_set():
                push_once(datasets, story, number, history)
                number += 1

        thread = threading.Thread(target=load)
        thread.start()
        first = describe(cluster.state.service_leaf("datasets")).serial
        try:
            for _ in range(times):
                await asyncio.to_thread(cluster.certificates.reissue_all)
                await asyncio.sleep(1.0)  # the sources look once a second: each of these pairs is taken up
        finally:
            stop.set()
            await asyncio.to_thread(thread.join)
            source.close()
        assert describe(cluster.state.service_leaf("datasets")).serial != first
        assert history.failures == []
        assert len(history.acknowledged) > times
        assert await asyncio.to_thread(check, story, history, story.supplier_key()) == len(history.acknowledged)


async def kill_under_load(tmp_path, rounds: int) -> None:
    async with story_on(tmp_path) as (cluster, story):
        history, stop = History(), threading.Event()
        datasets = Datasets(story.session("supplier"))
        choose = random.Random(7)  # noqa: S311  # the same victims in each run

        def load() -> None:
            number = 0
            while not stop.is_set():
                push_once(datasets, story, number, history)
                number += 1

        await asyncio.to_thread(push_once, datasets, story, 0, history)
        thread = threading.Thread(target=load)
        thread.start()
        try:
            for _ in range(rounds):
                await asyncio.sleep(choose.uniform(0.0, 1.0))
                victim = choose.choice([*SERVICES, "postgres"])
                pid = cluster.postgres.pid if victim == "postgres" else cluster.child(victim).process.pid
                if pid is not None:
                    os.kill(pid, signal.SIGKILL)
                await asyncio.sleep(0.3)
                await cluster.wait_healthy()
        finally:
            stop.set()
            await asyncio.to_thread(thread.join)
        await cluster.wait_healthy()
        latest = await asyncio.to_thread(check, story, history, story.supplier_key())
        assert latest <= len(history.acknowledged) + history.unknown
        assert all(cluster.child(service).process.returncode is None for service in SERVICES)


async def test_certificates_renewed_every_second_cost_no_call(tmp_path):
    await rotate_under_load(tmp_path, times=5)


async def test_killed_processes_lose_nothing_that_was_acknowledged(tmp_path):
    await kill_under_load(tmp_path, rounds=3)


@pytest.mark.long
@pytest.mark.timeout(600)
async def test_a_minute_of_certificates_that_live_a_second_costs_no_call(tmp_path):
    await rotate_under_load(tmp_path, times=60)


@pytest.mark.long
@pytest.mark.timeout(1800)
async def test_forty_rounds_of_kills_lose_nothing_that_was_acknowledged(tmp_path):
    await kill_under_load(tmp_path, rounds=40)
