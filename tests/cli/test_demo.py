"""The demo's own promise: it says `held` only where something was held."""

from __future__ import annotations

import os

import pytest

from casemate.cli import digits
from casemate.cli.attacks import Attacks
from casemate.cli.children import Launcher
from casemate.cli.cluster import Cluster
from casemate.cli.demo import worst_if_it_fails
from casemate.cli.ports import Ports
from casemate.cli.state import StateDirectory
from casemate.cli.story import Story

# Each takes one protection away, in the services alone.
MUTANTS = {
    "inserted_grant": "from casemate.sealing.authority_rows import AuthorityKey as K, VerifiedRow\n"
    "import casemate.sealing.authority_rows as m\n"
    "from types import MappingProxyType\n"
    "K.verify = lambda self, table, primary_key, columns, mac: VerifiedRow(\n"
    "    table=table, primary_key=primary_key, columns=MappingProxyType(dict(columns)), seal=m._SEAL)\n",
    "stolen_token": "import casemate.gate.core.gate as g\n"
    "real = g.Gate._bind\n"
    "def bind(self, admission, context):\n"
    "    peer = self._peers.verify(context, now=self.clock.now(), trust=self.trust.current)\n"
    "    if admission.token is not None:\n"
    "        object.__setattr__(admission.token, 'certificate_thumbprint', peer.thumbprint)\n"
    "    return real(self, admission, context)\n"
    "g.Gate._bind = bind\n",
}


async def attacked(tmp_path, name: str) -> bool:
    """Whether one attack held, on a cluster of its own."""
    import asyncio

    cluster = Cluster(
        state=StateDirectory(tmp_path / "state"),
        ports=Ports.free(),
        trust_domain="casemate.internal",
        report=lambda _line: None,
    )
    story = Story(cluster)

    def tell() -> bool:
        training, _ = digits.split()
        records = digits.to_records(training)
        story.admit()
        story.supply(records, digits.SCHEMA)
        pulled = story.pull()
        onnx, accuracy = digits.train(digits.from_records(pulled.records()))
        story.publish(onnx, pulled.root, accuracy)
        return getattr(Attacks(cluster, story, records, digits.SCHEMA), name)().held

    try:
        await cluster.start()
        return await asyncio.to_thread(tell)
    finally:
        await asyncio.to_thread(story.close)
        await cluster.stop()
        await cluster.postgres.erase()


@pytest.mark.parametrize("name", sorted(MUTANTS))
async def test_demo_says_broken_when_the_protection_is_taken_away(tmp_path, name, monkeypatch):
    assert await attacked(tmp_path / "sound", name)
    spoiled = tmp_path / "spoiled-code"
    spoiled.mkdir()
    (spoiled / "sitecustomize.py").write_text(MUTANTS[name])
    real = Launcher._environment

    def environment(self, service):
        values = real(self, service)
        return {**values, "PYTHONPATH": os.pathsep.join([str(spoiled), values["PYTHONPATH"]])}

    monkeypatch.setattr(Launcher, "_environment", environment)
    assert not await attacked(tmp_path / "spoiled", name)


def test_every_measure_of_the_demo_says_the_worst_if_it_fails():
    from casemate.cli.demo import MEASURES

    for _, _, module, _ in MEASURES:
        assert len(worst_if_it_fails(module)) > 40
