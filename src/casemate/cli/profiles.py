"""The profiles of one user, kept as files: a deployment to call, and as whom.

A profile names the folder of a key and its certificate and holds no copy of them, so
a leaf that is renewed there is used at once, and the list of profiles is no secret.

If this fails: a command calls another deployment than its user meant. That one still
has to prove the name that the profile's trust domain gives it.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from casemate.cli.state import PORTS
from casemate.client.session import Endpoints
from casemate.errors import ConfigurationError
from casemate.sealing.private_files import write_file

_NAME: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_FIELDS: Final = frozenset({"identity", "trust_domain", *PORTS})


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """One deployment, and who calls it."""

    identity: Path
    trust_domain: str
    endpoints: Endpoints

    def described(self) -> dict[str, str]:
        """Its fields as text."""
        places = {service: self.endpoints.of(service) for service in PORTS}
        return {"identity": str(self.identity), "trust_domain": self.trust_domain, **places}


class Profiles:
    """The profiles of one user: a file each, written whole.

    Args:
        folder: where they are; made when the first is kept.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def names(self) -> list[str]:
        """The names, sorted."""
        return sorted(file.stem for file in self._folder.glob("*.json") if _NAME.fullmatch(file.stem))

    def load(self, name: str) -> Profile:
        """The profile of that name.

        Raises:
            ConfigurationError: there is none, or its file is not one.
        """
        try:
            said = json.loads(self._file(name).read_text())
        except FileNotFoundError:
            known = ", ".join(self.names()) or "none"
            raise ConfigurationError(f"there is no profile {name!r}; there are: {known}") from None
        except (OSError, ValueError) as error:
            raise ConfigurationError(f"{self._file(name)} is not a profile") from error
        if not isinstance(said, dict) or said.keys() != _FIELDS or {type(one) for one in said.values()} != {str}:
            raise ConfigurationError(f"{self._file(name)} is not a profile")
        places = Endpoints(**{service: said[service] for service in PORTS})
        return Profile(identity=Path(said["identity"]), trust_domain=said["trust_domain"], endpoints=places)

    def keep(self, name: str, profile: Profile, *, replace: bool = False) -> None:
        """Keeps a profile.

        Raises:
            ConfigurationError: the name is no name, or taken.
        """
        file = self._file(name)
        if file.exists() and not replace:
            raise ConfigurationError(f"there is a profile {name!r} already: --replace puts this in its place")
        write_file(file, json.dumps(profile.described(), indent=2).encode() + b"\n", replace=replace)

    def remove(self, name: str) -> None:
        """Removes a profile; key and certificate stay where they are.

        Raises:
            ConfigurationError: there is none.
        """
        self.load(name)
        self._file(name).unlink()

    def _file(self, name: str) -> Path:
        if _NAME.fullmatch(name) is None:
            raise ConfigurationError(f"{name!r} is no name of a profile: lower-case letters, digits and hyphens")
        return self._folder / f"{name}.json"
