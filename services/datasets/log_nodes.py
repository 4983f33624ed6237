"""Reads the nodes of the log's tree, and holds them and the entries below them to a head that was verified.

If this fails: an entry that somebody edited is given out as one that was logged. Whoever
has a checkpoint and asks for a proof still finds out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.errors import DigestMismatch, StoredDataUnreadable
from casemate.signing import merkle, tiles
from services.datasets.log import LogHead

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import asyncpg

    from casemate.storage.pool import Connection


async def complete_tiles(connection: Connection, signed: LogHead, after: LogHead) -> dict[int, bytes]:
    """The roots of the complete subtrees of 256 entries that are not all before `after`, by index.

    Raises:
        StoredDataUnreadable: with those before `after`, they are not the signed head's.
    """
    first, end = after.size >> tiles.TILE_HEIGHT, signed.size >> tiles.TILE_HEIGHT
    rows = await connection.fetch(
        "SELECT index, hash FROM log_nodes WHERE level = $1 AND index >= $2 AND index < $3 ORDER BY index",
        *(tiles.TILE_HEIGHT, first, end),
    )
    # The largest subtrees of a frontier are those over whole tiles, whatever stands behind them.
    above = LogHead(first, after.frontier[: first.bit_count()])
    for row in rows:
        above = above.appended(row["hash"] or b"")
    if after.size > signed.size or above != LogHead(end, signed.frontier[: end.bit_count()]):
        raise StoredDataUnreadable("the log's nodes do not give its root")
    return {row["index"]: row["hash"] for row in rows}


async def require_part(connection: Connection, head: LogHead, first: int, rows: Sequence[asyncpg.Record]) -> None:
    """Returns if the rows are the entries from one on, a page of them, as they stand in the head's tree.

    Raises:
        StoredDataUnreadable: one is gone, or another than was logged.
    """
    end = min(first + tiles.TILE_WIDTH, head.size)
    leaves = [merkle.leaf_hash(row["entry"] or b"") for row in rows]
    if [row["index"] for row in rows] != list(range(first, end)) or [row["leaf_hash"] for row in rows] != leaves:
        raise StoredDataUnreadable(f"entries from {first} on are not those that were logged")
    _, root, nodes = await proven(connection, head, [(0, first)], end)
    seen = LogHead(first, tuple(nodes[node] for node in tiles.nodes_of([(0, first)])))
    for leaf in leaves:
        seen = seen.appended(leaf)
    if seen.root != root:
        raise StoredDataUnreadable(f"entries from {first} on do not give the log's root")


async def proven(
    connection: Connection, head: LogHead, ranges: Sequence[tiles.Range], size: int, *, also: tiles.Range = (0, 0)
) -> tuple[list[bytes], bytes, Mapping[tiles.Node, bytes]]:
    """The hashes of the ranges, the root of the tree of `size`, proven to be of the head's tree, and all nodes read.

    Raises:
        StoredDataUnreadable: a node is gone, or that tree is not the beginning of the head's.
    """
    onward = tiles.consistency_ranges(size, head.size)
    nodes = await read_nodes(connection, tiles.nodes_of([*ranges, *onward, (0, size), also]))
    root = tiles.range_hash(nodes, (0, size))
    try:
        merkle.verify_consistency(size, head.size, root, head.root, [tiles.range_hash(nodes, span) for span in onward])
    except DigestMismatch as error:
        raise StoredDataUnreadable("the log's nodes do not give its root") from error
    return [tiles.range_hash(nodes, span) for span in ranges], root, nodes


async def read_nodes(connection: Connection, wanted: Sequence[tiles.Node]) -> dict[tiles.Node, bytes]:
    """Those of the nodes that are there: two reads, whatever their number."""
    leaves = [index for level, index in wanted if level == 0]
    above = [node for node in wanted if node[0]]
    found: dict[tiles.Node, bytes] = {}
    if leaves:
        rows = await connection.fetch(
            "SELECT index, leaf_hash FROM log_entries WHERE index = ANY($1::bigint[])", leaves
        )
        found |= {(0, row["index"]): row["leaf_hash"] for row in rows if row["leaf_hash"] is not None}
    if above:
        rows = await connection.fetch(
            "SELECT level, index, hash FROM log_nodes "
            "JOIN unnest($1::smallint[], $2::bigint[]) AS wanted (level, index) USING (level, index)",
            *([level for level, _ in above], [index for _, index in above]),
        )
        found |= {(row["level"], row["index"]): row["hash"] for row in rows if row["hash"] is not None}
    return found
