import datetime

from casemate.policy.v1 import policy_pb2 as _policy_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class PushDatasetRequest(_message.Message):
    __slots__ = ("dataset", "manifest", "chunk", "finish")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    FINISH_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    manifest: bytes
    chunk: Chunk
    finish: Finish
    def __init__(self, dataset: _Optional[str] = ..., manifest: _Optional[bytes] = ..., chunk: _Optional[_Union[Chunk, _Mapping]] = ..., finish: _Optional[_Union[Finish, _Mapping]] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class Finish(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PushDatasetResponse(_message.Message):
    __slots__ = ("next_offset", "promoted")
    NEXT_OFFSET_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_FIELD_NUMBER: _ClassVar[int]
    next_offset: int
    promoted: PromotedVersion
    def __init__(self, next_offset: _Optional[int] = ..., promoted: _Optional[_Union[PromotedVersion, _Mapping]] = ...) -> None: ...

class PromotedVersion(_message.Message):
    __slots__ = ("version", "root", "rows", "log_index")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LOG_INDEX_FIELD_NUMBER: _ClassVar[int]
    version: int
    root: bytes
    rows: int
    log_index: int
    def __init__(self, version: _Optional[int] = ..., root: _Optional[bytes] = ..., rows: _Optional[int] = ..., log_index: _Optional[int] = ...) -> None: ...

class GetVersionRequest(_message.Message):
    __slots__ = ("dataset", "version", "label")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    version: int
    label: str
    def __init__(self, dataset: _Optional[str] = ..., version: _Optional[int] = ..., label: _Optional[str] = ...) -> None: ...

class GetVersionResponse(_message.Message):
    __slots__ = ("version", "manifest", "root", "rows", "promoted_at", "signer_key_id", "shredded_at", "labels")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_AT_FIELD_NUMBER: _ClassVar[int]
    SIGNER_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SHREDDED_AT_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    version: int
    manifest: bytes
    root: bytes
    rows: int
    promoted_at: _timestamp_pb2.Timestamp
    signer_key_id: str
    shredded_at: _timestamp_pb2.Timestamp
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, version: _Optional[int] = ..., manifest: _Optional[bytes] = ..., root: _Optional[bytes] = ..., rows: _Optional[int] = ..., promoted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., signer_key_id: _Optional[str] = ..., shredded_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class ListDatasetsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDatasetsResponse(_message.Message):
    __slots__ = ("datasets", "next_page_token")
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    datasets: _containers.RepeatedCompositeFieldContainer[ListedDataset]
    next_page_token: str
    def __init__(self, datasets: _Optional[_Iterable[_Union[ListedDataset, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class ListedDataset(_message.Message):
    __slots__ = ("dataset", "version", "root", "rows", "promoted_at", "shredded")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_AT_FIELD_NUMBER: _ClassVar[int]
    SHREDDED_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    version: int
    root: bytes
    rows: int
    promoted_at: _timestamp_pb2.Timestamp
    shredded: bool
    def __init__(self, dataset: _Optional[str] = ..., version: _Optional[int] = ..., root: _Optional[bytes] = ..., rows: _Optional[int] = ..., promoted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., shredded: bool = ...) -> None: ...

class PullDatasetRequest(_message.Message):
    __slots__ = ("dataset", "version", "label", "shard", "shards", "shuffle_seed", "position")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    SHARD_FIELD_NUMBER: _ClassVar[int]
    SHARDS_FIELD_NUMBER: _ClassVar[int]
    SHUFFLE_SEED_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    version: int
    label: str
    shard: int
    shards: int
    shuffle_seed: int
    position: int
    def __init__(self, dataset: _Optional[str] = ..., version: _Optional[int] = ..., label: _Optional[str] = ..., shard: _Optional[int] = ..., shards: _Optional[int] = ..., shuffle_seed: _Optional[int] = ..., position: _Optional[int] = ...) -> None: ...

class PullDatasetResponse(_message.Message):
    __slots__ = ("description", "batch", "receipt")
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    description: GetVersionResponse
    batch: Batch
    receipt: ExportReceipt
    def __init__(self, description: _Optional[_Union[GetVersionResponse, _Mapping]] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ..., receipt: _Optional[_Union[ExportReceipt, _Mapping]] = ...) -> None: ...

class ExportReceipt(_message.Message):
    __slots__ = ("receipt", "log_key", "log_index")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    LOG_KEY_FIELD_NUMBER: _ClassVar[int]
    LOG_INDEX_FIELD_NUMBER: _ClassVar[int]
    receipt: bytes
    log_key: str
    log_index: int
    def __init__(self, receipt: _Optional[bytes] = ..., log_key: _Optional[str] = ..., log_index: _Optional[int] = ...) -> None: ...

class Batch(_message.Message):
    __slots__ = ("number", "first_ordinal", "records", "inclusion_proof")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FIRST_ORDINAL_FIELD_NUMBER: _ClassVar[int]
    RECORDS_FIELD_NUMBER: _ClassVar[int]
    INCLUSION_PROOF_FIELD_NUMBER: _ClassVar[int]
    number: int
    first_ordinal: int
    records: _containers.RepeatedScalarFieldContainer[bytes]
    inclusion_proof: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, number: _Optional[int] = ..., first_ordinal: _Optional[int] = ..., records: _Optional[_Iterable[bytes]] = ..., inclusion_proof: _Optional[_Iterable[bytes]] = ...) -> None: ...

class ShredVersionRequest(_message.Message):
    __slots__ = ("dataset", "version")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    version: int
    def __init__(self, dataset: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class ShredVersionResponse(_message.Message):
    __slots__ = ("receipt", "log_key", "further_receipts")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    LOG_KEY_FIELD_NUMBER: _ClassVar[int]
    FURTHER_RECEIPTS_FIELD_NUMBER: _ClassVar[int]
    receipt: bytes
    log_key: str
    further_receipts: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, receipt: _Optional[bytes] = ..., log_key: _Optional[str] = ..., further_receipts: _Optional[_Iterable[bytes]] = ...) -> None: ...

class SetLabelRequest(_message.Message):
    __slots__ = ("dataset", "label", "version", "expected_version")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_VERSION_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    label: str
    version: int
    expected_version: int
    def __init__(self, dataset: _Optional[str] = ..., label: _Optional[str] = ..., version: _Optional[int] = ..., expected_version: _Optional[int] = ...) -> None: ...

class SetLabelResponse(_message.Message):
    __slots__ = ("labels", "log_index")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    LABELS_FIELD_NUMBER: _ClassVar[int]
    LOG_INDEX_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.ScalarMap[str, int]
    log_index: int
    def __init__(self, labels: _Optional[_Mapping[str, int]] = ..., log_index: _Optional[int] = ...) -> None: ...

class ListLabelsRequest(_message.Message):
    __slots__ = ("dataset",)
    DATASET_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    def __init__(self, dataset: _Optional[str] = ...) -> None: ...

class ListLabelsResponse(_message.Message):
    __slots__ = ("labels",)
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    LABELS_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.ScalarMap[str, int]
    def __init__(self, labels: _Optional[_Mapping[str, int]] = ...) -> None: ...

class GetLineageRequest(_message.Message):
    __slots__ = ("dataset", "version", "label")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    version: int
    label: str
    def __init__(self, dataset: _Optional[str] = ..., version: _Optional[int] = ..., label: _Optional[str] = ...) -> None: ...

class GetLineageResponse(_message.Message):
    __slots__ = ("version", "root", "previous_root", "signer_key_id", "quarantined", "models")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_ROOT_FIELD_NUMBER: _ClassVar[int]
    SIGNER_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    version: int
    root: bytes
    previous_root: bytes
    signer_key_id: str
    quarantined: bool
    models: _containers.RepeatedCompositeFieldContainer[TrainedModel]
    def __init__(self, version: _Optional[int] = ..., root: _Optional[bytes] = ..., previous_root: _Optional[bytes] = ..., signer_key_id: _Optional[str] = ..., quarantined: bool = ..., models: _Optional[_Iterable[_Union[TrainedModel, _Mapping]]] = ...) -> None: ...

class TrainedModel(_message.Message):
    __slots__ = ("model", "number", "manifest_sha256", "signer_key_id", "log_index", "released", "labels")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_SHA256_FIELD_NUMBER: _ClassVar[int]
    SIGNER_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    LOG_INDEX_FIELD_NUMBER: _ClassVar[int]
    RELEASED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    model: str
    number: int
    manifest_sha256: bytes
    signer_key_id: str
    log_index: int
    released: bool
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, model: _Optional[str] = ..., number: _Optional[int] = ..., manifest_sha256: _Optional[bytes] = ..., signer_key_id: _Optional[str] = ..., log_index: _Optional[int] = ..., released: bool = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class ReportSignerRequest(_message.Message):
    __slots__ = ("key_id", "since")
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SINCE_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    since: _timestamp_pb2.Timestamp
    def __init__(self, key_id: _Optional[str] = ..., since: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class ReportSignerResponse(_message.Message):
    __slots__ = ("tenant", "dataset", "version", "root", "promoted_at", "quarantined", "shredded", "models")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_AT_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    SHREDDED_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    dataset: str
    version: int
    root: bytes
    promoted_at: _timestamp_pb2.Timestamp
    quarantined: bool
    shredded: bool
    models: _containers.RepeatedCompositeFieldContainer[TrainedModel]
    def __init__(self, tenant: _Optional[str] = ..., dataset: _Optional[str] = ..., version: _Optional[int] = ..., root: _Optional[bytes] = ..., promoted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., quarantined: bool = ..., shredded: bool = ..., models: _Optional[_Iterable[_Union[TrainedModel, _Mapping]]] = ...) -> None: ...

class GetCroissantRequest(_message.Message):
    __slots__ = ("dataset", "version", "label")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    LABEL_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    version: int
    label: str
    def __init__(self, dataset: _Optional[str] = ..., version: _Optional[int] = ..., label: _Optional[str] = ...) -> None: ...

class GetCroissantResponse(_message.Message):
    __slots__ = ("json_ld",)
    JSON_LD_FIELD_NUMBER: _ClassVar[int]
    json_ld: bytes
    def __init__(self, json_ld: _Optional[bytes] = ...) -> None: ...

class SetRetentionRequest(_message.Message):
    __slots__ = ("dataset", "keep_versions", "keep_for")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    KEEP_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    KEEP_FOR_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    keep_versions: int
    keep_for: _duration_pb2.Duration
    def __init__(self, dataset: _Optional[str] = ..., keep_versions: _Optional[int] = ..., keep_for: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class SetRetentionResponse(_message.Message):
    __slots__ = ("log_index",)
    LOG_INDEX_FIELD_NUMBER: _ClassVar[int]
    log_index: int
    def __init__(self, log_index: _Optional[int] = ...) -> None: ...

class CheckRootsRequest(_message.Message):
    __slots__ = ("tenant", "roots")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ROOTS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    roots: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, tenant: _Optional[str] = ..., roots: _Optional[_Iterable[bytes]] = ...) -> None: ...

class CheckRootsResponse(_message.Message):
    __slots__ = ("refused", "quarantined", "shredded")
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    QUARANTINED_FIELD_NUMBER: _ClassVar[int]
    SHREDDED_FIELD_NUMBER: _ClassVar[int]
    refused: _containers.RepeatedScalarFieldContainer[bytes]
    quarantined: _containers.RepeatedScalarFieldContainer[bytes]
    shredded: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, refused: _Optional[_Iterable[bytes]] = ..., quarantined: _Optional[_Iterable[bytes]] = ..., shredded: _Optional[_Iterable[bytes]] = ...) -> None: ...
