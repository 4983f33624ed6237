"""A table for the terminal, its cells wrapped."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence


def render(header: Sequence[str], rows: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    """The rows under their header, each cell wrapped to its column's width."""
    rule = "  ".join("-" * width for width in widths)
    lines = [_row(header, widths), rule]
    for row in rows:
        lines += [_row(row, widths), rule]
    return "\n".join(lines)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    wrapped = [textwrap.wrap(cell, width) or [""] for cell, width in zip(cells, widths, strict=True)]
    height = max(map(len, wrapped))
    return "\n".join(
        "  ".join(
            (cell[line] if line < len(cell) else "").ljust(width) for cell, width in zip(wrapped, widths, strict=True)
        ).rstrip()
        for line in range(height)
    )
