"""Faults are tried on the same real server and worker processes as the tests of the worker."""

from tests.worker.conftest import own_broker, prefix, processes, shared_broker, stores

__all__ = ["own_broker", "prefix", "processes", "shared_broker", "stores"]
