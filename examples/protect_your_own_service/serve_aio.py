"""The gate in front of somebody else's servicer, on `grpc.aio`.

Run: `python -m examples.protect_your_own_service.serve_aio IDENTITY AUTH ADDRESS AUDIT`; ends with its standard input.
"""

import asyncio
import os
import sys
from pathlib import Path

from casemate.transport.floor import raise_floor

raise_floor(os.environ)  # before anything imports grpc

from casemate.gate.adapters.protection import Protection, registered
from examples.protect_your_own_service import greeter_pb2, greeter_pb2_grpc, servicer


async def main(identity: str, auth: str, address: str, audit: str) -> None:
    services = greeter_pb2.DESCRIPTOR.services_by_name.values()
    with Protection(
        identity=Path(identity), auth=auth, audience="greeter", services=services, audit_file=Path(audit)
    ) as protection:
        greeter = registered(greeter_pb2_grpc.add_GreeterServicer_to_server, servicer.AioGreeter())
        server = protection.aio_server([greeter], address=address)
        await server.start()
        print(server.port, flush=True)
        await asyncio.to_thread(sys.stdin.read)
        await server.stop()


asyncio.run(main(*sys.argv[1:]))
