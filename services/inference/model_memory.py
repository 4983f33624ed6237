"""One bound on the memory of all models of this process: their weights, and what their runs take.

A caller chooses sizes, and a model may ask for as much as its publisher likes:
without a bound either ends the process, and with it every other tenant's
models. ONNX Runtime's own arena is shared by all sessions and given a size;
what goes beyond it fails at the node that asked for it. The arena keeps what it
has had, so a run that found no room is made again once the rest was given back.

Answers are copied out of the arena, one request at a time; those copies, and
the requests themselves, are not within the bound.

If this fails: the machine's memory is the bound, and the system chooses whom it
kills. A worker that grows beyond `CASEMATE_INFERENCE_WORKER_MEMORY_MIB` is replaced.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import onnxruntime  # as in instance.py

_CGROUP = Path("/sys/fs/cgroup/memory.max")
_CPU = "Cpu"


def bound_model_memory(limit: int) -> None:
    """Gives all sessions of this process `limit` bytes together. Once in a process, before the first session."""
    onnxruntime.create_and_register_allocator(
        onnxruntime.OrtMemoryInfo(
            _CPU, onnxruntime.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, onnxruntime.OrtMemType.DEFAULT
        ),
        onnxruntime.OrtArenaCfg(
            {
                "max_mem": limit,
                "arena_extend_strategy": 1,  # as much as was asked for, not the next power of two
                "initial_chunk_size_bytes": -1,
                "max_dead_bytes_per_chunk": -1,
            }
        ),
    )


def share_arena(options: Any) -> None:  # noqa: ANN401  # onnxruntime ships no types
    """Has a session take its memory from the one arena; where none was bounded, it makes its own."""
    options.add_session_config_entry("session.use_env_allocators", "1")


def giving_back() -> Any:  # noqa: ANN401  # onnxruntime ships no types
    """Options of a run after which the arena keeps nothing that is not in use, whether it succeeded or not."""
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("memory.enable_memory_arena_shrinkage", "cpu:0")
    return options


def half_of_memory(limit_file: Path = _CGROUP) -> int:
    """Half of the memory, in bytes, that this machine has, or this container where it is given less."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    with contextlib.suppress(OSError, ValueError):  # no cgroup of version 2, or one without a limit
        memory = min(memory, int(limit_file.read_text()))
    return memory // 2
