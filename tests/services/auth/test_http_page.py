"""The page about HTTPS: its commands, taken out of it and run by a shell with curl."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.services.auth.http_world import facing
from tests.services.auth.world import SOON

PAGE = Path(__file__).parents[3] / "docs" / "how-to" / "get-tokens-over-https.md"


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
async def test_the_commands_of_the_page_work_as_they_stand(world, tmp_path):
    await world.enlist(world.operator(), "acme", "caller", audiences=("inference",), scopes=("models.infer",))
    leaf = world.leaf("client", tenant="acme", name="caller")
    commands = "\n".join(re.findall(r"^```sh\n(.*?)^```$", PAGE.read_text(), flags=re.DOTALL | re.MULTILINE))
    async with facing(world) as face:
        told = commands.replace("7404", str(face.port)).replace(".casemate/pki/leaves/t/acme/caller", str(leaf))
        done = await asyncio.to_thread(_run, f"set -eu\n{told}", tmp_path)
        assert done.returncode == 0, done.stderr + done.stdout
        said = [json.loads(one) for one in re.findall(r"\{.*?\}(?=\{|$)", done.stdout)]
        assert said[0]["active"] is True
        assert said[1]["token_endpoint"] == f"{face.url}/oauth2/token"
        assert said[2]["keys"]
        wrong = told.replace("client_id=acme-caller", "client_id=acme-other")
        refused = await asyncio.to_thread(_run, f"set -eu\n{wrong}", tmp_path)
        assert refused.returncode != 0
        assert json.loads((tmp_path / "answer").read_text())["error"] == "invalid_client"


def _run(program, directory):
    environment = {"PATH": os.environ["PATH"]}
    return subprocess.run(
        ["/bin/sh", "-c", program],
        check=False,
        capture_output=True,
        text=True,
        cwd=directory,
        env=environment,
        timeout=SOON,
    )
