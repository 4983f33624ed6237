"""The whole of a disaster: back up, go on, lose everything, restore on an empty machine, and go on."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from casemate.cli import digits
from casemate.cli.attacks import blank, replay_with_other_certificate
from casemate.cli.prediction import ask_as
from casemate.cli.story import CHUNK_BYTES, DATASET, MODEL, TENANT, Story
from casemate.client.datasets import Datasets
from casemate.client.log import LogReader
from casemate.errors import ConfigurationError, NotFound, Reason, Unauthenticated
from tests.backup.drill import Drill, size_of


def push_second_version(story) -> None:
    datasets = Datasets(story.session("supplier"))
    records = digits.to_records(digits.split()[1])
    manifest = datasets.manifest(
        lambda: records, tenant=TENANT, dataset=DATASET, schema=digits.SCHEMA, chunk_bytes=CHUNK_BYTES
    )
    key = story.signing_key("supplier")
    datasets.push(lambda: records, manifest=manifest, signing_key=key, chunk_bytes=CHUNK_BYTES)


def pull(story, version: int) -> int:
    trainer = Datasets(story.session("trainer"))
    return len(trainer.pull(DATASET, version, tenant=TENANT, trusted=[story.supplier_key()]).records())


@pytest.mark.long
@pytest.mark.timeout(900)
async def test_what_was_shredded_and_revoked_after_the_backup_stays_so_on_an_empty_machine(tmp_path, capsys):
    drill = Drill(tmp_path)
    try:
        async with drill.running() as story:
            operator = drill.operator(story)
            await asyncio.to_thread(Story(drill.cluster).tell)
            await asyncio.to_thread(push_second_version, story)
            described = operator.create_grant(
                tenant=TENANT, caller=f"t/{TENANT}/mallory", verb="describe", resource=f"dataset/{DATASET}"
            )
            operator.create_grant(
                tenant=TENANT, caller=f"t/{TENANT}/supplier", verb="shred", resource=f"dataset/{DATASET}"
            )
            family = await asyncio.to_thread(drill.begin_family, story)
            token = story.session("caller").token("inference")
            assert len(ask_as(story.session("caller"), MODEL, blank())) == 1
            assert pull(story, 2) > 0

            backup = await drill.back_up()

            Datasets(story.session("supplier")).shred(DATASET, 2)
            operator.disable_client("acme-mallory")
            operator.delete_grant(described)
            family = await asyncio.to_thread(drill.refresh, story, family)
            await drill.logged(story, "grant", record=[described], absent=True)
            newer = (await drill.back_up("--only", "log"))["log"]
            size = size_of(LogReader(story.session("operator", "casemate")))

        await drill.lose_everything(tmp_path / "elsewhere")
        folders = ("--rows", backup["rows"], "--datakeys", backup["datakeys"], "--log", newer)
        assert "made by a holder" in await drill.casemate("backup", "verify", *backup.values(), newer)
        assert "no database here" in await drill.casemate("backup", "create", "--to", tmp_path / "none", status=1)
        await drill.interrupt("backup", "restore", *folders)
        with pytest.raises(ConfigurationError, match="was interrupted: say casemate backup restore again"):
            async with drill.running():
                pass
        begun = time.monotonic()
        said = json.loads(await drill.casemate("backup", "restore", *folders, "--json"))
        assert said["datasets"]["versions_shredded"] == 1
        assert said["auth"]["clients_disabled"] == said["auth"]["families_ended"] == said["auth"]["grants_removed"] == 1

        async with drill.running() as story:
            up = time.monotonic() - begun
            await _goes_on(drill, story, described=described, family=family, token=token, size=size)
            assert "a cluster is running" in await drill.casemate("backup", "restore", *folders, status=1)
        assert "there is a database" in await drill.casemate("backup", "restore", *folders, status=1)
        with capsys.disabled():
            print(f"\nrestored in {said['seconds']:.1f} s; serving {up:.1f} s after the command was given")
    finally:
        await drill.erase()


async def _goes_on(drill, story, *, described, family, token, size) -> None:
    """The story works, and nothing that was taken away is back."""
    operator = drill.operator(story)
    assert len(ask_as(story.session("caller"), MODEL, blank())) == 1
    assert pull(story, 1) > 0
    with pytest.raises(NotFound):
        pull(story, 2)
    with pytest.raises(Unauthenticated):
        story.session("mallory").token("datasets")
    assert described not in {grant.id for grant in operator.list_grants(TENANT)}
    with pytest.raises(Unauthenticated) as ended:
        drill.refresh(story, family)
    assert ended.value.reason is Reason.GRANT_INVALID
    with pytest.raises(Unauthenticated):
        replay_with_other_certificate(story.session("caller"), token)
    assert size_of(LogReader(story.session("operator", "casemate"))) > size
    Story(drill.cluster).tell()  # again: each step is found done
