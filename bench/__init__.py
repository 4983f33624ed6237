"""Measurements. Run by `make bench-NAME`; `JSON=1` prints one object."""
