"""Which versions are loaded, which one a request means, and what alone leads back to an older one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from casemate.errors import CasemateError, Code, Reason
from casemate.open_inference.v2 import open_inference_pb2 as wire
from casemate.signing.keys import SigningKey
from services.inference.version_policy import VersionPolicies, VersionPolicy, version_policies
from tests.services.inference.conftest import Digits
from tests.services.inference.house import SERVING, TENANT, House, signer
from tests.support.authority import LeafFactory

KEY = (TENANT, "digits")
NOT_READY = (Code.FAILED_PRECONDITION, Reason.MODEL_NOT_READY)


def label(house: House, labels: Mapping[str, int]) -> None:
    """What the feed brings once auth has verified an operator's signed labels."""
    house.trust.change(replace(house.trust.state.current.releases[KEY], labels=labels))
    house.service.watcher.reconcile()


def served(house: House, version: str = "") -> str:
    return house.call("ModelMetadata", wire.ModelMetadataRequest(name="digits", version=version)).properties["number"]


def reasons(house: House) -> dict[str, str]:
    models = house.call("RepositoryIndex", wire.RepositoryIndexRequest()).models
    return {model.version: model.reason for model in models}


def refusal(ask: Callable[[], object]) -> tuple[Code, Reason]:
    with pytest.raises(CasemateError) as caught:
        ask()
    return caught.value.code, caught.value.reason


@pytest.fixture
def publish(tmp_path: Path, leaf: LeafFactory, digits: Digits):
    """Makes a house under a policy, with three versions published."""
    houses = []

    def make(policies: str = "latest:2", versions: int = 3) -> House:
        serving = replace(SERVING, versions=version_policies(policies))
        houses.append(House(directory=tmp_path, leaf=leaf, serving=serving))
        for number in range(1, versions + 1):
            houses[-1].publish({"model.onnx": digits.onnx}, number=number)
        houses[-1].service.watcher.reconcile()
        return houses[-1]

    yield make
    for house in houses:
        house.close()


@pytest.mark.parametrize(
    ("policies", "loaded"),
    [
        ("latest:1", [3]),
        ("latest:2", [2, 3]),
        ("all", [1, 2, 3]),
        ("1,3", [1, 3]),
        ("latest:1 acme/digits=all", [1, 2, 3]),
        ("all acme/digits=latest:1 acme/other=2", [3]),
        ("all other/digits=1", [1, 2, 3]),
    ],
)
def test_a_policy_says_which_versions_stay_loaded(
    publish: Callable[..., House], policies: str, loaded: list[int]
) -> None:
    house = publish(policies)
    replica = house.serve()
    assert sorted(replica.catalogue.entry(KEY).versions) == loaded
    assert replica.catalogue.entry(KEY).current == 3


def test_the_configuration_tells_the_policy(publish: Callable[..., House]) -> None:
    house = publish("latest:1 acme/digits=1,3")
    config = house.call("ModelConfig", wire.ModelConfigRequest(name="digits")).config
    assert list(config.version_policy.specific.versions) == [1, 3]


def test_a_version_that_the_policy_leaves_out_is_not_ready_and_one_never_released_is_not_found(
    publish: Callable[..., House],
) -> None:
    house = publish("1,3")
    assert refusal(lambda: served(house, "2")) == NOT_READY
    assert refusal(lambda: served(house, "4"))[0] is Code.NOT_FOUND
    assert served(house, "1") == "1"


def test_a_policy_does_not_lead_back_to_an_older_version(publish: Callable[..., House]) -> None:
    house = publish("1,2")
    assert refusal(lambda: served(house)) == NOT_READY
    label(house, {"stable": 1})
    assert served(house) == "1"


def test_a_request_may_name_a_label(publish: Callable[..., House]) -> None:
    house = publish("latest:1")
    label(house, {"canary": 3, "blue": 1})
    assert [served(house, version) for version in ("canary", "blue", "")] == ["3", "1", "3"]
    assert refusal(lambda: served(house, "stable"))[0] is Code.NOT_FOUND
    metadata = house.call("ModelMetadata", wire.ModelMetadataRequest(name="digits", version="canary"))
    assert metadata.properties["labels"] == "canary"


