"""`appa reanalyse START END`: a past period in windows that run side by side."""

from datetime import timedelta
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from deploy.gateway_access import (
    DEFAULT_URL,
    AsJson,
    Key,
    Url,
    err,
    gateway_client,
    out,
    print_json,
)
from deploy.reanalysis import cut, run_windows
from deploy.times import utc_time
from service.client import AppaClient, GatewayError
from worker.jobs.job import JobRecord, JobState
from worker.jobs.kinds import ReanalysisSpec

__all__ = ["app"]

app = typer.Typer(help=__doc__, add_completion=False)


class Bars:
    """One bar for the hours of the whole period, one for each window that runs."""

    def __init__(self, progress: Progress, windows: list[ReanalysisSpec]) -> None:
        self.progress = progress
        self.whole = progress.add_task("hours", total=sum(map(_hours, windows)), text="")
        self.bars: dict[str, TaskID] = {}

    def show(self, spec: ReanalysisSpec, job: JobRecord) -> None:
        """Moves the bars to the state of a window's job."""
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
                text=told.phase.value,
            )


def _hours(spec: ReanalysisSpec) -> int:
    return (spec.end - spec.start) // timedelta(hours=1) + 1


def _specification(**values: Any) -> ReanalysisSpec:
    try:
        return ReanalysisSpec.model_validate({k: v for k, v in values.items() if v is not None})
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise typer.BadParameter("; ".join(lines)) from None


def _row(client: AppaClient, spec: ReanalysisSpec, job: JobRecord) -> dict[str, Any]:
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
    table = Table("window", "state", "analysis", "values used", "seconds", "error")
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
    outputs: Annotated[str | None, typer.Option(help="Formats, with commas between.")] = None,
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
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    more = (TextColumn("{task.fields[text]}"), TimeElapsedColumn(), TimeRemainingColumn())
    with gateway_client(url, key) as client:
        try:
            with Progress(*columns, *more, console=err, disable=as_json) as progress:
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
