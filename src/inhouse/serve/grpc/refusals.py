"""Refusals as gRPC's clients expect them: a status, and details that programs can read (google.rpc)."""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf import any_pb2
from google.rpc import error_details_pb2, status_pb2

from inhouse.serve.errors import ApiError

CODES = {
    400: grpc.StatusCode.INVALID_ARGUMENT, 401: grpc.StatusCode.UNAUTHENTICATED,
    403: grpc.StatusCode.PERMISSION_DENIED, 404: grpc.StatusCode.NOT_FOUND, 408: grpc.StatusCode.DEADLINE_EXCEEDED,
    409: grpc.StatusCode.FAILED_PRECONDITION, 413: grpc.StatusCode.RESOURCE_EXHAUSTED,
    429: grpc.StatusCode.RESOURCE_EXHAUSTED, 503: grpc.StatusCode.UNAVAILABLE, 504: grpc.StatusCode.DEADLINE_EXCEEDED,
}  # fmt: skip
OVERLOADED = "overloaded"
DOMAIN = "inhouse"
DETAILS = "grpc-status-details-bin"


def code_of(error: ApiError) -> grpc.StatusCode:
    """The status; a full queue is RESOURCE_EXHAUSTED whether there was no place or no turn."""
    if error.code == OVERLOADED:
        return grpc.StatusCode.RESOURCE_EXHAUSTED
    return CODES.get(error.status, grpc.StatusCode.INTERNAL)


def details_of(error: ApiError) -> bytes:
    """A serialised google.rpc.Status: which code of ours, which field, when to try again."""
    told: list[Any] = [error_details_pb2.ErrorInfo(reason=error.code or "invalid_request", domain=DOMAIN)]
    if error.param is not None:
        field = error_details_pb2.BadRequest.FieldViolation(field=error.param, description=error.message)
        told.append(error_details_pb2.BadRequest(field_violations=[field]))
    if error.status in (429, 503):
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromSeconds(error.retry_after_s)
        told.append(retry)
    status = status_pb2.Status(code=code_of(error).value[0], message=error.message)
    for each in told:
        packed = any_pb2.Any()
        packed.Pack(each)
        status.details.append(packed)
    serialised: bytes = status.SerializeToString()
    return serialised


async def refuse(context: Any, error: ApiError, request_id: str) -> None:
    """End the call. Raises what gRPC ends a call with."""
    trailing = (("x-request-id", request_id), (DETAILS, details_of(error)))
    await context.abort(code_of(error), error.message, trailing)
