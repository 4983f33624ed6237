"""Other teams' services that auth is told of: said once to `casemate up`, and remembered with the state.

Clients of theirs, and grants on what is theirs, are in the database. A start that did not know
the services would refuse all of those clients their tokens.

If this fails: auth issues tokens for a service that was forgotten, or none for one that was said.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.errors import ConfigurationError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


class RememberedAudiences:
    """The audiences of one state: those of before, with what is said now in their place or added.

    Args:
        file: where they are kept, `NAME=SCOPE,…` a line.
        said: likewise, several with semicolons between; without a scope the name is forgotten.

    Raises:
        ConfigurationError: something said is not of this form.
    """

    def __init__(self, file: Path, said: Iterable[str] = ()) -> None:
        self._file = file
        before = file.read_text().splitlines() if file.exists() else []
        self._before = dict(map(_parse, before))
        now = dict(_parse(one) for several in said for one in several.rstrip(" ;").split(";"))
        self.scopes = {name: scopes for name, scopes in {**self._before, **now}.items() if scopes}
        """What each may be asked for, as it was said."""

    @property
    def setting(self) -> str:
        """As auth's setting has them."""
        return ";".join(f"{name}={scopes}" for name, scopes in self.scopes.items())

    def keep(self) -> None:
        """Remembers them. Call it once auth has taken them: what it refuses would be refused at each start."""
        if self.scopes == self._before:
            return
        new = self._file.with_name(self._file.name + ".new")
        new.write_text("".join(f"{name}={scopes}\n" for name, scopes in self.scopes.items()))
        new.replace(self._file)


def _parse(one: str) -> tuple[str, str]:
    name, sign, scopes = one.strip().partition("=")
    if not name or not sign:
        raise ConfigurationError(f"--audience is NAME=SCOPE,… and {one.strip()!r} is not; NAME= forgets one")
    return name.strip(), scopes.strip()
