"""An error crosses the wire by its class, code and reason; its text does not."""

from __future__ import annotations

import asyncio
import logging
from datetime import timedelta

import grpc
import pytest
from google.protobuf import duration_pb2
from google.rpc import error_details_pb2, status_pb2
from hypothesis import given
from hypothesis import strategies as st

from casemate import errors
from casemate.errors import CasemateError, Code, FieldViolation, Reason
from casemate.transport.channel import RotatingChannel
from casemate.transport.registry import RegisteredService
from casemate.transport.server import build_aio_server, build_server
from casemate.transport.status import DETAILS_KEY, from_rpc_error, to_status
from tests.transport.conftest import QUICK

CANARY = "postgres://user:hunter2@db/secret"
CLASSES = sorted(
    {
        kind
        for kind in vars(errors).values()
        if isinstance(kind, type) and issubclass(kind, CasemateError) and kind is not CasemateError
    },
    key=lambda kind: kind.__name__,
)


class Raised(grpc.RpcError):
    """What a client would be given for a status."""

    def __init__(self, code, details="", trailing=()):
        super().__init__()
        self._parts = (code, details, trailing)

    def code(self):
        return self._parts[0]

    def details(self):
        return self._parts[1]

    def trailing_metadata(self):
        return self._parts[2]


def over_the_wire(error: BaseException, request_id: str = "r-1") -> CasemateError:
    status = to_status(error, request_id=request_id)
    return from_rpc_error(Raised(status.code, status.details, status.trailing))


@pytest.mark.parametrize("retry_after", [None, timedelta(seconds=1.5), timedelta(milliseconds=2)])
@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_each_call_is_told_its_own_id_and_all_else_alike(kind, retry_after):
    """Ids of the usual length are put into what was spelled before; others are not: the twins."""
    error = kind(CANARY, retry_after=retry_after)
    told = {}
    for request_id in ("0123456789abcdef", "fedcba9876543210", "\u00e9" * 8, "0123456789abcde", "0" * 17):
        [(_, details)] = to_status(error, request_id=request_id).trailing
        rich = status_pb2.Status.FromString(details)
        info = error_details_pb2.ErrorInfo()
        assert rich.details[0].Unpack(info)
        assert dict(info.metadata) == {"request_id": request_id}
        info.metadata.clear()
        rich.details[0].Pack(info)
        told[request_id] = rich.SerializeToString(deterministic=True)
    assert len(set(told.values())) == 1


@pytest.mark.parametrize("kind", CLASSES, ids=lambda kind: kind.__name__)
def test_every_class_comes_back_as_itself(kind):
    back = over_the_wire(kind(CANARY, retry_after=timedelta(seconds=1.5)))
    # A process that cannot start has no caller to tell; to a caller it is a fault of ours like any other.
    expected = errors.InternalError if kind is errors.ConfigurationError else kind
    assert type(back) is expected
    assert back.reason is kind.default_reason
    assert back.retry_after == timedelta(seconds=1.5)
    assert CANARY not in str(back)
    assert "r-1" in str(back)


@pytest.mark.parametrize("reason", list(Reason))
def test_every_reason_comes_back_as_itself(reason):
    assert over_the_wire(errors.PermissionDenied(reason=reason)).reason is reason


@pytest.mark.parametrize("code", list(Code))
def test_every_code_has_a_class(code):
    assert from_rpc_error(Raised(grpc.StatusCode[code.value])).code is code


def test_an_error_of_the_aio_client_is_read_alike():
    status = to_status(errors.DigestMismatch(), request_id="r-2")
    raised = grpc.aio.AioRpcError(
        status.code, grpc.aio.Metadata(), grpc.aio.Metadata(*status.trailing), details=status.details
    )
    assert type(from_rpc_error(raised)) is errors.DigestMismatch


def test_an_error_without_a_status_is_internal():
    assert type(from_rpc_error(grpc.RpcError())) is errors.InternalError
    assert to_status(grpc.RpcError(CANARY), request_id="r").code is grpc.StatusCode.INTERNAL


def test_violations_come_back_in_order():
    violations = (FieldViolation("a.b", "must be positive"), FieldViolation("c", "is missing"))
    assert over_the_wire(errors.InvalidRequest(violations=violations)).violations == violations


def test_too_many_violations_are_cut_to_what_metadata_holds():
    many = tuple(FieldViolation(f"field_{n}", "x" * 100) for n in range(1000))
    status = to_status(errors.InvalidRequest(violations=many), request_id="r")
    assert len(status.trailing[0][1]) < 4_200
    back = from_rpc_error(Raised(status.code, status.details, status.trailing))
    assert back.violations == many[: len(back.violations)]
    assert len(back.violations) > 10


def test_an_unknown_exception_is_internal_and_logged_once_with_its_traceback(caplog):
    with caplog.at_level(logging.INFO):
        status = to_status(ValueError(CANARY), request_id="r-77")
    assert status.code is grpc.StatusCode.INTERNAL
    assert CANARY not in repr(status)
    assert b"r-77" in status.trailing[0][1]
    (record,) = caplog.records
    assert record.exc_info[1].args == (CANARY,)
    assert "r-77" in record.getMessage()


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.UNAVAILABLE),
        # It refused us; the caller's own right to call is another matter.
        (grpc.StatusCode.PERMISSION_DENIED, grpc.StatusCode.INTERNAL),
        (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.INTERNAL),
    ],
)
def test_a_failed_call_to_another_service_does_not_pass_its_code_on(code, expected):
    status = to_status(Raised(code, CANARY), request_id="r")
    assert status.code is expected
    assert CANARY not in repr(status)


