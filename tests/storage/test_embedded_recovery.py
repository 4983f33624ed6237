from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from casemate.errors import ConfigurationError
from casemate.storage import process
from casemate.storage.embedded import EmbeddedPostgres
from casemate.storage.placement import place, reachable_programs
from tests.storage.embedded_server import (
    answer,
    remembered,
    start_supervisor,
)


async def test_data_survive_a_stop_and_stopping_twice_is_harmless(folder: Path):
    server = EmbeddedPostgres(directory=folder / "postgres")
    for starts in (1, 2):
        await server.start()
        assert await remembered(server) == starts
        await server.stop()
        await server.stop()
    assert server.pid is None


async def test_second_live_process_is_refused(folder: Path):
    async with EmbeddedPostgres(directory=folder / "postgres") as first:
        with pytest.raises(ConfigurationError, match="another process is running"):
            await EmbeddedPostgres(directory=folder / "postgres").start()
        assert await answer(first.superuser) == "postgres"
    async with EmbeddedPostgres(directory=folder / "postgres") as second:
        assert await answer(second.superuser) == "postgres"


async def test_next_start_recovers_from_a_supervisor_that_was_killed(folder: Path):
    state = folder / "postgres"
    supervisor, pid = start_supervisor(state)
    assert process.is_postgres_on(pid, state / "data")
    supervisor.kill()
    supervisor.wait()
    # At once, while it may still be shutting down.
    async with EmbeddedPostgres(directory=state) as server:
        assert server.pid != pid
        assert await remembered(server) == 1
        assert not process.is_postgres_on(pid, state / "data")


async def test_server_ends_by_itself_when_its_supervisor_is_killed(folder: Path):
    state = folder / "postgres"
    supervisor, pid = start_supervisor(state)
    supervisor.kill()
    supervisor.wait()
    async with asyncio.timeout(20):
        while process.is_postgres_on(pid, state / "data"):  # the kernel's event, not ours
            await asyncio.sleep(process.POLL_SECONDS)
    async with EmbeddedPostgres(directory=state) as server:
        assert await answer(server.superuser) == "postgres"


async def test_server_that_outlived_its_supervisor_is_stopped_and_started_again(folder: Path):
    state = folder / "postgres"
    server = EmbeddedPostgres(directory=state)
    async with server:
        assert await remembered(server) == 1
    placement = place(state)
    arguments = ("start", "-w", "-D", placement.data, "-l", "/dev/null", "-o", f"-k {server.socket_directory} -h ''")
    process.run(placement.account, reachable_programs(placement) / "pg_ctl", *arguments)
    pid = int((placement.data / "postmaster.pid").read_text().split()[0])
    assert process.is_postgres_on(pid, placement.data)
    async with server:
        assert server.pid != pid
        assert await remembered(server) == 2
        assert not process.is_postgres_on(pid, state / "data")


async def test_server_killed_outright_recovers_at_the_next_start(folder: Path):
    state = folder / "postgres"
    server = EmbeddedPostgres(directory=state)
    await server.start()
    assert await remembered(server) == 1
    assert server.pid is not None
    os.kill(server.pid, signal.SIGKILL)
    await server.stop()
    async with server:
        assert await remembered(server) == 2


async def test_stale_pid_file_whose_number_went_to_another_program_does_not_hinder(folder: Path):
    state = folder / "postgres"
    server = EmbeddedPostgres(directory=state)
    async with server:
        pid_file = (state / "data" / "postmaster.pid").read_text().splitlines()
    placement = place(state)
    # Of the same user: only then does PostgreSQL take it for a server of its own.
    with (folder / "log").open("wb") as log:
        stranger = process.spawn(placement.account, "/bin/sleep", "60", log=log)
    stale = placement.data / "postmaster.pid"
    stale.write_text("\n".join([str(stranger.pid), *pid_file[1:]]) + "\n")
    os.chown(stale, placement.account.uid, placement.account.gid)
    try:
        async with server:
            assert await answer(server.superuser) == "postgres"
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


@pytest.mark.parametrize("content", ["", "\n", "99"])
async def test_pid_file_that_was_cut_off_does_not_hinder(folder: Path, content: str):
    server = EmbeddedPostgres(directory=folder / "postgres")
    async with server:
        pass
    stale = folder / "postgres" / "data" / "postmaster.pid"
    stale.write_text(content)
    owner = stale.parent.stat()
    os.chown(stale, owner.st_uid, owner.st_gid)
    async with server:
        assert await answer(server.superuser) == "postgres"


async def test_half_made_data_of_an_interrupted_first_start_are_made_again(folder: Path):
    half = folder / "postgres" / "data-partial"
    half.mkdir(parents=True)
    (half / "PG_VERSION").write_text("18\n")
    async with EmbeddedPostgres(directory=folder / "postgres") as server:
        assert await answer(server.superuser) == "postgres"
    assert not half.exists()


async def test_start_from_another_thread_is_refused(folder: Path):
    server = EmbeddedPostgres(directory=folder / "postgres")
    with pytest.raises(RuntimeError, match="main thread"):
        await asyncio.to_thread(asyncio.run, server.start())
    async with server:
        assert await answer(server.superuser) == "postgres"


async def test_data_that_cannot_be_served_are_reported_in_one_line(folder: Path):
    server = EmbeddedPostgres(directory=folder / "postgres")
    async with server:
        pass
    version = folder / "postgres" / "data" / "PG_VERSION"
    version.write_text("9.6\n")
    with pytest.raises(ConfigurationError, match=r"PostgreSQL did not start: .*incompatible"):
        await server.start()
    version.write_text("18\n")
    async with server:
        assert await answer(server.superuser) == "postgres"
