"""Secrets from files, by folder and by environment, and their rotation while the process runs."""

from __future__ import annotations

import asyncio
import copy
import logging
import pickle
from collections.abc import Mapping
from datetime import timedelta
from pathlib import Path

import pytest

from casemate.errors import ConfigurationError, Unavailable
from casemate.sealing.private_files import write_file
from casemate.sealing.secret_files import EnvironmentSecrets, FileSecrets
from casemate.sealing.secret_source import SecretSource, WatchedSecret
from casemate.secret import Secret

NAME = "database_password"
OLD, NEW = b"canary-of-yesterday", b"canary-of-today"


@pytest.fixture(params=["folder", "environment"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> SecretSource:
    """Two ways to the same file."""
    write_file(tmp_path / NAME, OLD + b"\n")
    if request.param == "folder":
        return FileSecrets(tmp_path)
    return EnvironmentSecrets({f"{NAME}_FILE": str(tmp_path / NAME)})


@pytest.mark.parametrize(
    ("content", "value"),
    [(b"x", b"x"), (b"x\n", b"x"), (b"x\r\n", b"x"), (b"x\n\n", b"x\n"), (b" x ", b" x "), (b"\x00\xff", b"\x00\xff")],
)
async def test_value_is_the_file_without_one_line_end(
    content: bytes, value: bytes, source: SecretSource, tmp_path: Path
) -> None:
    """Nothing else is taken off."""
    write_file(tmp_path / NAME, content)
    assert await source.read(NAME) == Secret(value)


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n", b"x" * (64 * 1024 + 1)], ids=len)
async def test_file_that_holds_no_secret_is_refused(content: bytes, source: SecretSource, tmp_path: Path) -> None:
    """Empty, or too long to be one; the twin is one byte."""
    write_file(tmp_path / NAME, content)
    with pytest.raises(ConfigurationError):
        await source.read(NAME)
    write_file(tmp_path / NAME, b"x")
    assert await source.read(NAME) == Secret(b"x")


@pytest.mark.parametrize(("mode", "accepted"), [(0o600, True), (0o640, True), (0o604, False), (0o660, False)])
async def test_file_open_to_others_is_refused(
    *, mode: int, accepted: bool, source: SecretSource, tmp_path: Path
) -> None:
    """The group may read, since an orchestrator mounts it so; it may not write."""
    (tmp_path / NAME).chmod(mode)
    if accepted:
        assert await source.read(NAME) == Secret(OLD)
    else:
        with pytest.raises(ConfigurationError, match="can be read by others"):
            await source.read(NAME)


async def test_missing_file_is_refused(source: SecretSource, tmp_path: Path) -> None:
    """And so is a folder in its place."""
    (tmp_path / NAME).unlink()
    with pytest.raises(ConfigurationError, match="missing"):
        await source.read(NAME)
    (tmp_path / NAME).mkdir()
    with pytest.raises(ConfigurationError):
        await source.read(NAME)


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "..", ".", ".hidden", "", "a/b", "a\0b", "a\nb"])
async def test_name_that_leaves_the_folder_is_refused(name: str, tmp_path: Path) -> None:
    """The twin is a plain name beside it."""
    write_file(tmp_path / "outside", OLD)
    write_file(tmp_path / "in" / "inside", NEW)
    folder = FileSecrets(tmp_path / "in")
    with pytest.raises(ConfigurationError, match="name"):
        await folder.read(name)
    assert await folder.read("inside") == Secret(NEW)


@pytest.mark.parametrize("environment", [{}, {f"{NAME}_FILE": ""}, {NAME: "plain"}], ids=str)
async def test_environment_that_names_no_file_is_refused(environment: Mapping[str, str], tmp_path: Path) -> None:
    """A value in clear is refused even beside a good file, and not repeated; the twin names the file alone."""
    write_file(tmp_path / NAME, OLD)
    file = {f"{NAME}_FILE": str(tmp_path / NAME)}
    with pytest.raises(ConfigurationError) as error:
        await EnvironmentSecrets((file if NAME in environment else {}) | environment).read(NAME)
    assert "plain" not in str(error.value)
    assert await EnvironmentSecrets(file).read(NAME) == Secret(OLD)


