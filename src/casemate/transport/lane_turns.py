"""What waits for the thread that serves all calls: a line for each tenant, and the lines are served in turn.

grpcio's completion queue is one line for everybody: whoever has sixty calls under way is
served sixty times before the next. So the lane takes out of it whatever has come,
which is cheap, and does the work that this asks for in turn.

If this fails: one tenant's flood delays the others' calls. No right depends on it.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeAlias

    Work: TypeAlias = Callable[[], object]
    """What is to be done in a turn. `False`: the server is at its end, and nothing else is to be done."""

STRANGERS: Final = ""
"""The line of all connections of which no call was proven yet."""
_REMEMBERED: Final = 4_096
"""Connections; a server has at most 1,024 of them at once."""


class Turns:
    """Lines of work. For the serving thread alone."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[str, deque[Work]] = {}

    def __bool__(self) -> bool:
        """Whether anything waits."""
        return bool(self._lines)

    def put(self, line: str, work: Work) -> None:
        """Puts work at the end of a line."""
        waiting = self._lines.get(line)
        if waiting is None:
            self._lines[line] = deque((work,))
        else:
            waiting.append(work)

    def next(self) -> Work:
        """The oldest of the line whose turn it is; that line is then the last.

        Raises:
            StopIteration: nothing waits.
        """
        line = next(iter(self._lines))
        waiting = self._lines.pop(line)
        work = waiting.popleft()
        if waiting:
            self._lines[line] = waiting
        return work


class LinesOfConnections:
    """In whose line a connection's next call waits: in that of whom its last proven call was.

    Who calls is not known before a call is judged, and that is most of the work. A connection
    has one certificate, so its calls are one tenant's; an address that another connection has by now
    puts that one's first call into a wrong line. Rights are judged on every call.
    """

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[object, str] = {}

    def of(self, address: object) -> str:
        """The line for what comes from there."""
        return self._lines.get(address, STRANGERS)

    def learn(self, address: object, line: str) -> None:
        """Remembers whose calls come from there."""
        if len(self._lines) >= _REMEMBERED:
            self._lines.clear()  # the next call of each is in the line of strangers, once
        self._lines[address] = line