def test_the_stable_label_leads_back_and_forward_again(publish: Callable[..., House], digits: Digits) -> None:
    house = publish("latest:1")
    label(house, {"stable": 1})
    assert served(house) == "1"
    assert house.predict(digits.images) == digits.labels.tolist()
    label(house, {"stable": 2})
    assert served(house) == "2"
    label(house, {})
    assert served(house) == "3"


def test_a_new_version_does_not_pass_the_stable_label(publish: Callable[..., House], digits: Digits) -> None:
    house = publish(versions=2)
    label(house, {"stable": 1})
    house.publish({"model.onnx": digits.onnx}, number=3)
    assert (served(house), served(house, "3")) == ("1", "3")


def test_neither_a_load_nor_a_reload_of_an_older_version_changes_what_is_served(publish: Callable[..., House]) -> None:
    house = publish()
    assert house.reload(1).number == 1
    assert served(house) == "3"
    house.call("RepositoryModelLoad", wire.RepositoryModelLoadRequest(model_name="digits"), caller=house.trainer)
    assert served(house) == "3"
    label(house, {"stable": 2})
    house.call("RepositoryModelLoad", wire.RepositoryModelLoadRequest(model_name="digits"), caller=house.trainer)
    assert served(house) == "2"


def test_publishing_an_older_version_again_is_refused_or_changes_nothing(
    publish: Callable[..., House], digits: Digits
) -> None:
    house = publish(versions=1)
    envelope = house.manifest({"model.onnx": digits.onnx}, number=2, metrics={"accuracy": 0.5})
    for number in (2, 3):
        house.publish({"model.onnx": digits.onnx}, number=number, envelope=envelope if number == 2 else None)
    assert refusal(lambda: house.publish({"model.onnx": digits.onnx}, number=2))[0] is Code.ALREADY_EXISTS
    house.publish({"model.onnx": digits.onnx}, number=2, envelope=envelope)
    assert served(house) == "3"


def test_a_label_on_a_withdrawn_version_serves_nothing_rather_than_something_else(
    publish: Callable[..., House],
) -> None:
    house = publish()
    label(house, {"stable": 2})
    recorded = house.trust.state.current.releases[KEY].versions
    house.trust.change(signer(house.publisher, compromised_since=recorded[1].recorded_at))
    house.service.watcher.reconcile()
    assert refusal(lambda: served(house)) == NOT_READY
    assert served(house, "1") == "1"
    label(house, {})
    assert refusal(lambda: served(house)) == NOT_READY
    label(house, {"stable": 1})
    assert served(house) == "1"


def test_a_revoked_publishers_newest_version_leads_back_to_no_older_one_until_an_operator_says_so(
    publish: Callable[..., House], digits: Digits
) -> None:
    house, other = publish(versions=1), SigningKey.generate()
    house.trust.change(signer(other))
    house.publish({"model.onnx": digits.onnx}, number=2, key=other)
    assert served(house) == "2"
    house.trust.change(signer(other, compromised_since=datetime(2020, 1, 1, tzinfo=UTC)))
    house.service.watcher.reconcile()
    assert refusal(lambda: served(house)) == NOT_READY
    assert (served(house, "1"), reasons(house)) == ("1", {"1": "", "2": "withdrawn"})
    house.publish({"model.onnx": digits.onnx}, number=3)
    assert served(house) == "3"


@pytest.mark.parametrize(
    "text",
    ["", "latest", "latest:0", "latest:-1", "0", "1,,2", "all acme=1", "all ../x=1", "all a/b=1 a/b=2", "all a/b", "x"],
)
def test_a_policy_that_is_none_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"policy"):
        version_policies(text)
    assert version_policies("latest:3 a/b=1,2") == VersionPolicies(
        VersionPolicy(latest=3), {("a", "b"): VersionPolicy(specific=frozenset({1, 2}))}
    )


def test_the_default_keeps_the_two_newest() -> None:
    assert VersionPolicies().of("a", "b").choose([1, 3, 2]) == [3, 2]
