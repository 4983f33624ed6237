"""Keeps what is loaded equal to what the feed names.

One thread wakes after each change of trust, and now and then to try again what
could not be loaded. For every release it loads what the operator's policy asks
for and what has a label, and takes out what is no longer released or trusted,
or was trained on a dataset that is quarantined since. A request without a
version gets the one labelled `stable`, or else the newest: only an operator's
signed label leads back to an older number, so when the newest was withdrawn
such a request gets none.

A load that does not come to an end holds up its own version alone, see `loads`.
"""

from __future__ import annotations

import logging
import threading
from datetime import timedelta
from typing import TYPE_CHECKING

from casemate.errors import CasemateError, FailedPrecondition, NotFound, Reason
from services.inference.loads import Loads
from services.inference.names import is_name
from services.inference.repository import Slot

if TYPE_CHECKING:
    from casemate.gate.core.records import Release, ReleasedVersion
    from services.inference.catalogue import Catalogue, ModelKey
    from services.inference.loader import LoadedModel, Loader
    from services.inference.training_data import TrainingData
    from services.inference.trust_view import TrustView
    from services.inference.version_policy import VersionPolicies

STABLE = "stable"
"""The label of what a request without a version gets."""

ASKED_WITHIN = timedelta(minutes=5)
"""How long whoever asks for a load by rpc waits for it; his own deadline ends his wait, and not the server's."""

_LOGGER = logging.getLogger(__name__)


