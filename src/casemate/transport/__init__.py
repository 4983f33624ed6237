"""TLS, servers, channels and status: the only makers of anything that listens or dials.

Nothing is imported here: `floor` must be able to run before grpc is loaded.
"""
