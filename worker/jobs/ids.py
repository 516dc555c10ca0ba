"""Identifiers that sort by creation time: a kind, the UTC time in milliseconds, a random part."""

import secrets
from datetime import UTC, datetime

__all__ = ["new_id"]


def new_id(kind: str, now: datetime | None = None) -> str:
    """A unique name such as `job-20250101t063000123-9f3c1a20`.

    Arguments:
        kind: `batch`, `job` or `an` (a published result).
        now: UTC; the present when absent.
    """
    now = now or datetime.now(UTC)
    stamp = now.strftime("%Y%m%dt%H%M%S") + f"{now.microsecond // 1000:03d}"
    return f"{kind}-{stamp}-{secrets.token_hex(4)}"
