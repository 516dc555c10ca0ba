"""A Valkey server of its own for tests that bring one."""

from tests.worker.conftest import own_broker

__all__ = ["own_broker"]
