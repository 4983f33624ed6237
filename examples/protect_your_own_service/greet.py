"""A client of the greeter: its tokens are asked for, kept and renewed by the interceptor.

Run: `python -m examples.protect_your_own_service.greet IDENTITY AUTH ADDRESS NAME`.
"""

import sys
from contextlib import closing
from pathlib import Path

import grpc

from casemate.client.interceptors import BearerInterceptor
from casemate.client.session import Endpoints, Session
from casemate.errors import CasemateError
from casemate.transport.certificates import CertificateSource
from casemate.transport.channel import RotatingChannel
from examples.protect_your_own_service import greeter_pb2, greeter_pb2_grpc

identity, auth, address, name = sys.argv[1:]
source = CertificateSource(Path(identity))
domain = source.current.spiffe_id.split("/")[2]
endpoints = Endpoints(auth=auth, inference="", datasets="")
with (
    closing(Session(source=source, endpoints=endpoints, trust_domain=domain)) as session,
    RotatingChannel(target=address, service_name=f"greeter.{domain}", source=source) as channel,
):
    greeter = greeter_pb2_grpc.GreeterStub(
        grpc.intercept_channel(channel, BearerInterceptor(session, audience="greeter"))
    )
    try:
        print(greeter.Greet(greeter_pb2.GreetRequest(name=name), timeout=10).greeting)
    except CasemateError as error:
        sys.exit(f"no token: {error}")
    except grpc.RpcError as error:
        request_id = dict(error.trailing_metadata() or ()).get("casemate-request-id", "none")
        sys.exit(f"refused: {error.code().name}: {error.details()} (request {request_id})")
