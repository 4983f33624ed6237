"""Lists that come in pages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol, TypeVar


class _Paged(Protocol):
    next_page_token: str


Page = TypeVar("Page", bound=_Paged)


def every_page(ask: Callable[[str], Page]) -> Iterator[Page]:
    """Every page, each asked for by its token when the one before was read."""
    token = ""
    while True:
        page = ask(token)
        yield page
        token = page.next_page_token
        if not token:
            return
