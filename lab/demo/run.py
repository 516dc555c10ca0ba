"""Run the demo as a user would do it by hand: upload, submit, watch, fetch, compare."""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
import xarray as xr
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from appa_client import AppaClient, JobEvent
from deploy.local import LocalStack, StackOptions
from lab.demo.world import Scorer, StateErrors, World, channel_fields, observation_files
from model.checkpoints.bundle import load_checkpoint
from model.domain.errors import AppaError, ConfigurationError
from model.domain.windows import HOUR
from model.latent_model import climatological_states

__all__ = ["DemoOptions", "DemoResult", "run_demo"]

SHARE_LEFT = 0.5
"""Largest error of an analysis over that of climatology, from which each analysis starts."""

BEHIND = 1.05
"""Largest mean ratio of the error of an analysis to that of a forecast for the same time."""


@dataclass(frozen=True)
class DemoOptions:
    """Settings of the demo.

    Attributes:
        checkpoint: Name or folder.
        truth: A store of states instead of the case that ships.
        output: Where files, tables and pictures go.
        members: Size of the ensemble.
        cycles: Hourly analyses after the first one.
        lead: Hours of forecast.
        window: Hours of observations before the first analysis.
        data: Where the system keeps its data, which stay; None for a folder that is removed.
        port: Of the gateway; 0 takes a free one.
    """

    checkpoint: str = "appa-t31"
    truth: str | None = None
    output: Path = Path("demo-output")
    members: int = 6
    cycles: int = 3
    lead: int = 24
    window: int = 24
    data: Path | None = None
    port: int = 0


@dataclass
class DemoResult:
    """Results of the demo: errors of analyses and forecasts, counts of reports, and files.

    Attributes:
        analyses: (valid time, method to errors), in order.
        forecasts: (lead time in hours, method to errors), in order.
        reports: Values sent by hour.
        files: Downloaded files.
        fields: Mean analyses (C, Y, X) by valid time.
        geopotential: `z` of each member and `z_spread` of the last analysis, at 500 hPa.
        forecast: Valid time and mean (C, Y, X) of the last state of the forecast.
    """

    analyses: list[tuple[datetime, dict[str, StateErrors]]] = field(default_factory=list)
    forecasts: list[tuple[int, dict[str, StateErrors]]] = field(default_factory=list)
    reports: dict[datetime, int] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    fields: dict[datetime, np.ndarray] = field(default_factory=dict)
    geopotential: xr.Dataset | None = None
    forecast: tuple[datetime, np.ndarray] | None = None

    @property
    def shortcomings(self) -> list[str]:
        """Quality goals that analyses and forecasts miss, a sentence each; empty if they meet all.

        Each analysis is a window of its own that starts from climatology, so its error is compared
        with that of climatology. A forecast of an earlier window for the same hour uses nearly the
        same observations and may be as good as the analysis; the analyses must keep up with it.
        Forecasts must be better than persistence and climatology.
        """
        found = []
        for time, errors in self.analyses:
            share = errors["analysis"].standardised / errors["climatology"].standardised
            if not share < SHARE_LEFT:
                found.append(
                    f"the analysis of {time:%d %b %H UTC} has {share:.0%} of the error of "
                    f"climatology; expected less than {SHARE_LEFT:.0%}"
                )
        pairs = [
            e["analysis"].standardised / e["background"].standardised
            for _, e in self.analyses
            if "background" in e
        ]
        if not pairs or not sum(pairs) / len(pairs) < BEHIND:
            found.append("the analyses fall behind a forecast for the same hours")
        for lead, errors in self.forecasts:
            for other in ("persistence", "climatology"):
                if not errors["forecast"].standardised < errors[other].standardised:
                    found.append(f"the forecast of {lead} h is not better than {other}")
        if not self.forecasts:
            found.append("there is no forecast")
        return found


