"""The rest of the Open Inference Protocol, free of any host: what there is, its state, loading and unloading."""

from __future__ import annotations

from typing import TYPE_CHECKING

from casemate.errors import FailedPrecondition, FieldViolation, InvalidRequest, NotFound, NotServed, Reason
from casemate.gate.core.foreign import LOADED_MODEL
from casemate.open_inference.v2 import open_inference_pb2 as wire
from services.inference.index import READY
from services.inference.instance import OnnxInstance
from services.inference.names import MODEL_FILE, require_name
from services.inference.publishing import tenant_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from casemate.gate.core.caller import Caller
    from services.inference.catalogue import Catalogue
    from services.inference.index import Index
    from services.inference.loader import LoadedModel
    from services.inference.publishing import Publishing
    from services.inference.statistics import Duration
    from services.inference.trust_view import TrustView
    from services.inference.version_policy import VersionPolicies, VersionPolicy
    from services.inference.watcher import Watcher

EXTENSIONS = ("model_configuration", "model_repository", "statistics")
"""Only what is served."""


class Models:
    """What a caller may learn about models, and do with them.

    Args:
        trust: releases and grants.
        catalogue: what is loaded.
        watcher: says whether all that is released is loaded, and unloads.
        publishing: loads.
        index: says which models there are for a caller.
        version: of the server, as ServerMetadata tells it.
        policies: which versions stay loaded, as ModelConfig tells it.
    """

    def __init__(
        self,
        *,
        trust: TrustView,
        catalogue: Catalogue,
        watcher: Watcher,
        publishing: Publishing,
        index: Index,
        version: str,
        policies: VersionPolicies,
    ) -> None:
        self._trust = trust
        self._catalogue = catalogue
        self._watcher = watcher
        self._publishing = publishing
        self._index = index
        self._version = version
        self._policies = policies

    def server_live(self, _caller: Caller, _request: wire.ServerLiveRequest) -> bytes:
        """Always live: whoever is answered talks to a living process."""
        return wire.ServerLiveResponse(live=True).SerializeToString()

    def server_ready(self, _caller: Caller, _request: wire.ServerReadyRequest) -> bytes:
        """Whether everything that the feed names is loaded."""
        return wire.ServerReadyResponse(ready=self._watcher.complete).SerializeToString()

    def server_metadata(self, _caller: Caller, _request: wire.ServerMetadataRequest) -> bytes:
        """Name, version, and the extensions that are served."""
        return wire.ServerMetadataResponse(
            name="casemate", version=self._version, extensions=EXTENSIONS
        ).SerializeToString()

    def model_ready(self, caller: Caller, request: wire.ModelReadyRequest) -> bytes:
        """Whether a version is loaded.

        Raises:
            NotFound: it was never released.
        """
        try:
            loaded = self._catalogue.find(tenant_of(caller), request.name, request.version)
        except FailedPrecondition:
            return wire.ModelReadyResponse(ready=False).SerializeToString()
        return wire.ModelReadyResponse(ready=not loaded.rests()).SerializeToString()

    def model_metadata(self, caller: Caller, request: wire.ModelMetadataRequest) -> bytes:
        """Inputs, outputs, loaded versions and the digest of the manifest."""
        tenant = tenant_of(caller)
        loaded = self._catalogue.find(tenant, request.name, request.version)
        response = wire.ModelMetadataResponse(
            name=request.name,
            versions=[str(number) for number in sorted(self._catalogue.entry((tenant, request.name)).versions)],
            platform=loaded.instance.platform,
            properties={
                "manifest_sha256": loaded.manifest_sha256.hex(),
                "number": str(loaded.slot.number),
                "signer_key_id": loaded.signer_key_id,
                **self._labels(loaded),
            },
        )
        for spec in loaded.instance.inputs:
            response.inputs.add(name=spec.name, datatype=spec.datatype.name, shape=spec.shape)
        for spec in loaded.instance.outputs:
            response.outputs.add(name=spec.name, datatype=spec.datatype.name, shape=spec.shape)
        return response.SerializeToString()

    def model_config(self, caller: Caller, request: wire.ModelConfigRequest) -> bytes:
        """The part of Triton's configuration that says what is served; shapes hold the batch dimension."""
        loaded = self._catalogue.find(tenant_of(caller), request.name, request.version)
        config = wire.ModelConfig(name=request.name, platform=loaded.instance.platform)
        if isinstance(loaded.instance, OnnxInstance):
            config.backend, config.default_model_filename = "onnxruntime", MODEL_FILE
        _tell_policy(config.version_policy, self._policies.of(loaded.slot.tenant, loaded.slot.model))
        for spec in loaded.instance.inputs:
            config.input.add(name=spec.name, data_type=spec.datatype.config, dims=spec.shape)
        for spec in loaded.instance.outputs:
            config.output.add(name=spec.name, data_type=spec.datatype.config, dims=spec.shape)
        return wire.ModelConfigResponse(config=config).SerializeToString()

    def model_statistics(self, caller: Caller, request: wire.ModelStatisticsRequest) -> bytes:
        """Counts of one version, of every loaded one, or of every model that the caller may describe."""
        if not request.name:
            return wire.ModelStatisticsResponse(model_stats=self._all_statistics(caller)).SerializeToString()
        tenant = tenant_of(caller)
        found = self._catalogue.find(tenant, request.name, request.version)
        loaded = self._catalogue.entry((tenant, request.name)).versions
        wanted = [found] if request.version else [loaded[number] for number in sorted(loaded)]
        response = wire.ModelStatisticsResponse(model_stats=[_statistics(version) for version in wanted])
        return response.SerializeToString()

    def repository_index(self, caller: Caller, request: wire.RepositoryIndexRequest) -> bytes:
        """The released versions of models that the caller may describe, in its own tenant."""
        response = wire.RepositoryIndexResponse()
        for release in self._index.describable(caller):
            for version, state, reason in self._index.versions(release):
                if state == READY or not request.ready:
                    response.models.add(name=release.model, version=str(version.number), state=state, reason=reason)
        return response.SerializeToString()

    def load(self, caller: Caller, request: wire.RepositoryModelLoadRequest) -> bytes:
        """Loads the newest released version of the model that the gate judged the caller by.

        Raises:
            NotFound: it was never released.
            FailedPrecondition: reason MODEL_REFUSED; or the request brings a model of its own.
        """
        if request.parameters:
            # `config` and `file:` would be an upload of unsigned bytes.
            raise FailedPrecondition("parameters on a load", reason=Reason.MODEL_REFUSED, violations=(_NO_UPLOADS,))
        model = LOADED_MODEL.name_in(request)
        self._publishing.load_released(caller, model, 0)
        return wire.RepositoryModelLoadResponse(model_name=model, isLoaded=True).SerializeToString()

    def unload(self, caller: Caller, request: wire.RepositoryModelUnloadRequest) -> bytes:
        """Takes a model out of this replica until it is loaded on purpose.

        Raises:
            NotFound: it was never released.
            InvalidRequest: it asks for dependents, which do not exist here.
        """
        tenant = tenant_of(caller)
        model = require_name(LOADED_MODEL.name_in(request), field="model_name")
        if any(parameter.bool_param for parameter in request.parameters.values()):
            raise InvalidRequest(violations=(FieldViolation("parameters", "dependents are not served"),))
        if self._trust.release(tenant, model) is None:
            raise NotFound("no such model")
        self._watcher.unload((tenant, model))
        return wire.RepositoryModelUnloadResponse(model_name=model, isUnloaded=True).SerializeToString()

    def system_shared_memory(self, _caller: Caller, _request: wire.SystemSharedMemoryStatusRequest) -> bytes:
        """No regions: shared memory is not served."""
        return wire.SystemSharedMemoryStatusResponse().SerializeToString()

    def cuda_shared_memory(self, _caller: Caller, _request: wire.CudaSharedMemoryStatusRequest) -> bytes:
        """No regions: shared memory is not served."""
        return wire.CudaSharedMemoryStatusResponse().SerializeToString()

    def refuse(self, _caller: Caller, _request: object) -> bytes:
        """Refuses what the protocol has and this server does not serve.

        Raises:
            NotServed: always.
        """
        raise NotServed

    def _all_statistics(self, caller: Caller) -> Iterator[wire.ModelStatistics]:
        for release in self._index.describable(caller):
            loaded = self._catalogue.entry((release.tenant, release.model)).versions
            for number in sorted(loaded):
                yield _statistics(loaded[number])

    def _labels(self, loaded: LoadedModel) -> dict[str, str]:
        release = self._trust.release(loaded.slot.tenant, loaded.slot.model)
        labels = sorted(release.labels) if release is not None else ()
        named = [label for label in labels if release is not None and release.labels[label] == loaded.slot.number]
        return {"labels": " ".join(named)} if named else {}


