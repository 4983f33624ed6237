"""Two of each service: rolled one after the other, killed one after the other, while callers go on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from casemate.cli.state import SERVICES
from casemate.client.session import Endpoints, Session
from casemate.transport.options import RECONNECTED_WITHIN
from tests.compose.cluster import ComposeCluster
from tests.compose.load import Load, calls_counted
from tests.compose.story import ToldStory
from tests.compose.waiting import until

COUNTED = {"auth": "IssueToken", "datasets": "GetVersion", "inference": "ModelInfer"}


class Pairs:
    """The profile `scale`, and callers who know both of each."""

    def __init__(self, cluster: ComposeCluster, told: ToldStory) -> None:
        self._cluster = cluster
        self._told = told

    def up(self) -> str:
        """Three more containers, healthy; each replica gets its share of calls."""
        self._cluster.up(*self.names(), profile="scale")
        with self.load() as load:
            self._each_takes_its_share(*self.names())
        return self.held(load)

    def roll(self) -> str:
        """Each of the six is stopped as a roll does and started again, the next once it is found again."""
        with self.load() as load:
            for name in self.names():
                self._cluster.restart(name)
                self._found_again(name)
        return self.held(load)

    def kill(self) -> str:
        """Each of the six is killed by the kernel's signal; the engine starts it again."""
        with self.load() as load:
            for name in self.names():
                self._cluster.crash(name)
                self._found_again(name)
        return self.held(load)

    @staticmethod
    def names() -> list[str]:
        """The six containers."""
        return [name for service in SERVICES for name in (service, f"{service}-2")]

    def held(self, load: Load) -> str:
        """Returns what was answered, if nothing failed."""
        assert not load.failed, (dict(load.failed), load.said())
        return f"{load.said()}; 0 failed"

    @contextlib.contextmanager
    def load(self) -> Iterator[Load]:
        """Callers of every kind, over both of each, for the length of the block."""
        sessions = {who: self._session(who) for who in ("caller", "trainer")}
        with Load(**sessions, fresh=self._session("caller")).running() as load:
            yield load

    def _session(self, who: str) -> Session:
        known = self._told.story.session(who)
        both = {
            service: "ipv4:" + ",".join(f"127.0.0.1:{self._cluster.port(name)}" for name in (service, f"{service}-2"))
            for service in SERVICES
        }
        return Session(source=known.source, endpoints=Endpoints(**both), trust_domain=self._cluster.trust_domain)

    def _each_takes_its_share(self, *names: str) -> None:
        before = {name: self._counted(name) for name in names}
        for name in names:
            until(lambda name=name: self._counted(name) > before[name] + 3, f"{name} takes no calls")

    def _found_again(self, name: str) -> None:
        """Healthy is not found: every client finds it again within that time, and the next one goes after it.

        A leaf that was renewed meanwhile moves callers to new connections, so both have to be in use then.
        """
        time.sleep(RECONNECTED_WITHIN.total_seconds())
        service = name.removesuffix("-2")
        self._each_takes_its_share(service, f"{service}-2")

    def _counted(self, name: str) -> float:
        service = name.removesuffix("-2")
        leaf = self._cluster.state.client_leaf("casemate", "operator")
        return calls_counted(self._cluster.port(name, "metrics"), service, leaf, COUNTED[service])
