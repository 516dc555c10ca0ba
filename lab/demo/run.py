"""Run the demo as a user would do it by hand: upload, submit, watch, fetch, compare; and draw it.

The picture shows the last analysis beside the truth, and errors by hour.
"""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import matplotlib as mpl
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from appa_client import AppaClient, JobEvent
from deploy.local import LocalStack, StackOptions
from lab.demo.world import Errors, Scorer, World, channel_fields, observation_files
from model.checkpoints.bundle import load_checkpoint
from model.domain.errors import AppaError
from model.domain.physics import GRAVITY, ZERO_CELSIUS
from model.domain.windows import HOUR
from model.latent_model import climatological_states
from worker.results.outputs.maps import coastlines

__all__ = ["DemoOptions", "DemoResult", "draw", "run_demo"]


@dataclass(frozen=True)
class DemoOptions:
    """What the demo does.

    Attributes:
        checkpoint: Name or folder.
        truth: A store of states instead of the case that ships.
        output: Where files, tables and pictures go.
        members: Size of the ensemble.
        cycles: Hourly analyses after the first one.
        lead: Hours of forecast.
        window: Hours of observations before the first analysis.
    """

    checkpoint: str = "appa-t31"
    truth: str | None = None
    output: Path = Path("demo-output")
    members: int = 6
    cycles: int = 3
    lead: int = 24
    window: int = 24


@dataclass
class DemoResult:
    """What came of it.

    Attributes:
        analyses: (valid time, method to errors), in order.
        forecasts: (lead time in hours, method to errors), in order.
        reports: Values sent by hour.
        files: Downloaded files.
        fields: Mean analyses (C, Y, X) by valid time, for the picture.
    """

    analyses: list[tuple[datetime, dict[str, Errors]]] = field(default_factory=list)
    forecasts: list[tuple[int, dict[str, Errors]]] = field(default_factory=list)
    reports: dict[datetime, int] = field(default_factory=dict)
    files: list[Path] = field(default_factory=list)
    fields: dict[datetime, np.ndarray] = field(default_factory=dict)

    @property
    def improved(self) -> bool:
        """Whether the analyses that have a background are closer to the truth, on average."""
        pairs = [
            (e["analysis"].standardised, e["background"].standardised)
            for _, e in self.analyses
            if "background" in e
        ]
        return bool(pairs) and sum(a for a, _ in pairs) < sum(b for _, b in pairs)


class Demo:
    """One run against a started stack."""

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
        """Uploads, cycles, forecasts and compares."""
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
        """Uploads the reports of the `hours` hours up to `end`, and waits until they are stored."""
        table = self.world.observe(end, hours)
        files = list(observation_files(table, f"{end:%Y%m%dT%H}"))
        task = self.progress.add_task(f"observations to {end:%d %b %H UTC}", total=2 * len(files))
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
        """Submits a job, follows it, downloads its files; returns the analysis' id."""
        task = self.progress.add_task(label, total=None)
        job = self.client.submit(spec)

        def follow(event: JobEvent) -> None:
            told = event.progress
            if told is not None and told.steps:
                self.progress.update(task, completed=told.step, total=told.steps)

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
            "outputs": ["netcdf", "quicklook"],
        }
        analysis_id = self._job(f"analysis of {time:%d %b %H UTC}", spec)
        fields = self._fields(analysis_id)[0]
        truth = self.world.state(time)
        climate = climatological_states(self.model, [time])[0]
        errors = {"climatology": self.score(climate, truth), "analysis": self.score(fields, truth)}
        if background is not None:
            errors["background"] = self.score(background, truth)
        self.result.analyses.append((time, errors))
        self.result.fields[time] = fields
        return analysis_id

    def _forecast(self, time: datetime, analysis_id: str) -> list[np.ndarray]:
        """A forecast without newer observations: the background of the cycles that follow."""
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
        states = self._fields(forecast_id)
        start = self.result.fields[time]
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

    def _fields(self, analysis_id: str) -> list[np.ndarray]:
        with self.client.open(analysis_id, self.options.output / "files") as dataset:
            count = dataset.sizes["time"]
            return [channel_fields(dataset, self.world.channels, i) for i in range(count)]


def _shown_leads(lead: int) -> Sequence[int]:
    return [hours for hours in (6, 12, 18, 24, 48) if hours <= lead] or [lead]