_NO_UPLOADS = FieldViolation("parameters", "models are loaded by name; publish a signed version instead")


def _tell_policy(told: wire.ModelVersionPolicy, policy: VersionPolicy) -> None:
    if policy.all:
        told.all.SetInParent()
    elif policy.specific:
        told.specific.versions.extend(sorted(policy.specific))
    else:
        told.latest.num_versions = policy.latest


def _duration(duration: Duration) -> wire.StatisticDuration:
    return wire.StatisticDuration(count=duration.count, ns=duration.ns)


def _statistics(loaded: LoadedModel) -> wire.ModelStatistics:
    counts = loaded.statistics.current
    return wire.ModelStatistics(
        name=loaded.slot.model,
        version=str(loaded.slot.number),
        last_inference=counts.last_inference_ms,
        inference_count=counts.inferences,
        execution_count=counts.executions,
        inference_stats=wire.InferStatistics(
            success=_duration(counts.success),
            fail=_duration(counts.fail),
            queue=_duration(counts.queue),
            compute_input=_duration(counts.compute_input),
            compute_infer=_duration(counts.compute_infer),
            compute_output=_duration(counts.compute_output),
        ),
        batch_stats=[
            wire.InferBatchStatistics(
                batch_size=rows,
                compute_input=_duration(batch.compute_input),
                compute_infer=_duration(batch.compute_infer),
                compute_output=_duration(batch.compute_output),
            )
            for rows, batch in counts.batches.items()
        ],
    )
