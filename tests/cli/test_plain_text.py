"""What a service says reaches the terminal as text, whatever bytes it chose."""

from __future__ import annotations

import pytest

from casemate.cli import main
from casemate.cli.listing import show
from casemate.cli.log import _said
from casemate.cli.plain_text import plain
from casemate.errors import ConfigurationError, FieldViolation, NotFound

TRICK = "x\x1b[2J\r\n\x07\u202egood"


@pytest.mark.parametrize("text", ["", "people  1", "Größe 3 µs 漢字", "C:\\temp"])
def test_text_stays_as_it_is(text):
    assert plain(text) == text


def test_what_moves_a_cursor_or_turns_the_line_is_spelled_out():
    assert plain(TRICK) == r"x\x1b[2J\r\n\x07\u202egood"


@pytest.mark.parametrize("error", [NotFound(TRICK), NotFound("no", violations=(FieldViolation("name", TRICK),))])
def test_an_error_of_a_service_is_one_plain_line_for_each_thing_that_it_says(monkeypatch, capsys, error):
    monkeypatch.setattr(main, "command", lambda **_: (_ for _ in ()).throw(error))
    with pytest.raises(SystemExit) as ended:
        main.main()
    lines = capsys.readouterr().err.splitlines()
    assert ended.value.code == 1
    assert all(line.startswith("casemate: ") and line.isprintable() for line in lines)
    assert len(lines) == 1 + len(error.violations)


def test_an_error_of_this_machine_may_have_lines(monkeypatch, capsys):
    monkeypatch.setattr(main, "command", lambda **_: (_ for _ in ()).throw(ConfigurationError("one\ntwo")))
    with pytest.raises(SystemExit):
        main.main()
    assert capsys.readouterr().err == "casemate: one\ntwo\n"


def test_names_in_a_list_are_plain_and_each_record_is_one_line(capsys):
    show([{"dataset": TRICK, "labels": [TRICK, "b"]}, {"dataset": "people", "labels": []}], as_json=False)
    first, second = capsys.readouterr().out.splitlines()
    assert (first.isprintable(), second) == (True, "people  -")


@pytest.mark.parametrize("entry", [b"", b"no JSON", b"[1]", b"7", b"\xff", b"[" * 100_000])
def test_an_entry_that_is_no_object_is_shown_as_its_bytes(entry):
    assert _said(entry) == {"entry": entry.decode("ascii", "backslashreplace")}


def test_an_entry_that_is_one_is_shown_as_what_it_says():
    assert _said(b'{"kind":"export"}') == {"kind": "export"}
