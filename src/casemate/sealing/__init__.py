"""Envelope encryption: what rests on a disk or in a database rests sealed.

A key-encryption key (`kek`, `local`) wraps data keys (`keys`); a data key seals
rows (`rows`) and files (`files`); a key of its own authenticates the rows that
decide who may do what (`authority_rows`). Knows neither network nor database.
"""
