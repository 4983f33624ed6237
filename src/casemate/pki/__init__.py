"""A small certificate authority for development and for one machine.

`authority` keeps the CA and issues leaves, `profiles` says what is in each
certificate, `names` what a SPIFFE ID may look like, `leaves` how a leaf lies in
its folder and when it wants renewal. On a larger site SPIRE or an existing CA
issues leaves of the same profiles, and nothing here is needed.
"""
