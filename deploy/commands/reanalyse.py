"""`appa reanalyse START END`: analyse a past period in windows that run side by side.

Windows that have been published are not computed again, so an interrupted period can be resumed.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.progress import Progress, TaskID
from rich.table import Table

from appa_client import AppaClient, GatewayError, Job, JobState
from deploy.console import (
    DEFAULT_URL,
    AsJson,
    Key,
    Url,
    err,
    gateway_client,
    key_table,
    out,
    print_json,
    step_progress,
    utc_time,
)
from model.domain.errors import InvalidInput
from model.domain.windows import HOUR
from worker.contract.kinds import ReanalysisSpec

__all__ = ["OnJob", "app", "cut", "run_windows", "window_key"]

MAX_ATTEMPTS = 100
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_UNSUCCESSFUL = (JobState.FAILED, JobState.CANCELLED)

OnJob = Callable[[ReanalysisSpec, Job], None]
"""Called with a window and its job after each poll."""


def cut(whole: ReanalysisSpec, window_hours: int) -> list[ReanalysisSpec]:
    """Cut a period into windows, in order; the last one may be shorter.

    Each has a seed of its own, so that the members of neighbours do not repeat their noise.

    Arguments:
        whole: The period and everything else; its margins are those of each window.
        window_hours: Hourly states written by one window.

    Raises:
        InvalidInput: If a window has no hour.
    """
    if window_hours < 1:
        raise InvalidInput(f"Expected windows of 1 hour or more; got {window_hours}.")
    windows = []
    start = whole.start
    while start <= whole.end:
        end = min(start + (window_hours - 1) * HOUR, whole.end)
        seed = (whole.seed + (start - _EPOCH) // HOUR) % 2**31
        windows.append(whole.model_copy(update={"start": start, "end": end, "seed": seed}))
        start = end + HOUR
    return windows


def window_key(spec: ReanalysisSpec, attempt: int) -> str:
    """Return the idempotency key of a window and attempt: equal requests have equal keys."""
    text = json.dumps(spec.model_dump(mode="json"), sort_keys=True)
    return f"reanalyse:{hashlib.sha256(text.encode()).hexdigest()[:32]}:{attempt}"


def run_windows(
    client: AppaClient,
    windows: Sequence[ReanalysisSpec],
    *,
    at_once: int,
    on_job: OnJob,
    poll_seconds: float = 1.0,
) -> list[Job]:
    """Run the windows that have not been published; return the final job of each.

    Windows that failed in an earlier run are retried; one that fails now stays failed.

    Arguments:
        client: Client of the gateway.
        windows: From `cut`.
        at_once: Maximum number of unfinished jobs; more workers than that stay idle.
        on_job: Callback for progress.
        poll_seconds: Time between polls.
    """
    jobs: dict[int, Job] = {}
    waiting, flying = deque(range(len(windows))), set[int]()
    while waiting or flying:
        while waiting and len(flying) < at_once:
            flying.add(number := waiting.popleft())
            jobs[number] = _submit(client, windows[number])
            on_job(windows[number], jobs[number])
            flying -= {number} if jobs[number].done else set()
        if flying:
            time.sleep(poll_seconds)
        for number in sorted(flying):
            jobs[number] = client.job(jobs[number].id)
            on_job(windows[number], jobs[number])
        flying = {number for number in flying if not jobs[number].done}
    return [jobs[number] for number in range(len(windows))]


def _submit(client: AppaClient, spec: ReanalysisSpec) -> Job:
    """Submit a window, and return its job: an earlier one unless that did not succeed."""
    for attempt in range(1, MAX_ATTEMPTS + 1):
        job = client.submit(spec, idempotency_key=window_key(spec, attempt))
        if job.state not in _UNSUCCESSFUL:
            break
    return job


app = typer.Typer(add_completion=False)


class Bars:
    """One bar for the hours of the whole period, one for each window that runs."""

    def __init__(self, progress: Progress, windows: list[ReanalysisSpec]) -> None:
        self.progress = progress
        self.whole = progress.add_task("hours", total=sum(map(_hours, windows)), text="")
        self.bars: dict[str, TaskID] = {}

    def show(self, spec: ReanalysisSpec, job: Job) -> None:
        """Update the bars with the state of a window's job."""
        name = f"{spec.start:%Y-%m-%d %H}"
        if job.done:
            if name in self.bars:
                self.progress.remove_task(self.bars.pop(name))
            self.progress.advance(self.whole, _hours(spec))
        elif job.state is not JobState.QUEUED:
            told = job.progress
            if name not in self.bars:
                self.bars[name] = self.progress.add_task(name, total=None, text="")
            self.progress.update(
                self.bars[name],
                completed=told.step,
                total=told.steps or None,
                text=told.phase,
            )


