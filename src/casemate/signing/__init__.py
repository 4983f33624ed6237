"""Signatures over data and models, and what they are checked against.

Public keys are admitted or refused, envelopes are DSSE, trees are RFC 6962,
statements are in-toto, checkpoints are C2SP notes. Bytes go in, proof types or
errors come out; nothing here reads a file, a clock or a network.
"""
