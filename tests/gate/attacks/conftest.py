"""A fresh server for every attack, on each of the two adapters."""

from __future__ import annotations

import pytest

from tests.gate.attacks.scene import Scene
from tests.gate.served import serve
from tests.gate.world import World


@pytest.fixture(scope="module", params=["sync", "aio"])
def kind(request):
    return request.param


@pytest.fixture(scope="module")
def service_leaf(leaf):
    return leaf("service", service="datasets")


@pytest.fixture(scope="module")
def trainer(leaf):
    return leaf("client", tenant="acme", name="trainer")


@pytest.fixture(scope="module")
def mallory(leaf):
    return leaf("client", tenant="acme", name="mallory")


@pytest.fixture
def scene(kind, service_leaf, trainer):
    with serve(kind, World(), service_leaf) as served, served.channel(trainer) as channel:
        yield Scene(served, channel, trainer, kind)


@pytest.fixture
def token(scene, trainer):
    return scene.world.token(trainer)