class Watcher:
    """Loads and unloads by the feed's word.

    Args:
        trust: what may be served.
        loader: loads a version.
        training: what is known of the data that models were trained on.
        catalogue: what is loaded.
        policies: which versions stay loaded; labelled ones come on top.
        retry: how long until a version that could not be loaded is tried again.
        patience: how long one version's load may hold up the others.
    """

    def __init__(
        self,
        *,
        trust: TrustView,
        loader: Loader,
        training: TrainingData,
        catalogue: Catalogue,
        policies: VersionPolicies,
        retry: timedelta,
        patience: timedelta,
    ) -> None:
        self._trust = trust
        self._loader = loader
        self._training = training
        self._catalogue = catalogue
        self._policies = policies
        self._retry = retry.total_seconds()
        self._wake = threading.Event()
        self._closed = threading.Event()
        self._round = threading.Lock()
        self._asked: set[Slot] = set()
        self._patience = patience
        self._loads = Loads(self._load, patience=patience, late=self._wake.set)
        self._complete = False
        self._thread = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._settled = threading.Event()
        self._unsubscribe = trust.subscribe(self._changed)

    @property
    def complete(self) -> bool:
        """Whether the last round found everything loaded that the feed names."""
        return self._complete

    @property
    def settled(self) -> bool:
        """Whether one round after the first news is over."""
        return self._settled.is_set()

    @property
    def overdue(self) -> frozenset[Slot]:
        """The versions whose loads take longer than one may hold up the others."""
        return self._loads.overdue

    def wait_settled(self, timeout: timedelta) -> bool:
        """`settled`, waited for at most `timeout`.

        What refused to load then does not hold up what did.
        """
        return self._settled.wait(timeout.total_seconds())

    def start(self) -> None:
        """Begins to watch."""
        self._wake.set()
        self._thread.start()

    def close(self) -> None:
        """Ends the thread; a load under way is not waited for, and what it brings is not served."""
        self._unsubscribe()
        self._closed.set()
        self._loads.close()
        self._wake.set()
        self._thread.join()

    def load(self, slot: Slot) -> LoadedModel:
        """Loads a version now and serves it; on any refusal what runs stays.

        Raises:
            NotFound: it is not released.
            FailedPrecondition: reason MODEL_REFUSED.
            Unavailable: the key-encryption key does not answer, or the load does not end.
        """
        return self._loads.run(slot, on_purpose=True, within=ASKED_WITHIN)

    def load_and_keep(self, slot: Slot) -> None:
        """As `load`; the version then stays loaded while it is trusted, however old it grows."""
        self.load(slot)
        with self._round:
            self._asked.add(slot)

    def meant(self, tenant: str, model: str) -> int:
        """Number of the version that a request without one means: labelled `stable`, or the newest released.

        Raises:
            NotFound: there is none.
        """
        number = self._meant(tenant, model)
        if number is None:
            raise NotFound("no such model")
        return number

    def unload(self, key: ModelKey) -> None:
        """Takes a model out until it is loaded on purpose."""
        with self._round:
            self._asked = {slot for slot in self._asked if (slot.tenant, slot.model) != key}
            self._catalogue.unload(key)

    def reconcile(self) -> None:
        """One round: afterwards what is loaded is what is named, but for what refused to load."""
        complete = heard = self._trust.known
        self._drop()
        self._drop_doubtful()
        for release in self._trust.releases():
            key = (release.tenant, release.model)
            if not self._catalogue.entry(key).unloaded:
                complete &= self._bring_in(key, release)
        self._complete = complete
        if heard:
            self._settled.set()

    def _changed(self) -> None:
        self._complete = False
        self._drop()  # here and not in the thread, which may be busy with a large model
        self._wake.set()

    def _load(self, slot: Slot, on_purpose: bool) -> LoadedModel:  # noqa: FBT001  # as `Loads` calls it
        loaded = self._loader.load(slot)
        with self._round:
            if self._closed.is_set():
                return loaded
            if self._catalogue.entry((slot.tenant, slot.model)).unloaded and not on_purpose:
                return loaded  # an operator took the model out while the files were read
            # Trust may have moved while the files were read.
            released = self._trust.version(slot.tenant, slot.model, slot.number)
            if released is None or released.manifest_sha256 != loaded.manifest_sha256:
                raise FailedPrecondition("withdrawn while it was loaded", reason=Reason.MODEL_REFUSED)
            self._trust.require_trusted(slot.tenant, released)
            self._catalogue.put(loaded, current=self._meant(slot.tenant, slot.model) == slot.number)
        return loaded

    def _watch(self) -> None:
        while not self._closed.is_set():
            silent = self._training.ask_again_in
            self._wake.wait(self._retry if silent is None else min(self._retry, silent))
            self._wake.clear()
            if self._closed.is_set():
                return
            try:
                self.reconcile()
            except Exception:  # the thread must outlive any one round
                _LOGGER.exception("a round of loading failed")

    def _drop(self) -> None:
        """Takes out what is no longer released as it was loaded, or no longer trusted."""
        with self._round:
            for key in self._catalogue.models():
                trusted = self._trusted(*key)
                for number, loaded in self._catalogue.entry(key).versions.items():
                    version = trusted.get(number)
                    if version is None or version.manifest_sha256 != loaded.manifest_sha256:
                        _LOGGER.warning("unloaded, withdrawn: %s", loaded.slot)
                        self._catalogue.remove(key, number)
                        loaded.batcher.withdraw()

    def _drop_doubtful(self) -> None:
        """Takes out what was trained on a dataset that is quarantined by now."""
        roots: dict[str, set[bytes]] = {}
        for loaded in self._loaded():
            roots.setdefault(loaded.slot.tenant, set()).update(loaded.dataset_roots)
        doubtful = {tenant: self._training.quarantined(tenant, asked) for tenant, asked in roots.items()}
        with self._round:
            for loaded in self._loaded():
                if not doubtful.get(loaded.slot.tenant, frozenset()).isdisjoint(loaded.dataset_roots):
                    _LOGGER.warning("unloaded, trained on a dataset that is quarantined: %s", loaded.slot)
                    self._catalogue.remove((loaded.slot.tenant, loaded.slot.model), loaded.slot.number)
                    loaded.batcher.withdraw()

    def _loaded(self) -> tuple[LoadedModel, ...]:
        return tuple(
            loaded for key in self._catalogue.models() for loaded in self._catalogue.entry(key).versions.values()
        )

    def _bring_in(self, key: ModelKey, release: Release) -> bool:
        complete = True
        wanted = self._wanted(release)
        for number in wanted:
            if number not in self._catalogue.entry(key).versions:
                complete &= self._try(Slot(*key, number))
        with self._round:
            meant = self._meant(*key)
            # What is meant and not wanted here is not replaced by something else that is.
            self._catalogue.point(key, meant if meant in wanted else None)
            entry = self._catalogue.entry(key)
            for number, loaded in entry.versions.items():
                # What runs stays until a newer version does.
                if number not in wanted and number != entry.current and loaded.slot not in self._asked:
                    _LOGGER.info("unloaded, superseded: %s", loaded.slot)
                    self._catalogue.remove(key, number)
        return complete

    def _try(self, slot: Slot) -> bool:
        try:
            self._loads.run(slot, on_purpose=False, within=self._patience)
        except CasemateError as error:
            _LOGGER.error("not loaded: %s: %s", slot, error)  # noqa: TRY400  # its text says all
        except Exception:
            _LOGGER.exception("not loaded: %s", slot)  # one broken disk must not keep the other models out
        else:
            _LOGGER.info("loaded: %s", slot)
            return True
        return False

    def _trusted(self, tenant: str, model: str) -> dict[int, ReleasedVersion]:
        release = self._trust.release(tenant, model)
        trusted: dict[int, ReleasedVersion] = {}
        for version in release.versions if release is not None else ():
            try:
                self._trust.require_trusted(tenant, version)
            except FailedPrecondition:
                continue
            trusted[version.number] = version
        return trusted

    def _wanted(self, release: Release) -> dict[int, ReleasedVersion]:
        """Newest first, so that the one most asked for loads first."""
        if not (is_name(release.tenant) and is_name(release.model)):
            return {}
        trusted = self._trusted(release.tenant, release.model)
        chosen = self._policies.of(release.tenant, release.model).choose(trusted)
        labelled = [number for number in release.labels.values() if number in trusted and number not in chosen]
        return {number: trusted[number] for number in (*chosen, *labelled)}

    def _meant(self, tenant: str, model: str) -> int | None:
        # Though it be withdrawn: then nothing is served in its place.
        release = self._trust.release(tenant, model)
        if release is None:
            return None
        if STABLE in release.labels:
            return release.labels[STABLE]
        return max((version.number for version in release.versions), default=None)
