"""PostgreSQL: pools that verify whom they talk to, migrations, and a server of our own for one machine.

`casemate.storage.pool` connects, `casemate.storage.migrations` brings a schema
up to date, `casemate.storage.embedded` runs PostgreSQL from a wheel.
"""
