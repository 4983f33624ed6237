"""Fixtures that every room shares come from the plugins named here."""

pytest_plugins = ["tests.support.authority", "tests.support.postgres"]