class Demo:
    """Run the demo against a started stack."""

    def __init__(self, options: DemoOptions, client: AppaClient, progress: Progress) -> None:
        self.options = options
        self.client = client
        self.progress = progress
        self.world = World(options.checkpoint, options.truth)
        self.model = load_checkpoint(options.checkpoint)
        std = self.model.state_normalisation.std
        self.score = Scorer(self.world.grid, self.world.channels, std)
        self.result = DemoResult()

    def run(self) -> DemoResult:
        """Upload, analyse, forecast and cycle; return errors against the truth."""
        first = self.world.span[0] + (self.options.window - 1) * HOUR
        self._send(first, self.options.window)
        analysis_id = self._analyse(first)
        background = self._forecast(first, analysis_id)
        for i in range(1, self.options.cycles + 1):
            time = first + i * HOUR
            self._send(time, 1)
            self._analyse(time, background[i - 1])
        return self.result

    def _send(self, end: datetime, hours: int) -> None:
        """Upload the reports of the `hours` hours up to `end`, and wait until they are stored."""
        table = self.world.observe(end, hours)
        files = list(observation_files(table, f"{end:%Y%m%dT%H}"))
        task = _begin(self.progress, f"observations to {end:%d %b %H UTC}", 2 * len(files))
        batches = []
        for file in files:
            batches.append(self.client.upload(file.content, file_name=file.name))
            self.progress.advance(task)
        for batch in batches:
            done = self.client.wait_batch(batch.id, timeout=300)
            if done.state != "ingested":
                raise AppaError(f"Expected batch {batch.id} to be ingested; it is {done.state}.")
            self.progress.advance(task)
        self.result.reports[end] = table.num_rows

    def _job(self, label: str, spec: dict[str, object]) -> str:
        """Submit a job, follow it and download its files; return the id of the analysis."""
        task = _begin(self.progress, label)
        job = self.client.submit(spec)

        def follow(event: JobEvent) -> None:
            progress = event.progress
            if progress is not None and progress.steps:
                self.progress.update(task, completed=progress.step, total=progress.steps)

        done = self.client.wait(job.id, follow)
        total = self.progress.tasks[task].total or 1
        self.progress.update(task, completed=total, total=total)
        folder = self.options.output / "files"
        roles = ["data", "quicklook"]
        self.result.files += self.client.fetch(done.analysis_id, folder, roles=roles)
        return done.analysis_id

    def _analyse(self, time: datetime, background: np.ndarray | None = None) -> str:
        spec = {
            "kind": "filtering",
            "valid_time": time.isoformat(),
            "members": self.options.members,
            "window_hours": self.options.window,
            "outputs": ["netcdf", "feedback", "quicklook"],
        }
        analysis_id = self._job(f"analysis of {time:%d %b %H UTC}", spec)
        with self.client.open(analysis_id, self.options.output / "files") as dataset:
            fields = channel_fields(dataset, self.world.channels)
            aloft = dataset[["z", "z_spread"]].sel(air_pressure=5.0e4)
            self.result.geopotential = aloft.isel(time=0).load()
        truth = self.world.state(time)
        climate = climatological_states(self.model, [time])[0]
        errors = {"climatology": self.score(climate, truth), "analysis": self.score(fields, truth)}
        if background is not None:
            errors["background"] = self.score(background, truth)
        self.result.analyses.append((time, errors))
        self.result.fields[time] = fields
        return analysis_id

    def _forecast(self, time: datetime, analysis_id: str) -> list[np.ndarray]:
        """Forecast without newer observations: the background of the cycles that follow."""
        spec = {
            "kind": "forecast",
            "valid_time": time.isoformat(),
            "lead_hours": self.options.lead,
            "members": self.options.members,
            "analysis_id": analysis_id,
            "outputs": ["netcdf"],
            "fields": "mean",
        }
        forecast_id = self._job(f"forecast from {time:%d %b %H UTC}", spec)
        with self.client.open(forecast_id, self.options.output / "files") as dataset:
            count = dataset.sizes["time"]
            states = [channel_fields(dataset, self.world.channels, i) for i in range(count)]
        start = self.result.fields[time]
        self.result.forecast = time + self.options.lead * HOUR, states[-1]
        for lead in _shown_leads(self.options.lead):
            truth = self.world.state(time + lead * HOUR)
            climate = climatological_states(self.model, [time + lead * HOUR])[0]
            errors = {
                "climatology": self.score(climate, truth),
                "persistence": self.score(start, truth),
                "forecast": self.score(states[lead - 1], truth),
            }
            self.result.forecasts.append((lead, errors))
        return states


def _begin(progress: Progress, label: str, total: int | None = None) -> TaskID:
    """Show a step: as a progress bar on a terminal, elsewhere as a line of text."""
    if not progress.console.is_terminal:
        progress.console.print(f"{label} …")
    return progress.add_task(label, total=total)


def _shown_leads(lead: int) -> Sequence[int]:
    return [hours for hours in (6, 12, 18, 24, 48) if hours <= lead] or [lead]


def run_demo(
    options: DemoOptions,
    console: Console,
    then: Callable[[DemoResult, LocalStack], None] | None = None,
) -> DemoResult:
    """Start a stack, run the demo against it and stop it.

    Arguments:
        options: Settings of the demo.
        console: Where progress is shown.
        then: Called with the result while the stack still runs.

    Raises:
        AppaError: If the stack or a batch fails.
        AppaClientError: If the gateway or a job fails.
        ConfigurationError: If the folder for data holds anything.
    """
    torch.set_num_threads(1)  # the cores belong to the workers
    options.output.mkdir(parents=True, exist_ok=True)
    with _data_folder(options) as data:
        stack_options = StackOptions(
            data=data, port=options.port, models=(options.checkpoint,), quiet=True, buckets=False
        )
        with LocalStack(stack_options, console) as stack:
            result = _on(stack, options, console)
            if then is not None:
                then(result, stack)
            return result


def _on(stack: LocalStack, options: DemoOptions, console: Console) -> DemoResult:
    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        waiting = _begin(progress, "broker, gateway and workers start", 1)
        if not stack.wait_ready(300):
            log = (stack.options.data / "logs" / "appa.log").read_text()[-2000:]
            raise AppaError(f"Expected the system to be ready within 300 s.\n{log}")
        progress.advance(waiting)
        with AppaClient(stack.url) as client:
            return Demo(options, client, progress).run()


@contextmanager
def _data_folder(options: DemoOptions) -> Iterator[Path]:
    if options.data is None:
        with tempfile.TemporaryDirectory(dir=options.output, prefix="data-") as data:
            yield Path(data)
        return
    if options.data.exists() and any(options.data.iterdir()):
        raise ConfigurationError(
            f"Expected an empty folder for the data of the demo; '{options.data}' holds something. "
            f"Look at an earlier demo with `appa up --data {options.data}`, or remove it."
        )
    yield options.data
