"""The TLS floor for the whole suite, and the plugins that hold fixtures which every room shares."""

import os

from casemate.transport.floor import raise_floor

raise_floor(os.environ)  # grpc reads the real environment, once, when the first test imports it

pytest_plugins = [
    "tests.support.authority",
    "tests.support.canary",
    "tests.support.foreign",
    "tests.support.keks",
    "tests.support.postgres",
    "tests.support.records",
]
