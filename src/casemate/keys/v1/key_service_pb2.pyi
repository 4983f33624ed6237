from casemate.policy.v1 import policy_pb2 as _policy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class KekStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KEK_STATUS_UNSPECIFIED: _ClassVar[KekStatus]
    KEK_STATUS_ENABLED: _ClassVar[KekStatus]
    KEK_STATUS_DISABLED: _ClassVar[KekStatus]
    KEK_STATUS_PENDING_DELETION: _ClassVar[KekStatus]
    KEK_STATUS_DESTROYED: _ClassVar[KekStatus]
KEK_STATUS_UNSPECIFIED: KekStatus
KEK_STATUS_ENABLED: KekStatus
KEK_STATUS_DISABLED: KekStatus
KEK_STATUS_PENDING_DELETION: KekStatus
KEK_STATUS_DESTROYED: KekStatus

class WrappedUnder(_message.Message):
    __slots__ = ("purpose", "kek_id", "kek_version", "keys")
    PURPOSE_FIELD_NUMBER: _ClassVar[int]
    KEK_ID_FIELD_NUMBER: _ClassVar[int]
    KEK_VERSION_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    purpose: str
    kek_id: str
    kek_version: int
    keys: int
    def __init__(self, purpose: _Optional[str] = ..., kek_id: _Optional[str] = ..., kek_version: _Optional[int] = ..., keys: _Optional[int] = ...) -> None: ...

class GetKekStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetKekStatusResponse(_message.Message):
    __slots__ = ("kek_id", "current_version", "status", "wrapped", "is_for_development")
    KEK_ID_FIELD_NUMBER: _ClassVar[int]
    CURRENT_VERSION_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    WRAPPED_FIELD_NUMBER: _ClassVar[int]
    IS_FOR_DEVELOPMENT_FIELD_NUMBER: _ClassVar[int]
    kek_id: str
    current_version: int
    status: KekStatus
    wrapped: _containers.RepeatedCompositeFieldContainer[WrappedUnder]
    is_for_development: bool
    def __init__(self, kek_id: _Optional[str] = ..., current_version: _Optional[int] = ..., status: _Optional[_Union[KekStatus, str]] = ..., wrapped: _Optional[_Iterable[_Union[WrappedUnder, _Mapping]]] = ..., is_for_development: bool = ...) -> None: ...

class RewrapKeysRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RewrapKeysResponse(_message.Message):
    __slots__ = ("seen", "total", "rewrapped", "failed")
    SEEN_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    REWRAPPED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    seen: int
    total: int
    rewrapped: int
    failed: int
    def __init__(self, seen: _Optional[int] = ..., total: _Optional[int] = ..., rewrapped: _Optional[int] = ..., failed: _Optional[int] = ...) -> None: ...
