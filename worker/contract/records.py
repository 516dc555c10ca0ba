"""Define what all records share: their base class, the problem of a failed one, identifiers.

Identifiers sort by creation time: a kind, the UTC time in milliseconds, a random part.
"""

import secrets
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from model.domain.errors import AppaError

__all__ = ["NOBODY", "Problem", "first_id", "new_id", "owner_of", "utc_now"]

NOBODY = ""
"""Owner of what the installation sent itself, or what was sent without an API key."""


def utc_now() -> datetime:
    """Return the present by the real clock (aware, UTC)."""
    return datetime.now(UTC)


def owner_of(api_key: str) -> str:
    """Return the owner under which a record is listed: the id of its API key, or `NOBODY`.

    Arguments:
        api_key: As the record holds it: an id, `source:NAME` for a source of the feeds, or empty.
    """
    return NOBODY if ":" in api_key else api_key


class Record(BaseModel):
    """Base of what is kept in Redis and shown over HTTP."""

    model_config = ConfigDict(extra="forbid")


class Problem(Record):
    """Why a job or batch did not succeed."""

    code: str = Field(description="Stable code of the error.")
    message: str = Field(description="What was expected, what came, what to do.")
    retryable: bool = Field(
        default=False, description="Whether trying again unchanged may succeed."
    )
    context: dict[str, Any] = Field(
        default={}, description="Values for machines: field, expected, got."
    )

    @classmethod
    def of(cls, error: BaseException) -> "Problem":
        """Return the problem of an error; other errors than `AppaError` get the code `internal_error`."""
        if isinstance(error, AppaError):
            return cls(
                code=error.code,
                message=error.message,
                retryable=error.retryable,
                context={k: str(v) for k, v in error.context.items()},
            )
        name = type(error).__name__
        return cls(code="internal_error", message=f"{name}: {error}", context={"type": name})


def new_id(kind: str, now: datetime | None = None) -> str:
    """Return a unique name such as `job-20250101t063000123-9f3c1a20`.

    Arguments:
        kind: `batch`, `job` or `an` (a published result).
        now: UTC; the present when absent.
    """
    return f"{first_id(kind, now or datetime.now(UTC))}-{secrets.token_hex(4)}"


def first_id(kind: str, time: datetime) -> str:
    """Return the text that ids of a time (UTC) begin with, to the millisecond; it sorts before them."""
    stamp = time.strftime("%Y%m%dt%H%M%S") + f"{time.microsecond // 1000:03d}"
    return f"{kind}-{stamp}"