async def test_rotated_file_is_seen_without_a_restart(source: SecretSource, tmp_path: Path) -> None:
    """By the running watch, which tells its subscribers once."""
    watched = await WatchedSecret.open(source, NAME, interval=timedelta(milliseconds=5))
    told: list[Secret[bytes]] = []
    changed = asyncio.Event()
    watched.subscribe(lambda _value: 1 // 0)
    watched.subscribe(told.append)
    watched.subscribe(lambda _value: changed.set())
    assert watched.current == Secret(OLD)
    running = asyncio.create_task(watched.run())
    write_file(tmp_path / NAME, NEW)
    async with asyncio.timeout(5):
        await changed.wait()
    assert watched.current == Secret(NEW)
    assert not await watched.look()
    assert told == [Secret(NEW)]
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_kubernetes_swap_of_a_mounted_folder_is_seen(tmp_path: Path) -> None:
    """A kubelet renames one link, `..data`; the file is a link through it."""
    for generation, value in (("..1", OLD), ("..2", NEW)):
        write_file(tmp_path / generation / NAME, value)
    (tmp_path / "..data").symlink_to("..1")
    (tmp_path / NAME).symlink_to(f"..data/{NAME}")
    watched = await WatchedSecret.open(FileSecrets(tmp_path), NAME)
    assert watched.current == Secret(OLD)
    (tmp_path / "..new").symlink_to("..2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert await watched.look()
    assert watched.current == Secret(NEW)


async def test_subscriber_that_quotes_what_it_cannot_take_does_not_put_it_into_the_log(
    source: SecretSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A password where a number was: its name and the kind of error are said, and its neighbour is told."""
    watched = await WatchedSecret.open(source, NAME)
    told: list[Secret[bytes]] = []
    watched.subscribe(lambda value: int(value.reveal()))
    watched.subscribe(told.append)
    write_file(tmp_path / NAME, b"hunter2-quoted")
    assert await watched.look()
    assert told == [Secret(b"hunter2-quoted")]
    assert f"the new value of secret {NAME}: ValueError" in caplog.text
    assert "hunter2" not in caplog.text


async def test_unsubscribed_callback_is_not_called(source: SecretSource, tmp_path: Path) -> None:
    """Its neighbour is."""
    watched = await WatchedSecret.open(source, NAME)
    told: list[str] = []
    end = watched.subscribe(lambda _value: told.append("ended"))
    watched.subscribe(lambda _value: told.append("kept"))
    end()
    write_file(tmp_path / NAME, NEW)
    assert await watched.look()
    assert told == ["kept"]


async def test_secret_that_cannot_be_read_stays_as_it_was(
    source: SecretSource, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Gone, empty and back: the old value, one warning, then the new one."""
    watched = await WatchedSecret.open(source, NAME)
    (tmp_path / NAME).unlink()
    assert not await watched.look()
    write_file(tmp_path / NAME, b"")
    assert not await watched.look()
    assert watched.current == Secret(OLD)
    assert len(caplog.records) == 1
    write_file(tmp_path / NAME, NEW)
    assert await watched.look()
    assert watched.current == Secret(NEW)


async def test_secret_that_is_not_there_at_the_start_is_an_error(tmp_path: Path) -> None:
    """A process never starts without it; the twin has the file."""
    with pytest.raises(ConfigurationError):
        await WatchedSecret.open(FileSecrets(tmp_path), NAME)
    write_file(tmp_path / NAME, OLD)
    assert (await WatchedSecret.open(FileSecrets(tmp_path), NAME)).current == Secret(OLD)


class Hanging:
    """A source that answers once."""

    def __init__(self) -> None:
        self.reads = 0

    async def read(self, name: str) -> Secret[bytes]:
        self.reads += 1
        if self.reads > 1:
            raise Unavailable(f"{name} is out of reach")
        return Secret(OLD)


async def test_source_out_of_reach_leaves_the_value(caplog: pytest.LogCaptureFixture) -> None:
    """The name is in the log, the value is not."""
    watched = await WatchedSecret.open(Hanging(), NAME)
    assert not await watched.look()
    assert watched.current == Secret(OLD)
    assert NAME in caplog.text


async def test_planted_secret_shows_up_nowhere(
    source: SecretSource, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """Through a rotation and a failing subscriber; then what was said is searched."""
    caplog.set_level(logging.DEBUG)
    watched = await WatchedSecret.open(source, NAME)
    watched.subscribe(lambda value: value.reveal().index(b"?"))
    write_file(tmp_path / NAME, NEW)
    assert await watched.look()
    print(watched, repr(watched), f"{watched.current}", watched.current, source)
    logging.getLogger("casemate.test").error("%s %r", watched, watched.current)
    for serialize in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError):
            serialize(watched)
    printed = capfd.readouterr()
    everything = caplog.text + printed.out + printed.err
    assert NAME in everything
    for canary in (OLD, NEW):
        assert canary.decode() not in everything
