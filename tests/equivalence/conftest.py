"""Fixtures of the plugin's tests and of the consumer's."""

from tests.feast.conftest import data, online_store, sqlite_store, store  # noqa: F401 - fixtures, found here by name
from tests.support.world import wipe, world  # noqa: F401
