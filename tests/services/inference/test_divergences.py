"""Where clients of the protocol differ on the wire: each is answered, and judged by what is acted on."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from casemate.errors import CasemateError, Code, Reason
from casemate.open_inference.v2 import open_inference_pb2 as wire
from tests.services.inference.conftest import Digits
from tests.services.inference.house import TENANT, Caller, House, grant
from tests.support.authority import LeafFactory


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, leaf: LeafFactory, digits: Digits) -> Iterator[House]:
    house = House(directory=tmp_path_factory.mktemp("house"), leaf=leaf)
    house.publish({"model.onnx": digits.onnx})
    house.publish({"model.onnx": digits.onnx}, model="letters")
    yield house
    house.close()


@pytest.fixture(scope="module")
def loader_of_digits(house: House) -> Caller:
    """May publish `digits`, and nothing else."""
    house.trust.change(grant("t/acme/loader", "publish", "model/digits"))
    return house.client("loader")


@pytest.mark.parametrize("field", ["model_name", "repository_name"])
def test_a_load_names_its_model_as_triton_or_as_kserve_does(house: House, field: str) -> None:
    unloaded = house.call(
        "RepositoryModelUnload", wire.RepositoryModelUnloadRequest(**{field: "digits"}), caller=house.trainer
    )
    assert (unloaded.model_name, unloaded.isUnloaded) == ("digits", True)
    assert not house.call("ModelReady", wire.ModelReadyRequest(name="digits")).ready
    loaded = house.call(
        "RepositoryModelLoad", wire.RepositoryModelLoadRequest(**{field: "digits"}), caller=house.trainer
    )
    assert (loaded.model_name, loaded.isLoaded) == ("digits", True)
    assert house.call("ModelReady", wire.ModelReadyRequest(name="digits")).ready


@pytest.mark.parametrize("method", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_the_grant_is_asked_for_the_very_model_that_is_loaded(
    house: House, loader_of_digits: Caller, method: str
) -> None:
    request = getattr(wire, f"{method}Request")
    for refused in (
        request(repository_name="letters"),
        request(model_name="letters", repository_name="digits"),
        request(model_name="letters"),
    ):
        with pytest.raises(CasemateError) as caught:
            house.call(method, refused, caller=loader_of_digits)
        assert (caught.value.code, caught.value.reason) == (Code.NOT_FOUND, Reason.RESOURCE_NOT_FOUND)
    assert house.service.catalogue.entry((TENANT, "letters")).versions
    for allowed in (request(repository_name="digits"), request(model_name="digits", repository_name="letters")):
        assert house.call(method, allowed, caller=loader_of_digits).model_name == "digits"
    assert house.service.catalogue.entry((TENANT, "letters")).versions
    house.call("RepositoryModelLoad", wire.RepositoryModelLoadRequest(model_name="digits"), caller=loader_of_digits)


def test_a_load_that_names_no_model_is_refused(house: House) -> None:
    with pytest.raises(CasemateError) as caught:
        house.call("RepositoryModelLoad", wire.RepositoryModelLoadRequest(), caller=house.trainer)
    assert caught.value.code is Code.INVALID_ARGUMENT


def test_statistics_without_a_name_are_of_every_model_that_the_caller_may_describe(house: House) -> None:
    everything = house.call("ModelStatistics", wire.ModelStatisticsRequest())
    assert [(model.name, model.version) for model in everything.model_stats] == [("digits", "1"), ("letters", "1")]
    house.trust.change(grant("t/acme/reader", "describe", "model/letters"))
    some = house.call("ModelStatistics", wire.ModelStatisticsRequest(), caller=house.client("reader"))
    assert [model.name for model in some.model_stats] == ["letters"]
    for stranger in (house.client("stranger"), house.client("caller", tenant="globex")):
        assert not house.call("ModelStatistics", wire.ModelStatisticsRequest(), caller=stranger).model_stats


def test_statistics_of_a_named_model_still_ask_for_its_grant(house: House) -> None:
    with pytest.raises(CasemateError) as caught:
        house.call("ModelStatistics", wire.ModelStatisticsRequest(name="digits"), caller=house.client("reader"))
    assert caught.value.code is Code.NOT_FOUND
    assert house.call("ModelStatistics", wire.ModelStatisticsRequest(name="digits")).model_stats
