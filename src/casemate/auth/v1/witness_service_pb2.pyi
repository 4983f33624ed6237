from casemate.policy.v1 import policy_pb2 as _policy_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class CosignCheckpointRequest(_message.Message):
    __slots__ = ("checkpoint", "old_size", "consistency_proof", "log_key")
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    OLD_SIZE_FIELD_NUMBER: _ClassVar[int]
    CONSISTENCY_PROOF_FIELD_NUMBER: _ClassVar[int]
    LOG_KEY_FIELD_NUMBER: _ClassVar[int]
    checkpoint: str
    old_size: int
    consistency_proof: _containers.RepeatedScalarFieldContainer[bytes]
    log_key: str
    def __init__(self, checkpoint: _Optional[str] = ..., old_size: _Optional[int] = ..., consistency_proof: _Optional[_Iterable[bytes]] = ..., log_key: _Optional[str] = ...) -> None: ...

class CosignCheckpointResponse(_message.Message):
    __slots__ = ("cosignature", "known_size", "witness_key")
    COSIGNATURE_FIELD_NUMBER: _ClassVar[int]
    KNOWN_SIZE_FIELD_NUMBER: _ClassVar[int]
    WITNESS_KEY_FIELD_NUMBER: _ClassVar[int]
    cosignature: str
    known_size: int
    witness_key: str
    def __init__(self, cosignature: _Optional[str] = ..., known_size: _Optional[int] = ..., witness_key: _Optional[str] = ...) -> None: ...
