"""The fixtures of the consumer's tests."""

from tests.support.world import wipe, world  # noqa: F401 - fixtures, found here by every test of the folder
