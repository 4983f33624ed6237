"""Casemate: a gate, seals and signatures for gRPC services that hold something worth stealing.

Other teams use `casemate.gate` in front of their own service, `casemate.client`
to call ours, and `casemate.sealing` and `casemate.signing` on their own data.
Importing this package changes nothing in the process: no TLS setting, no logger,
no environment.
"""
