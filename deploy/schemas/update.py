"""Fetches the schemas of operators' kinds and of compose files, from the commits that sources.json names.

`python deploy/schemas/update.py` writes them again, without their descriptions; git shows what changed. To take a newer
one, put its commit into sources.json. Every schema is its project's own, under the Apache License 2.0.
"""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).parent


def main() -> None:
    """Writes one file for each kind and version."""
    for source in json.loads((HERE / "sources.json").read_text()):
        with tempfile.TemporaryDirectory() as folder:
            git(folder, "init", "--quiet")
            address = f"https://github.com/{source['repository']}"
            git(folder, "fetch", "--quiet", "--depth=1", address, source["commit"])
            for path in source["files"]:
                for name, schema in schemas(path, git(folder, "show", f"FETCH_HEAD:{path}")):
                    written = {"x-source": f"{source['repository']}@{source['commit']}:{path}", **bare(schema)}
                    (HERE / f"{name}.json").write_text(json.dumps(written, separators=(",", ":")) + "\n")
                    print(name)


def git(folder: str, *arguments: str) -> str:
    """What git printed."""
    command = ["git", "-C", folder, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603  # sources.json's words


def schemas(path: str, text: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Those of a file, by the name that `check.py` looks for."""
    if path.endswith(".json"):
        yield Path(path).stem, json.loads(text)
        return
    for definition in yaml.safe_load_all(text):
        spec = definition["spec"]
        for version in spec["versions"]:
            if version["served"]:
                yield f"{spec['group']}_{version['name']}_{spec['names']['kind']}", version["schema"]["openAPIV3Schema"]


def bare(value: Any) -> Any:  # noqa: ANN401  # any part of a JSON document
    """Without descriptions, which are most of it."""
    if isinstance(value, dict):
        return {key: bare(one) for key, one in value.items() if key != "description" or not isinstance(one, str)}
    return [bare(one) for one in value] if isinstance(value, list) else value


if __name__ == "__main__":
    main()
