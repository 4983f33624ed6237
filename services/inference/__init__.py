"""The inference service: signed models in, predictions out.

Everything below the servicers is free of gRPC and of any host: methods take a
`Caller` and a parsed request and return bytes or an iterator of them. `app` is
the only module that wires. Nothing here can reach a database.
"""
