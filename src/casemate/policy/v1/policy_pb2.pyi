from google.protobuf import descriptor_pb2 as _descriptor_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor
METHOD_FIELD_NUMBER: _ClassVar[int]
method: _descriptor.FieldDescriptor
RESOURCE_FIELD_NUMBER: _ClassVar[int]
resource: _descriptor.FieldDescriptor
RESOURCE_VERSION_FIELD_NUMBER: _ClassVar[int]
resource_version: _descriptor.FieldDescriptor

class MethodPolicy(_message.Message):
    __slots__ = ("peer", "token", "sensitive", "idempotent", "audit_allowed", "only_revokes")
    PEER_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    SENSITIVE_FIELD_NUMBER: _ClassVar[int]
    IDEMPOTENT_FIELD_NUMBER: _ClassVar[int]
    AUDIT_ALLOWED_FIELD_NUMBER: _ClassVar[int]
    ONLY_REVOKES_FIELD_NUMBER: _ClassVar[int]
    peer: PeerAccess
    token: TokenAccess
    sensitive: bool
    idempotent: bool
    audit_allowed: bool
    only_revokes: bool
    def __init__(self, peer: _Optional[_Union[PeerAccess, _Mapping]] = ..., token: _Optional[_Union[TokenAccess, _Mapping]] = ..., sensitive: bool = ..., idempotent: bool = ..., audit_allowed: bool = ..., only_revokes: bool = ...) -> None: ...

class PeerAccess(_message.Message):
    __slots__ = ("services",)
    SERVICES_FIELD_NUMBER: _ClassVar[int]
    services: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, services: _Optional[_Iterable[str]] = ...) -> None: ...

class TokenAccess(_message.Message):
    __slots__ = ("scope", "verb")
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    VERB_FIELD_NUMBER: _ClassVar[int]
    scope: str
    verb: str
    def __init__(self, scope: _Optional[str] = ..., verb: _Optional[str] = ...) -> None: ...
