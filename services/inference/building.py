"""Makes the instance that a version's files ask for: a model in this process, or one on a back end."""

from __future__ import annotations

from typing import TYPE_CHECKING

from services.inference.instance import OnnxInstance
from services.inference.names import MODEL_FILE, UPSTREAM_FILE
from services.inference.upstream import build_upstream

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from services.inference.backends import Backends
    from services.inference.instance import Instance

    Build = Callable[[str, Mapping[str, bytes]], Instance]
    """From a tenant and its version's files to an instance."""


class Building:
    """Builds instances.

    Args:
        backends: where models that are not in this process may run.
        unsafe_division: takes models whose divisions may end the process.
    """

    def __init__(self, backends: Backends, *, unsafe_division: bool = False) -> None:
        self._backends = backends
        self._unsafe_division = unsafe_division

    def __call__(self, tenant: str, files: Mapping[str, bytes]) -> Instance:
        """The instance of a version of `tenant`; `files` hold exactly one of the two that say what runs.

        Raises:
            InvalidRequest: reason MODEL_INVALID: the model cannot be served.
            Unavailable: its back end does not answer.
        """
        if UPSTREAM_FILE in files:
            return build_upstream(files[UPSTREAM_FILE], tenant=tenant, backends=self._backends)
        return OnnxInstance(files[MODEL_FILE], unsafe_division=self._unsafe_division)
