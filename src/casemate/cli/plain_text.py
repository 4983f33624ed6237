"""What services say, as a terminal may be given it.

If this fails: whoever runs a service moves the cursor of its caller's terminal, and writes lines there that no
command of ours said.
"""

from __future__ import annotations


def plain(text: str) -> str:
    """The text on one line, its control characters, and whatever else no terminal shows as itself, spelled out."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