def _hours(spec: ReanalysisSpec) -> int:
    return (spec.end - spec.start) // HOUR + 1


def _specification(**values: Any) -> ReanalysisSpec:
    try:
        return ReanalysisSpec.model_validate({k: v for k, v in values.items() if v is not None})
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise typer.BadParameter("; ".join(lines)) from None


def _row(client: AppaClient, spec: ReanalysisSpec, job: Job) -> dict[str, Any]:
    used = None
    if job.state is JobState.SUCCEEDED:
        try:
            used = client.analysis(job.analysis_id).observations.get("used", 0)
        except GatewayError:  # deleted meanwhile: the job is done all the same
            used = None
    took = job.finished - job.started if job.finished and job.started else None
    return {
        "start": spec.start.isoformat(),
        "end": spec.end.isoformat(),
        "state": job.state.value,
        "job_id": job.id,
        "analysis_id": job.analysis_id,
        "observations_used": used,
        "seconds": round(took.total_seconds(), 1) if took else None,
        "error": f"{job.error.code}: {job.error.message}" if job.error and not used else None,
    }


def _table(rows: list[dict[str, Any]]) -> Table:
    columns = ("window", "state", "analysis", "values used", "seconds", "error")
    table = key_table(*columns, keys=("analysis",))
    for row in rows:
        colour = "green" if row["state"] == "succeeded" else "red"
        table.add_row(
            f"{row['start'][:13]} to {row['end'][:13]}",
            f"[{colour}]{row['state']}[/]",
            row["analysis_id"],
            *("" if row[n] is None else str(row[n]) for n in ("observations_used", "seconds")),
            row["error"] or "",
        )
    return table


@app.command()
def reanalyse(
    start: Annotated[str, typer.Argument(help="First hour (UTC), such as 2003-10-01T00.")],
    end: Annotated[str, typer.Argument(help="Last hour (UTC), included.")],
    url: Url = DEFAULT_URL,
    key: Key = None,
    window_hours: Annotated[int, typer.Option(min=1, help="Hours written by one window.")] = 24,
    margin_hours: Annotated[
        int, typer.Option(min=0, max=48, help="Hours computed on both sides and not written.")
    ] = 6,
    at_once: Annotated[int, typer.Option(min=1, max=60, help="Windows in the queue.")] = 8,
    members: Annotated[int | None, typer.Option(help="Ensemble members.")] = None,
    model: Annotated[str | None, typer.Option(help="Checkpoint; see /v1/capabilities.")] = None,
    steps: Annotated[int | None, typer.Option(help="Diffusion steps.")] = None,
    seed: Annotated[int | None, typer.Option(help="Each window's seed is made of it.")] = None,
    outputs: Annotated[str | None, typer.Option(help="Comma-separated formats.")] = None,
    background: Annotated[
        str, typer.Option(help="`climatology`: no window depends on another; or `auto`.")
    ] = "climatology",
    as_json: AsJson = False,
) -> None:
    """Reanalyse a past period with all its observations, in windows over all model workers.

    The same command takes an interrupted run up again: finished windows are not computed twice.
    """
    whole = _specification(
        start=utc_time(start),
        end=utc_time(end),
        margin_hours=margin_hours,
        members=members,
        model=model,
        steps=steps,
        seed=seed,
        outputs=outputs.split(",") if outputs else None,
        background=background,
    )
    windows = cut(whole, window_hours)
    with gateway_client(url, key) as client:
        try:
            with step_progress(quiet=as_json) as progress:
                bars = Bars(progress, windows)
                jobs = run_windows(client, windows, at_once=at_once, on_job=bars.show)
        except KeyboardInterrupt:
            err.print("Queued windows go on; the same command takes the rest up again.")
            raise typer.Exit(130) from None
        rows = [_row(client, *pair) for pair in zip(windows, jobs, strict=True)]
    if as_json:
        print_json(rows)
    else:
        out.print(_table(rows))
    if any(row["state"] != "succeeded" for row in rows):
        err.print("Some windows did not succeed; the same command tries them again.")
        raise typer.Exit(1)
