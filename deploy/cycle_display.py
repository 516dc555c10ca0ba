"""Cycles on the terminal: a table, one line for a change, and the explanation of one."""

from datetime import UTC, datetime

from rich.console import Console
from rich.table import Table

from worker.jobs.cycle import CycleRecord, CycleState
from worker.jobs.cycle_explanation import CycleExplanation

__all__ = ["change_line", "cycle_table", "show_explanation"]

_COLOURS = {
    CycleState.PUBLISHED: "green",
    CycleState.FAILED: "red",
    CycleState.SKIPPED: "yellow",
    CycleState.CANCELLED: "yellow",
    CycleState.SUBMITTED: "cyan",
}


def _time(time: datetime | None, form: str = "%m-%d %H:%M") -> str:
    return f"{time.astimezone(UTC):{form}}" if time else ""


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    if abs(seconds) < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if abs(seconds) < 7200 else f"{seconds / 3600:.1f} h"


def _state(record: CycleRecord) -> str:
    return f"[{_COLOURS.get(record.state, 'default')}]{record.state.value}[/]"


def _remark(record: CycleRecord) -> str:
    caught_up = "caught up" if record.caught_up else ""
    return "; ".join(text for text in (caught_up, record.message) if text)


def cycle_table(records: list[CycleRecord]) -> Table:
    """One row for each cycle."""
    columns = ("cycle", "state", "rev", "cut-off", "decided after", "published after", "analysis")
    table = Table(*columns, "remark")
    for record in records:
        decided = record.behind_seconds if record.decided else None
        table.add_row(
            record.id,
            _state(record),
            str(record.revision),
            _time(record.cut_off),
            _duration(decided),
            _duration(record.freshness_seconds),
            record.analysis_id,
            _remark(record),
        )
    return table


def change_line(record: CycleRecord) -> str:
    """What a watcher is told when a cycle has moved."""
    fresh = record.freshness_seconds
    what = {
        CycleState.WAITING: f"cut-off at {_time(record.cut_off)}",
        CycleState.SUBMITTED: record.job_id,
        CycleState.PUBLISHED: f"{record.analysis_id}, {_duration(fresh)} after the cut-off",
    }.get(record.state, "")
    remark = _remark(record)
    rest = "  ".join(text for text in (what, f"({remark})" if remark else "") if text)
    return f"{record.id}  v{record.revision}  {_state(record)}  {rest}".rstrip()


def show_explanation(found: CycleExplanation, console: Console) -> None:
    """The explanation as paragraphs and tables."""
    console.print(cycle_table([found.cycle]))
    if found.cycle.analysis_id and found.cycle.analysis_id in found.revisions:
        window = f"({_time(found.window_start)}, {_time(found.window_end)}]"
        background = ", ".join(
            f"{k} {v}" for k, v in found.background.items() if v not in ("", None)
        )
        console.print(
            f"window {window}, arrivals to {_time(found.cycle.cut_off)} UTC", markup=False
        )
        console.print(f"background: {background or 'none'}", markup=False)
        console.print(f"flags: {', '.join(found.flags) or 'none'}", markup=False)
        console.print(f"analyses of this time: {', '.join(found.revisions)}", markup=False)
    else:
        console.print("No analysis of it is published.")
        return
    if found.used is None:
        counts = ", ".join(f"{name} {n}" for name, n in found.outcomes.items())
        console.print(f"values by outcome: {counts} (no feedback file was asked for)", markup=False)
        return
    console.print(_outcomes(found))
    if found.changed is not None:
        console.print(_changed(found))


def _outcomes(found: CycleExplanation) -> Table:
    table = Table("network", "outcome", "values", "why", title="Observations of the window")
    for network, count in (found.used or {}).items():
        table.add_row(network, "[green]used[/]", str(count), "")
    for late in found.late:
        why = f"arrived {_time(late.first)} to {_time(late.last)}, after the cut-off"
        table.add_row(late.network, "late", str(late.count), why)
    for entry in found.rejected:
        table.add_row(entry.network, entry.outcome, str(entry.count), entry.meaning)
    return table


def _changed(found: CycleExplanation) -> Table:
    change = found.changed
    assert change is not None  # noqa: S101  # asked before
    title = f"Against {change.from_flavour} v{change.from_revision}: {change.kept} values kept"
    table = Table("network", "change", "values", "why", title=title)
    for network, count in change.added.items():
        table.add_row(network, "added", str(count), "late or rejected before")
    for entry in change.dropped:
        table.add_row(entry.network, f"dropped: {entry.outcome}", str(entry.count), entry.meaning)
    return table
