import datetime

from casemate.auth.v1 import trust_pb2 as _trust_pb2
from casemate.policy.v1 import policy_pb2 as _policy_pb2
from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class WatchTrustRequest(_message.Message):
    __slots__ = ("epoch", "sequence")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    sequence: int
    def __init__(self, epoch: _Optional[str] = ..., sequence: _Optional[int] = ...) -> None: ...

class WatchTrustResponse(_message.Message):
    __slots__ = ("epoch", "sequence", "read_age", "snapshot", "delta", "heartbeat")
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    READ_AGE_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    DELTA_FIELD_NUMBER: _ClassVar[int]
    HEARTBEAT_FIELD_NUMBER: _ClassVar[int]
    epoch: str
    sequence: int
    read_age: _duration_pb2.Duration
    snapshot: TrustSnapshot
    delta: TrustDelta
    heartbeat: TrustHeartbeat
    def __init__(self, epoch: _Optional[str] = ..., sequence: _Optional[int] = ..., read_age: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., snapshot: _Optional[_Union[TrustSnapshot, _Mapping]] = ..., delta: _Optional[_Union[TrustDelta, _Mapping]] = ..., heartbeat: _Optional[_Union[TrustHeartbeat, _Mapping]] = ...) -> None: ...

class TrustSnapshot(_message.Message):
    __slots__ = ("issuer", "token_keys", "revocations", "grants", "signers", "releases", "more")
    ISSUER_FIELD_NUMBER: _ClassVar[int]
    TOKEN_KEYS_FIELD_NUMBER: _ClassVar[int]
    REVOCATIONS_FIELD_NUMBER: _ClassVar[int]
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    SIGNERS_FIELD_NUMBER: _ClassVar[int]
    RELEASES_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    issuer: str
    token_keys: _containers.RepeatedCompositeFieldContainer[_trust_pb2.TokenKey]
    revocations: _containers.RepeatedCompositeFieldContainer[_trust_pb2.Revocation]
    grants: _containers.RepeatedCompositeFieldContainer[_trust_pb2.Grant]
    signers: _containers.RepeatedCompositeFieldContainer[_trust_pb2.Signer]
    releases: _containers.RepeatedCompositeFieldContainer[_trust_pb2.Release]
    more: bool
    def __init__(self, issuer: _Optional[str] = ..., token_keys: _Optional[_Iterable[_Union[_trust_pb2.TokenKey, _Mapping]]] = ..., revocations: _Optional[_Iterable[_Union[_trust_pb2.Revocation, _Mapping]]] = ..., grants: _Optional[_Iterable[_Union[_trust_pb2.Grant, _Mapping]]] = ..., signers: _Optional[_Iterable[_Union[_trust_pb2.Signer, _Mapping]]] = ..., releases: _Optional[_Iterable[_Union[_trust_pb2.Release, _Mapping]]] = ..., more: bool = ...) -> None: ...

class TrustDelta(_message.Message):
    __slots__ = ("changes",)
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    changes: _containers.RepeatedCompositeFieldContainer[TrustChange]
    def __init__(self, changes: _Optional[_Iterable[_Union[TrustChange, _Mapping]]] = ...) -> None: ...

class TrustChange(_message.Message):
    __slots__ = ("token_key", "removed_token_key", "revocation", "grant", "removed_grant", "signer", "release", "removed_signer")
    TOKEN_KEY_FIELD_NUMBER: _ClassVar[int]
    REMOVED_TOKEN_KEY_FIELD_NUMBER: _ClassVar[int]
    REVOCATION_FIELD_NUMBER: _ClassVar[int]
    GRANT_FIELD_NUMBER: _ClassVar[int]
    REMOVED_GRANT_FIELD_NUMBER: _ClassVar[int]
    SIGNER_FIELD_NUMBER: _ClassVar[int]
    RELEASE_FIELD_NUMBER: _ClassVar[int]
    REMOVED_SIGNER_FIELD_NUMBER: _ClassVar[int]
    token_key: _trust_pb2.TokenKey
    removed_token_key: str
    revocation: _trust_pb2.Revocation
    grant: _trust_pb2.Grant
    removed_grant: str
    signer: _trust_pb2.Signer
    release: _trust_pb2.Release
    removed_signer: str
    def __init__(self, token_key: _Optional[_Union[_trust_pb2.TokenKey, _Mapping]] = ..., removed_token_key: _Optional[str] = ..., revocation: _Optional[_Union[_trust_pb2.Revocation, _Mapping]] = ..., grant: _Optional[_Union[_trust_pb2.Grant, _Mapping]] = ..., removed_grant: _Optional[str] = ..., signer: _Optional[_Union[_trust_pb2.Signer, _Mapping]] = ..., release: _Optional[_Union[_trust_pb2.Release, _Mapping]] = ..., removed_signer: _Optional[str] = ...) -> None: ...

class TrustHeartbeat(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
