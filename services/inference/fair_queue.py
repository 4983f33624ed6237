"""Who is next: tenants in turn, in a tenant by priority, in a priority callers in turn.

A caller that sends a thousand requests waits behind its own; another caller's
one request is taken in the next turn. Not locked: its owner is.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Waiting(Protocol):
    """What is queued."""

    @property
    def tenant(self) -> str:
        """Whose turn it takes."""
        ...

    @property
    def caller(self) -> str:
        """Whose turn it takes among those of its tenant and priority."""
        ...

    @property
    def priority(self) -> int:
        """0 is the most urgent."""
        ...


W = TypeVar("W", bound=Waiting)


class FairQueue(Generic[W]):
    """Requests that wait, by tenant, priority and caller."""

    def __init__(self) -> None:
        self._tenants: OrderedDict[str, _Levels[W]] = OrderedDict()
        self._length = 0

    def __len__(self) -> int:
        return self._length

    def items(self) -> Iterator[W]:
        """All of them, in no order; the queue must not change meanwhile."""
        for levels in self._tenants.values():
            yield from levels.items()

    def add(self, item: W) -> None:
        """Queues an item behind those of its caller."""
        levels = self._tenants.get(item.tenant)
        if levels is None:
            levels = self._tenants[item.tenant] = _Levels()
        levels.add(item)
        self._length += 1

    def put_back(self, item: W) -> None:
        """Queues an item that was taken, before all others of its caller and priority."""
        self._tenants.setdefault(item.tenant, _Levels()).put_back(item)
        self._length += 1

    def take(self, fits: Callable[[W], bool], *, tenant: str | None = None) -> W | None:
        """The next item that fits, or None. Only first items of callers are looked at, so each caller's order stays.

        Args:
            fits: whether an item may be taken now.
            tenant: only of this tenant.
        """
        names = (tenant,) if tenant is not None else tuple(self._tenants)
        for name in names:
            levels = self._tenants.get(name)
            found = levels.take(fits) if levels is not None else None
            if levels is not None and found is not None:
                self._took(name, levels)
                return found
        return None

    def remove(self, item: W) -> bool:
        """Takes an item out wherever it is; whether it was there."""
        levels = self._tenants.get(item.tenant)
        if levels is None or not levels.remove(item):
            return False
        self._length -= 1
        if not levels:
            del self._tenants[item.tenant]
        return True

    def displaced_by(self, newcomer: W) -> W | None:
        """Takes out the last item of whoever waits with most, if that is more than the newcomer's caller would.

        What a full queue owes to a caller that has little in it. None when the
        newcomer is the one with most: then it is the one to refuse.
        """
        heaviest: tuple[int, W] | None = None
        for levels in self._tenants.values():
            for count, last in levels.loads():
                if heaviest is None or count > heaviest[0]:
                    heaviest = (count, last)
        levels_of = self._tenants.get(newcomer.tenant)
        own = levels_of.load(newcomer) if levels_of is not None else 0
        if heaviest is None or heaviest[0] <= own + 1:
            return None
        self.remove(heaviest[1])
        return heaviest[1]

    def _took(self, name: str, levels: _Levels[W]) -> None:
        self._length -= 1
        if levels:
            self._tenants.move_to_end(name)
        else:
            del self._tenants[name]


class _Levels(Generic[W]):
    """One tenant's items: by priority, callers in turn."""

    def __init__(self) -> None:
        self._levels: dict[int, OrderedDict[str, deque[W]]] = {}

    def __bool__(self) -> bool:
        return bool(self._levels)

    def add(self, item: W) -> None:
        self._levels.setdefault(item.priority, OrderedDict()).setdefault(item.caller, deque()).append(item)

    def put_back(self, item: W) -> None:
        self._levels.setdefault(item.priority, OrderedDict()).setdefault(item.caller, deque()).appendleft(item)

    def take(self, fits: Callable[[W], bool]) -> W | None:
        for priority in sorted(self._levels):
            callers = self._levels[priority]
            for caller, items in callers.items():
                if fits(items[0]):
                    item = items.popleft()
                    callers.move_to_end(caller)
                    self._tidy(priority, caller)
                    return item
        return None

    def remove(self, item: W) -> bool:
        callers = self._levels.get(item.priority)
        items = callers.get(item.caller) if callers is not None else None
        if items is None or item not in items:
            return False
        items.remove(item)
        self._tidy(item.priority, item.caller)
        return True

    def items(self) -> Iterator[W]:
        for callers in self._levels.values():
            for items in callers.values():
                yield from items

    def loads(self) -> list[tuple[int, W]]:
        """How many wait at each caller, and the last of them."""
        return [(len(items), items[-1]) for callers in self._levels.values() for items in callers.values()]

    def load(self, like: W) -> int:
        callers = self._levels.get(like.priority)
        return len(callers.get(like.caller, ())) if callers is not None else 0

    def _tidy(self, priority: int, caller: str) -> None:
        callers = self._levels[priority]
        if not callers[caller]:
            del callers[caller]
        if not callers:
            del self._levels[priority]
