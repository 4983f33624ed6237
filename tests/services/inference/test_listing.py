"""What a client lists of its tenant's models: page by page, with state and labels, and only what a grant shows it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from casemate.errors import InvalidRequest
from casemate.gate.core.records import Release, ReleasedVersion, RemovedGrant
from casemate.inference.v1.model_service_pb2 import ListModelsRequest
from casemate.inference.v1.model_service_pb2_grpc import ModelServiceStub
from casemate.open_inference.v2 import open_inference_pb2 as wire
from tests.services.inference.conftest import Digits
from tests.services.inference.house import TENANT, Caller, House, grant, meant
from tests.support.authority import LeafFactory


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory, leaf: LeafFactory, digits: Digits) -> Iterator[House]:
    """Two versions of one model, the first of which is stable; and released ones that are nowhere to be found."""
    house = House(directory=tmp_path_factory.mktemp("house"), leaf=leaf)
    for number in (1, 2):
        house.publish({"model.onnx": digits.onnx}, number=number)
    release = house.trust.state.current.releases[TENANT, "digits"]
    house.trust.change(dataclasses.replace(release, labels={"stable": 1, "canary": 2}))
    for tenant, model in ((TENANT, "lost"), (TENANT, "hidden"), ("globex", "theirs")):
        version = ReleasedVersion(
            number=1,
            manifest_sha256=bytes(32),
            signer_key_id=house.publisher.public.key_id,
            recorded_at=datetime.now(UTC),
        )
        house.trust.change(Release(tenant=tenant, model=model, versions=(version,), labels={}))
    yield house
    house.close()


def listed(house: House, caller: Caller, **place: object):
    with meant():
        return ModelServiceStub(house.channel(caller)).ListModels(
            ListModelsRequest(**place), metadata=house.metadata(caller)
        )


def names(page: object) -> list[str]:
    return [model.name for model in page.models]


def test_every_version_is_listed_with_its_state_its_digest_and_what_labels_name(house: House) -> None:
    models = {model.name: model for model in listed(house, house.caller).models}
    digits = models["digits"]
    release = house.trust.state.current.releases[TENANT, "digits"]
    assert [(one.number, one.state, one.reason, one.manifest_sha256, one.signer_key_id) for one in digits.versions] == [
        (version.number, 1, "", version.manifest_sha256, house.publisher.public.key_id) for version in release.versions
    ]
    assert dict(digits.labels) == {"stable": 1, "canary": 2}
    lost = models["lost"].versions[0]
    assert (lost.state, lost.reason) == (2, "released, not loaded here")


def test_a_version_that_ended_its_process_time_and_again_is_listed_as_resting_and_is_not_ready(house: House) -> None:
    catalogue = house.service.catalogue
    loaded = catalogue.find(TENANT, "digits", "2")
    ready = wire.ModelReadyRequest(name="digits", version="2")
    try:
        catalogue.put(dataclasses.replace(loaded, rests=lambda: True), current=False)
        digits = next(model for model in listed(house, house.caller).models if model.name == "digits")
        assert [one.state for one in digits.versions] == [1, 2]
        assert "rests" in digits.versions[1].reason
        assert not house.call("ModelReady", ready).ready
    finally:
        catalogue.put(loaded, current=False)
    assert house.call("ModelReady", ready).ready


def test_pages_hold_everything_once_and_in_order_and_a_token_of_none_is_refused(house: House) -> None:
    first = listed(house, house.caller, page_size=1)
    second = listed(house, house.caller, page_size=1, page_token=first.next_page_token)
    third = listed(house, house.caller, page_size=1, page_token=second.next_page_token)
    assert [names(page) for page in (first, second, third)] == [["digits"], ["hidden"], ["lost"]]
    assert not third.next_page_token
    assert names(listed(house, house.caller, page_size=3)) == ["digits", "hidden", "lost"]
    with pytest.raises(InvalidRequest) as caught:
        listed(house, house.caller, page_token="../etc")
    assert [violation.field for violation in caught.value.violations] == ["page_token"]


def test_only_what_a_grant_shows_is_listed_and_nothing_of_another_tenant(house: House) -> None:
    assert names(listed(house, house.caller)) == ["digits", "hidden", "lost"]
    some = [grant("t/acme/some", "describe", f"model/{name}") for name in ("digits", "lost")]
    some = [dataclasses.replace(each, id=f"some-{number}") for number, each in enumerate(some)]
    house.trust.change(*some)
    who = house.client("some")
    assert names(listed(house, who)) == ["digits", "lost"]
    assert names(listed(house, who, page_size=1, page_token="digits")) == [
        "lost"
    ]  # without a page for what is left out
    house.trust.change(RemovedGrant(id="some-1"))
    assert names(listed(house, who)) == ["digits"]
    assert not names(listed(house, house.client("nobody")))
    assert not names(listed(house, house.client("caller", tenant="globex")))
