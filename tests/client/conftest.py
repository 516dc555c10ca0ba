"""The gateway of `tests/service`, for tests of the client."""

from tests.service.conftest import gateway, http, start_gateway, stores, valkey_url_shared

__all__ = ["gateway", "http", "start_gateway", "stores", "valkey_url_shared"]
