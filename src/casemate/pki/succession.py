"""Another root in the place of the present one, in three steps, so that no call fails.

`prepare` makes the next root, and everybody is given both to trust. `switch` has it
issue from then on; the old one stays trusted. `finish` drops the old one. Between the
steps, whoever holds a leaf has to have been given the roots of the step before:
services of a state directory take them up within a second.

A crash leaves a step done or to be done again.

If this fails: peers that were not given the new root refuse those who were, until
they are; or an old root that was stolen goes on being trusted.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from casemate.clock import Clock
from casemate.errors import ConfigurationError
from casemate.pki.authority import NEXT, RETIRED_FILE, SEALED_KEY_FILE, CertificateAuthority
from casemate.pki.leaves import CERTIFICATE_FILE, ROOTS_FILE
from casemate.sealing.local import LocalKeyRing
from casemate.sealing.private_files import write_file


class Step(StrEnum):
    """How far a change of roots is."""

    SETTLED = "settled"
    PREPARED = "prepared"
    SWITCHED = "switched"


@dataclass(frozen=True, slots=True, kw_only=True)
class Succession:
    """The change of the root in one authority's folder.

    Attributes:
        directory: the folder of the authority.
        trust_domain: whose it is.
        key_encryption: seals the root's key.
        clock: time.
    """

    directory: Path
    trust_domain: str
    key_encryption: LocalKeyRing
    clock: Clock

    @property
    def step(self) -> Step:
        """How far it is. A switch that was interrupted is still to be done."""
        if (self.directory / NEXT).exists():
            return Step.PREPARED
        return Step.SWITCHED if (self.directory / RETIRED_FILE).exists() else Step.SETTLED

    def authority(self) -> CertificateAuthority:
        """The authority of this moment.

        Raises:
            ConfigurationError: as `CertificateAuthority.load`; also in the middle of a `switch`.
        """
        return CertificateAuthority.load(
            self.directory, trust_domain=self.trust_domain, key_encryption=self.key_encryption, clock=self.clock
        )

    def prepare(self) -> None:
        """Makes the next root, which signs nothing yet.

        Raises:
            ConfigurationError: a change is under way.
        """
        self._require(Step.SETTLED)
        scratch = self.directory / f".{NEXT}"
        shutil.rmtree(scratch, ignore_errors=True)
        CertificateAuthority.create(
            scratch, trust_domain=self.trust_domain, key_encryption=self.key_encryption, clock=self.clock
        )
        scratch.rename(self.directory / NEXT)

    def switch(self) -> None:
        """Has the next root issue from now on. The key of the old one is gone.

        Raises:
            ConfigurationError: none is prepared.
        """
        self._require(Step.PREPARED)
        coming, present = self.directory / NEXT, self.directory / CERTIFICATE_FILE
        if present.read_bytes() != (coming / CERTIFICATE_FILE).read_bytes():
            write_file(self.directory / RETIRED_FILE, present.read_bytes(), mode=0o644)
        write_file(self.directory / SEALED_KEY_FILE, (coming / SEALED_KEY_FILE).read_bytes())
        write_file(present, (coming / CERTIFICATE_FILE).read_bytes(), mode=0o644)
        shutil.rmtree(coming)

    def finish(self) -> None:
        """Has the old root trusted no more.

        Raises:
            ConfigurationError: nothing was switched.
        """
        self._require(Step.SWITCHED)
        (self.directory / RETIRED_FILE).unlink()

    def _require(self, step: Step) -> None:
        if self.step is not step:
            raise ConfigurationError(f"the change of roots in {self.directory} is {self.step.value}, not {step.value}")


def give_roots(leaf: Path, roots_pem: bytes) -> None:
    """Has the holder of a leaf trust these roots, in one step; its certificate stays."""
    write_file(leaf / ROOTS_FILE, roots_pem, mode=0o644)
