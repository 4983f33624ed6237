"""Who may call what: one decision for every method of every server.

`casemate.gate.core` decides and knows no network; `casemate.gate.adapters` carry
its decisions to grpcio's synchronous server and to `grpc.aio`.
"""