def run_demo(options: DemoOptions, console: Console) -> DemoResult:
    """Starts a stack of its own on a free port, runs the demo against it and stops it.

    Raises:
        AppaError: If the stack or a batch fails.
        AppaClientError: If the gateway or a job fails.
    """
    torch.set_num_threads(1)  # the cores belong to the workers
    options.output.mkdir(parents=True, exist_ok=True)
    columns = (
        TextColumn("{task.description:<32}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
    )
    with tempfile.TemporaryDirectory(dir=options.output, prefix="data-") as data:
        stack_options = StackOptions(
            data=Path(data), port=0, models=(options.checkpoint,), quiet=True
        )
        with (
            LocalStack(stack_options, console) as stack,
            Progress(*columns, console=console) as progress,
        ):
            waiting = progress.add_task("broker, gateway and workers start", total=1)
            if not stack.wait_ready(300):
                log = Path(data, "logs", "appa.log").read_text()[-2000:]
                raise AppaError(f"Expected the system to be ready within 300 s.\n{log}")
            progress.advance(waiting)
            with AppaClient(stack.url) as client:
                return Demo(options, client, progress).run()


Array = NDArray[np.float32]


def draw(result: DemoResult, world: World, path: Path) -> Path:
    """Writes a PNG."""
    mpl.use("Agg")
    time, fields = list(result.fields.items())[-1]
    truth = world.state(time).numpy()
    names = [c.name for c in world.channels]
    t2m, z500 = names.index("2m_temperature"), names.index("geopotential_500hPa")
    figure = Figure(figsize=(13, 8.5), layout="constrained")
    axes = figure.subplots(2, 2)
    height = 1 / GRAVITY
    _map(axes[0, 0], world, fields[t2m], fields[z500] * height, f"analysis, {time:%d %b %H UTC}")
    _map(axes[0, 1], world, truth[t2m], truth[z500] * height, "simulated truth")
    _difference(axes[1, 0], world, (fields[z500] - truth[z500]) * height)
    _curves(axes[1, 1], result)
    figure.suptitle(
        "2 m temperature and 500 hPa height: simulated atmosphere, not for real decisions"
    )
    figure.savefig(path, dpi=110)
    return path


def _frame(axes: Axes, world: World, title: str) -> tuple[Array, Array]:
    lon = np.append(world.grid.longitude, 360.0)
    for line in coastlines():
        for shift in (0.0, 360.0):
            axes.plot(line[:, 0] + shift, line[:, 1], color="0.2", linewidth=0.6)
    axes.set(title=title, xlim=(0, 360), ylim=(-88, 88), xticks=[], yticks=[])
    return lon, world.grid.latitude


def _wrapped(field: Array) -> Array:
    return np.concatenate((field, field[:, :1]), axis=1)


def _map(axes: Axes, world: World, temperature: Array, height: Array, title: str) -> None:
    lon, lat = _frame(axes, world, title)
    filled = axes.contourf(
        lon,
        lat,
        _wrapped(temperature) - ZERO_CELSIUS,
        np.arange(-60, 46, 5),
        cmap="turbo",
        extend="both",
    )
    lines = axes.contour(
        lon, lat, _wrapped(height) / 10, np.arange(460, 601, 8), colors="white", linewidths=0.8
    )
    axes.clabel(lines, fontsize=6, fmt="%d")
    axes.figure.colorbar(filled, ax=axes, label="deg C", shrink=0.8)


def _difference(axes: Axes, world: World, height: Array) -> None:
    lon, lat = _frame(axes, world, "analysis minus truth, 500 hPa height")
    limit = max(float(np.percentile(np.abs(height), 99)), 1.0)
    levels = np.linspace(-limit, limit, 21)
    filled = axes.contourf(lon, lat, _wrapped(height), levels, cmap="RdBu_r", extend="both")
    axes.figure.colorbar(filled, ax=axes, label="m", shrink=0.8)


def _curves(axes: Axes, result: DemoResult) -> None:
    start = result.analyses[0][0]
    styles = {"climatology": "0.6", "background": "tab:orange", "analysis": "tab:blue"}
    for name, colour in styles.items():
        points = [
            ((time - start).total_seconds() / 3600, errors[name].standardised)
            for time, errors in result.analyses
            if name in errors
        ]
        axes.plot(*zip(*points, strict=True), "o-", color=colour, label=name)
    styles = {"persistence": "tab:red", "forecast": "tab:green"}
    for name, colour in styles.items():
        points = [(lead, errors[name].standardised) for lead, errors in result.forecasts]
        axes.plot(*zip(*points, strict=True), "s--", color=colour, label=name)
    axes.set(
        xlabel=f"hours after {start:%d %b %H UTC}",
        ylabel="mean standardised RMSE",
        title="errors against the truth",
        ylim=(0, None),
    )
    axes.grid(alpha=0.3)
    axes.legend()
