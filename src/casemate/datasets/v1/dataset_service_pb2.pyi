import datetime

from casemate.policy.v1 import policy_pb2 as _policy_pb2
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
    __slots__ = ("dataset", "version")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    version: int
    def __init__(self, dataset: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class GetVersionResponse(_message.Message):
    __slots__ = ("version", "manifest", "root", "rows", "promoted_at", "signer_key_id", "shredded_at")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    ROOT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PROMOTED_AT_FIELD_NUMBER: _ClassVar[int]
    SIGNER_KEY_ID_FIELD_NUMBER: _ClassVar[int]
    SHREDDED_AT_FIELD_NUMBER: _ClassVar[int]
    version: int
    manifest: bytes
    root: bytes
    rows: int
    promoted_at: _timestamp_pb2.Timestamp
    signer_key_id: str
    shredded_at: _timestamp_pb2.Timestamp
    def __init__(self, version: _Optional[int] = ..., manifest: _Optional[bytes] = ..., root: _Optional[bytes] = ..., rows: _Optional[int] = ..., promoted_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., signer_key_id: _Optional[str] = ..., shredded_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class PullDatasetRequest(_message.Message):
    __slots__ = ("dataset", "version")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    version: int
    def __init__(self, dataset: _Optional[str] = ..., version: _Optional[int] = ...) -> None: ...

class PullDatasetResponse(_message.Message):
    __slots__ = ("description", "batch")
    DESCRIPTION_FIELD_NUMBER: _ClassVar[int]
    BATCH_FIELD_NUMBER: _ClassVar[int]
    description: GetVersionResponse
    batch: Batch
    def __init__(self, description: _Optional[_Union[GetVersionResponse, _Mapping]] = ..., batch: _Optional[_Union[Batch, _Mapping]] = ...) -> None: ...

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
    __slots__ = ("receipt", "log_key")
    RECEIPT_FIELD_NUMBER: _ClassVar[int]
    LOG_KEY_FIELD_NUMBER: _ClassVar[int]
    receipt: bytes
    log_key: str
    def __init__(self, receipt: _Optional[bytes] = ..., log_key: _Optional[str] = ...) -> None: ...

class CheckRootsRequest(_message.Message):
    __slots__ = ("tenant", "roots")
    TENANT_FIELD_NUMBER: _ClassVar[int]
    ROOTS_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    roots: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, tenant: _Optional[str] = ..., roots: _Optional[_Iterable[bytes]] = ...) -> None: ...

class CheckRootsResponse(_message.Message):
    __slots__ = ("refused",)
    REFUSED_FIELD_NUMBER: _ClassVar[int]
    refused: _containers.RepeatedScalarFieldContainer[bytes]
    def __init__(self, refused: _Optional[_Iterable[bytes]] = ...) -> None: ...