def test_cancellation_is_cancelled():
    assert to_status(asyncio.CancelledError(), request_id="r").code is grpc.StatusCode.CANCELLED


@pytest.mark.parametrize("details", [b"", b"\xff\xff\xff", b"\x1a\x02\x0a\x7f"])
def test_details_that_cannot_be_read_leave_the_code_to_speak(details):
    back = from_rpc_error(Raised(grpc.StatusCode.NOT_FOUND, "gone", ((DETAILS_KEY, details),)))
    assert type(back) is errors.NotFound
    assert str(back) == "gone"


@given(serialized=st.binary(max_size=200))
def test_no_details_make_the_reader_fail(serialized):
    back = from_rpc_error(Raised(grpc.StatusCode.ABORTED, "", ((DETAILS_KEY, serialized),)))
    assert back.code is Code.ABORTED


@pytest.mark.parametrize("seconds", [2**62, -(2**62)])
def test_a_retry_time_beyond_all_calendars_is_left_out(seconds):
    rich = status_pb2.Status(code=10)
    rich.details.add().Pack(error_details_pb2.RetryInfo(retry_delay=duration_pb2.Duration(seconds=seconds)))
    back = from_rpc_error(Raised(grpc.StatusCode.ABORTED, "", ((DETAILS_KEY, rich.SerializeToString()),)))
    assert back.retry_after is None


def test_details_of_another_domain_do_not_speak_for_us():
    rich = status_pb2.Status(code=3)
    rich.details.add().Pack(error_details_pb2.ErrorInfo(reason="SIGNATURE_INVALID", domain="example.com"))
    back = from_rpc_error(Raised(grpc.StatusCode.INVALID_ARGUMENT, "", ((DETAILS_KEY, rich.SerializeToString()),)))
    assert type(back) is errors.InvalidRequest


def test_a_reason_cannot_turn_a_code_into_another():
    status = to_status(errors.SignatureInvalid(), request_id="r")
    back = from_rpc_error(Raised(grpc.StatusCode.UNAVAILABLE, "", status.trailing))
    assert type(back) is errors.Unavailable


def failing_service(error: BaseException) -> RegisteredService:
    def fail(_request, context):
        try:
            raise error
        except Exception as caught:  # noqa: BLE001  # as the outermost interceptor does
            status = to_status(caught, request_id="r-9").with_trailing(("casemate-request-id", "r-9"))
            context.abort_with_status(status)

    return RegisteredService("test.Fail", {"Go": grpc.unary_unary_rpc_method_handler(fail)})


def aio_failing_service(error: BaseException) -> RegisteredService:
    async def fail(_request, context):
        try:
            raise error
        except Exception as caught:  # noqa: BLE001  # as the outermost interceptor does
            await context.abort_with_status(to_status(caught, request_id="r-9"))

    return RegisteredService("test.Fail", {"Go": grpc.unary_unary_rpc_method_handler(fail)})


def call(port, client_source) -> grpc.RpcError:
    with (
        RotatingChannel(target=f"127.0.0.1:{port}", service_name="auth", source=client_source) as channel,
        pytest.raises(grpc.RpcError) as caught,
    ):
        channel.unary_unary("/test.Fail/Go")(b"")
    return caught.value


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ValueError(CANARY), errors.InternalError),
        (errors.NotFound(CANARY), errors.NotFound),
        (errors.DigestMismatch(CANARY), errors.DigestMismatch),
    ],
    ids=["unknown", "ours", "narrower"],
)
def test_the_text_of_an_exception_does_not_reach_the_wire(server_source, client_source, error, expected):
    server = build_server(
        source=server_source, services=[failing_service(error)], interceptors=[], address="127.0.0.1:0", lame_duck=QUICK
    )
    server.start()
    try:
        raised = call(server.port, client_source)
    finally:
        server.stop()
    assert type(from_rpc_error(raised)) is expected
    assert ("casemate-request-id", "r-9") in [tuple(entry) for entry in raised.trailing_metadata()]
    assert "hunter2" not in repr((raised.details(), raised.trailing_metadata(), raised.debug_error_string()))


async def test_the_text_of_an_exception_does_not_reach_the_wire_of_the_aio_server(server_source, client_source):
    server = build_aio_server(
        source=server_source,
        services=[aio_failing_service(ValueError(CANARY))],
        interceptors=[],
        address="127.0.0.1:0",
        lame_duck=QUICK,
    )
    await server.start()
    try:
        raised = await asyncio.to_thread(call, server.port, client_source)
    finally:
        await server.stop()
    assert type(from_rpc_error(raised)) is errors.InternalError
    assert "hunter2" not in repr((raised.details(), raised.trailing_metadata(), raised.debug_error_string()))
