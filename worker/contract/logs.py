"""Configure the log lines of every process of the service: one event and its values a line.

Records of structlog and of the standard library take the same form, for people or as one JSON
object a line. Lines of our own packages appear from the level in the settings on, those of
libraries from `WARNING` on. Lines that are about a request, or about a job or an upload of one, have its
`request_id` and `trace_id` (`worker.contract.traces`), in whichever process.
"""

import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import Processor

from worker.contract.settings import InstallationSettings
from worker.contract.traces import add_ids

__all__ = ["configure_logs"]

_OWN_PACKAGES = ("model", "worker", "service", "deploy", "lab")


def configure_logs(settings: InstallationSettings, stream: TextIO | None = None) -> None:
    """Send the log records of this process to one stream in one form.

    Arguments:
        settings: Format and level.
        stream: Where lines are written; standard output when absent.
    """
    stream = stream or sys.stdout
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        add_ids,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=structlog.stdlib.LoggerFactory(),
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(stream)
    remove_meta = structlog.stdlib.ProcessorFormatter.remove_processors_meta
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[remove_meta, *_renderers(settings.log_format, stream)],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for package in _OWN_PACKAGES:
        logging.getLogger(package).setLevel(settings.log_level)


def _renderers(log_format: str, stream: TextIO) -> list[Processor]:
    """Return the last processors; traces have no local variables, which may hold keys."""
    if log_format == "json":
        return [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=stream.isatty(), exception_formatter=plain)]
