"""The description of the API as a gateway without settings gives it, made once in each test process."""

from functools import cache
from typing import Any

from service.app import create_app
from service.settings import GatewaySettings

__all__ = ["openapi_document"]


@cache
def openapi_document() -> dict[str, Any]:
    """The whole document, to be read only; making it takes a second of processor time."""
    return create_app(GatewaySettings()).openapi()
