import datetime

from casemate.policy.v1 import policy_pb2 as _policy_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateClientSecretRequest(_message.Message):
    __slots__ = ("client_id",)
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    def __init__(self, client_id: _Optional[str] = ...) -> None: ...

class CreateClientSecretResponse(_message.Message):
    __slots__ = ("id", "secret")
    ID_FIELD_NUMBER: _ClassVar[int]
    SECRET_FIELD_NUMBER: _ClassVar[int]
    id: str
    secret: str
    def __init__(self, id: _Optional[str] = ..., secret: _Optional[str] = ...) -> None: ...

class DeleteClientSecretRequest(_message.Message):
    __slots__ = ("client_id", "id")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    id: str
    def __init__(self, client_id: _Optional[str] = ..., id: _Optional[str] = ...) -> None: ...

class DeleteClientSecretResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class AddClientKeyRequest(_message.Message):
    __slots__ = ("client_id", "public_key")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    public_key: bytes
    def __init__(self, client_id: _Optional[str] = ..., public_key: _Optional[bytes] = ...) -> None: ...

class AddClientKeyResponse(_message.Message):
    __slots__ = ("key_id",)
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    key_id: str
    def __init__(self, key_id: _Optional[str] = ...) -> None: ...

class RemoveClientKeyRequest(_message.Message):
    __slots__ = ("client_id", "key_id")
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    KEY_ID_FIELD_NUMBER: _ClassVar[int]
    client_id: str
    key_id: str
    def __init__(self, client_id: _Optional[str] = ..., key_id: _Optional[str] = ...) -> None: ...

class RemoveClientKeyResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExternalIssuer(_message.Message):
    __slots__ = ("name", "tenant", "url", "audience", "keys")
    NAME_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    URL_FIELD_NUMBER: _ClassVar[int]
    AUDIENCE_FIELD_NUMBER: _ClassVar[int]
    KEYS_FIELD_NUMBER: _ClassVar[int]
    name: str
    tenant: str
    url: str
    audience: str
    keys: _containers.RepeatedCompositeFieldContainer[PinnedKey]
    def __init__(self, name: _Optional[str] = ..., tenant: _Optional[str] = ..., url: _Optional[str] = ..., audience: _Optional[str] = ..., keys: _Optional[_Iterable[_Union[PinnedKey, _Mapping]]] = ...) -> None: ...

class PinnedKey(_message.Message):
    __slots__ = ("kid", "public_key")
    KID_FIELD_NUMBER: _ClassVar[int]
    PUBLIC_KEY_FIELD_NUMBER: _ClassVar[int]
    kid: str
    public_key: bytes
    def __init__(self, kid: _Optional[str] = ..., public_key: _Optional[bytes] = ...) -> None: ...

class RegisterIssuerRequest(_message.Message):
    __slots__ = ("issuer",)
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    issuer: ExternalIssuer
    def __init__(self, issuer: _Optional[_Union[ExternalIssuer, _Mapping]] = ...) -> None: ...

class RegisterIssuerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RemoveIssuerRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class RemoveIssuerResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ExchangeGrant(_message.Message):
    __slots__ = ("id", "tenant", "client_id", "source", "audience", "scopes", "refresh", "expires_at")
    ID_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    AUDIENCE_FIELD_NUMBER: _ClassVar[int]
    SCOPES_FIELD_NUMBER: _ClassVar[int]
    REFRESH_FIELD_NUMBER: _ClassVar[int]
    EXPIRES_AT_FIELD_NUMBER: _ClassVar[int]
    id: str
    tenant: str
    client_id: str
    source: str
    audience: str
    scopes: _containers.RepeatedScalarFieldContainer[str]
    refresh: bool
    expires_at: _timestamp_pb2.Timestamp
    def __init__(self, id: _Optional[str] = ..., tenant: _Optional[str] = ..., client_id: _Optional[str] = ..., source: _Optional[str] = ..., audience: _Optional[str] = ..., scopes: _Optional[_Iterable[str]] = ..., refresh: bool = ..., expires_at: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class CreateExchangeGrantRequest(_message.Message):
    __slots__ = ("grant",)
    GRANT_FIELD_NUMBER: _ClassVar[int]
    grant: ExchangeGrant
    def __init__(self, grant: _Optional[_Union[ExchangeGrant, _Mapping]] = ...) -> None: ...

class CreateExchangeGrantResponse(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class DeleteExchangeGrantRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class DeleteExchangeGrantResponse(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ListExchangeGrantsRequest(_message.Message):
    __slots__ = ("tenant",)
    TENANT_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    def __init__(self, tenant: _Optional[str] = ...) -> None: ...

class ListExchangeGrantsResponse(_message.Message):
    __slots__ = ("grants",)
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    grants: _containers.RepeatedCompositeFieldContainer[ExchangeGrant]
    def __init__(self, grants: _Optional[_Iterable[_Union[ExchangeGrant, _Mapping]]] = ...) -> None: ...
