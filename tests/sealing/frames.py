"""Looks for a key where a reporter of errors looks that prints locals."""

from __future__ import annotations

import traceback
from pathlib import Path

from tests.support.canary import spellings

TESTS = Path(__file__).parents[1]


def shown_with_locals(error: BaseException) -> str:
    """The traceback as with `capture_locals`, of all errors behind it too, but for frames of the tests themselves."""
    seen = traceback.TracebackException.from_exception(error, capture_locals=True)
    found: list[str] = []
    behind: list[traceback.TracebackException | None] = [seen]
    while behind:
        one = behind.pop()
        if one is not None:
            found += [repr(frame.locals) for frame in one.stack if not Path(frame.filename).is_relative_to(TESTS)]
            behind += [one.__cause__, one.__context__]
    return "\n".join(found)


def require_no_local_holds(error: BaseException, key: bytes) -> None:
    """No frame on the way of the error, or of one behind it, has the key in a local."""
    shown = shown_with_locals(error)
    assert shown, "there are frames of ours on the way"
    # The locals' values are reprs, and are shown by their reprs here: backslashes come doubled.
    assert not [form for form in spellings(key) if form in shown or repr(form)[1:-1] in shown]
