"""What callers of Casemate use: sessions, datasets, models, administration.

Blocking, and safe to share between threads. A process that loads this package
keeps its own TLS settings.
"""
