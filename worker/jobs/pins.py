"""Pinned results: kept whatever their age, until someone takes the pin out.

A pin is a small file named after the result. It is written before one looks whether the result is
still there, and retention looks for it after it has taken a result away (and puts it back), so a
result that was pinned with success is never deleted.
"""

from datetime import datetime

from pydantic import Field, ValidationError

from model.domain.errors import InvalidInput
from worker.jobs.job import Record, utc_now
from worker.jobs.layout import Layout
from worker.jobs.small_file import replace_text

__all__ = ["NoSuchAnalysis", "Pin", "is_pinned", "pin", "pins", "unpin"]


class NoSuchAnalysis(InvalidInput):
    """An id that no published result has."""

    code = "not_found"


class Pin(Record):
    """Why a result is kept."""

    analysis_id: str = Field(description="The result.")
    created: datetime = Field(default_factory=utc_now, description="When it was pinned (UTC).")
    by: str = Field(default="", description="API key that pinned it; empty for the command line.")
    note: str = Field(default="", max_length=500, description="What for.")


def pin(layout: Layout, wanted: Pin) -> Pin:
    """Keeps a result; one that is pinned keeps its first pin.

    Raises:
        NoSuchAnalysis: If there is no such result.
    """
    path = layout.pin(wanted.analysis_id)
    layout.pins.mkdir(exist_ok=True)
    known = _read(layout, wanted.analysis_id)
    if known is None:
        replace_text(path, wanted.model_dump_json(indent=1))
    if not layout.manifest(wanted.analysis_id).exists():
        path.unlink(missing_ok=True)
        raise NoSuchAnalysis(
            f"Expected the id of a published analysis; got '{wanted.analysis_id}'.",
            analysis_id=wanted.analysis_id,
        )
    return known or wanted


def unpin(layout: Layout, analysis_id: str) -> bool:
    """Takes the pin out; returns whether there was one."""
    try:
        layout.pin(analysis_id).unlink()
    except FileNotFoundError:
        return False
    return True


def is_pinned(layout: Layout, analysis_id: str) -> bool:
    """Whether a result must be kept."""
    return layout.pin(analysis_id).exists()


def pins(layout: Layout) -> list[Pin]:
    """All pins, oldest first."""
    if not layout.pins.is_dir():
        return []
    names = [path.name for path in layout.pins.iterdir() if not path.name.startswith(".")]
    found = [p for name in names if (p := _read(layout, name)) is not None]
    return sorted(found, key=lambda p: p.created)


def _read(layout: Layout, analysis_id: str) -> Pin | None:
    """A pin is a pin even if its text was damaged."""
    try:
        return Pin.model_validate_json(layout.pin(analysis_id).read_bytes())
    except FileNotFoundError:
        return None
    except (ValidationError, ValueError):
        return Pin(analysis_id=analysis_id, note="(unreadable)")
