"""Serving the application with uvicorn."""

import uvicorn

from service.logs import configure_logging
from service.main import create_app
from service.settings import GatewaySettings


def serve(settings: GatewaySettings) -> None:
    """Serves until SIGTERM or Ctrl-C; open requests get some seconds to end."""
    configure_logging(settings.log_format, settings.log_level)
    uvicorn.run(
        create_app(settings),
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=10,
        timeout_keep_alive=30,
        backlog=2048,
    )
