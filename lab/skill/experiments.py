"""Run the experiments of `appa verify`: a simulated truth (OSSE), and real radiosondes withheld in part."""

import time
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
import torch
from rich.console import Console
from rich.progress import Progress, TaskID, TimeElapsedColumn
from rich.table import Table

from lab.osse.cases import Truth, analysis_times, open_truth
from lab.osse.cycled_skill import CycleSettings, score_cycles
from lab.osse.scores import AutoencoderSkill, CaseFields, Method, StartSkill, score_autoencoder
from lab.osse.skill import ResultsFile, SkillSettings, experiment, score_start
from lab.osse.skill_report import SkillReport, make_report
from lab.training.denoiser_skill import relative_errors
from model.assimilate import assimilate
from model.checkpoints.bundle import load_checkpoint
from model.denoiser import Precision, native_precision
from model.diagnostics.equivalents import model_equivalents, observation_set
from model.domain.errors import InvalidInput
from model.domain.windows import HOUR, WindowPlan
from model.execution import OnStep, no_progress
from model.gaussian_prior import ZonalGaussianPrior
from model.latent_model import LatentModel
from model.nn.embedding import date_rows
from worker.idle_memory import keep_freed_memory
from worker.observations.decoders.decode import decode_file
from worker.observations.errors import assign_errors
from worker.observations.qc.base import QCContext, load_parameters
from worker.observations.qc.run import run_checks
from worker.pipeline.departures import monitored_set

__all__ = [
    "Experiment",
    "WithheldSkill",
    "seasons_first",
    "verify_osse",
    "verify_withheld",
    "withheld_table",
]


@dataclass(frozen=True)
class Experiment:
    """Options of a verification in a simulated world.

    Attributes:
        checkpoint: Name or folder.
        truth: A store of states; None for the case that ships with the checkpoint.
        first, last: Earliest and latest time of the truth used (UTC).
        starts: Analysis times, at most.
        states: Test states of the autoencoder.
        precision: Of the networks; None for what the device supports in hardware.
        keep: A file for the results of finished starts.
        finished: Whether to report what is kept and compute nothing.
        cycle_days: Length of a chain of hourly cycles; 0 for none.
        shorten: Whether to run a shorter chain, or none, if the truth is too short.
    """

    checkpoint: str
    truth: str | None = None
    first: datetime | None = None
    last: datetime | None = None
    starts: int = 12
    states: int = 24
    precision: Precision | None = None
    keep: Path | None = None
    finished: bool = False
    cycle_days: float = 0.0
    shorten: bool = False


@dataclass(frozen=True)
class _Display:
    """Progress on a terminal, and a line for every finished part anywhere."""

    console: Console
    bar: Progress
    parts: TaskID
    steps: TaskID

    def phase(self, name: str) -> None:
        self.bar.reset(self.steps, description=name)

    def step(self, done: int, total: int) -> None:
        self.bar.update(self.steps, completed=done, total=total)

    def finished(self, text: str) -> None:
        self.console.print(text)
        self.bar.advance(self.parts)


def verify_osse(
    asked: Experiment, settings: SkillSettings
) -> tuple[SkillReport, LatentModel, CaseFields | None]:
    """Score the autoencoder and every start whose results are not kept yet.

    Returns:
        The report, the checkpoint, and maps of one case.
    """
    precision = asked.precision or native_precision(torch.device("cpu"))
    model = load_checkpoint(asked.checkpoint, precision=precision)
    keep_freed_memory(model.window_bytes)
    truth = open_truth(model, asked.checkpoint, asked.truth, asked.first, asked.last)
    made_by = experiment(model, settings, asked.truth) | {"cycle_days": asked.cycle_days}
    kept = ResultsFile(asked.keep, made_by)
    ends = analysis_times(truth, settings.window, max(settings.lead, 1), asked.starts)
    if asked.finished:
        autoencoder, starts = _finished(kept, ends)
    else:
        autoencoder, starts = _all(model, truth, ends, settings, asked, kept)
    report = make_report(model, settings, autoencoder, starts, kept.cycled, kept.relative_error)
    return report, model, kept.fields


def _finished(kept: ResultsFile, ends: list[datetime]) -> tuple[AutoencoderSkill, list[StartSkill]]:
    starts = [skill for skill in map(kept.start, ends) if skill is not None]
    if kept.autoencoder is None or not starts:
        raise InvalidInput(
            f"Expected a finished start in {kept.path}; there is none of this experiment. Run it "
            "without --finished."
        )
    return kept.autoencoder, starts


def _all(
    model: LatentModel,
    truth: Truth,
    ends: list[datetime],
    settings: SkillSettings,
    asked: Experiment,
    kept: ResultsFile,
) -> tuple[AutoencoderSkill, list[StartSkill]]:
    chain = _chain_of_cycles(model, truth, asked)  # refused before hours of starts
    # Progress does not belong to the output, which may be JSON for another program.
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        parts = bar.add_task("all", total=len(ends) + 1)
        display = _Display(console, bar, parts, bar.add_task("", total=None))
        autoencoder = _autoencoder(model, truth, asked.states, kept, display)
        _denoiser(model, truth, ends, kept, display)
        found = {}
        for number, end in enumerate(seasons_first(ends)):
            name = f"start {number + 1} of {len(ends)}"
            found[end] = _start(model, truth, end, settings, kept, display, name)
        if chain is not None:
            _cycles(model, truth, settings, chain, kept, display)
    return autoencoder, [found[end] for end in ends]


def _denoiser(
    model: LatentModel, truth: Truth, ends: list[datetime], kept: ResultsFile, display: _Display
) -> None:
    """Compare the denoiser with its closed form on the blankets that end with the starts."""
    if kept.relative_error is not None or not isinstance(model.denoise.base, ZonalGaussianPrior):
        return
    display.phase("denoiser")
    size = model.blanket_size
    firsts = [end - (size - 1) * HOUR for end in ends]
    with torch.no_grad():
        blankets = [model.encode(truth(first, size))[None] for first in firsts]
    dates = [date_rows([first + i * HOUR for i in range(size)])[None] for first in firsts]
    found = relative_errors(model.denoise, lambda: zip(blankets, dates, strict=True))
    kept.add_relative_error({str(level): error for level, error in found.items()})
    text = ", ".join(f"{error:.3f} at σ {level:g}" for level, error in found.items())
    display.finished(f"denoiser over closed form: {text}")


def _chain_of_cycles(
    model: LatentModel, truth: Truth, asked: Experiment
) -> tuple[datetime, float] | None:
    """Return when the cold window before the chain ends (UTC), and its days; None for no chain.

    Raises:
        InvalidInput: If the truth is too short for it.
    """
    first, last = truth.span
    start, days = first + (model.blanket_size - 1) * HOUR, asked.cycle_days
    room = (last - start) / timedelta(days=1) - 1
    most = max(room, 0) // 0.25 * 0.25
    if asked.shorten and room < days:
        days = most
    if days <= 0:
        return None
    if days <= room:
        return start, days
    raise InvalidInput(
        f"Expected {days + 2:g} days of truth for {days:g} days of cycles, a window before "
        f"and a forecast after them; got {first.isoformat()} to {last.isoformat()}. Ask for at most "
        f"{most:g} days, or name a longer truth: appa train nature-run."
    )


def _cycles(
    model: LatentModel,
    truth: Truth,
    settings: SkillSettings,
    chain: tuple[datetime, float],
    kept: ResultsFile,
    display: _Display,
) -> None:
    skill, begin, (start, days) = kept.cycled, time.perf_counter(), chain
    if skill is None:
        display.phase(f"{days:g} days of cycles")
        cycled = CycleSettings(
            days,
            settings.members,
            settings.past,
            settings.seed,
            settings.network,
            settings.withhold,
            settings.settings,
        )
        skill = score_cycles(model, truth, start, cycled, display.step)
        kept.add_cycled(skill)
    display.finished(
        f"{days:g} days of cycles ({time.perf_counter() - begin:.0f} s): {skill.filtering:.3f}, "
        f"by day {' '.join(f'{e:.3f}' for e in skill.by_day)}, cold window {skill.cold:.3f}, "
        f"forecast {skill.forecast_24h:.3f}, {skill.cycle_seconds:.1f} s a cycle"
    )


def seasons_first(ends: list[datetime]) -> list[datetime]:
    """Return the times reordered, so that the first four are a quarter of the period apart."""
    stride = -(-len(ends) // 4)
    return [end for first in range(stride) for end in ends[first::stride]]


def _autoencoder(
    model: LatentModel, truth: Truth, states: int, kept: ResultsFile, display: _Display
) -> AutoencoderSkill:
    times = tuple(analysis_times(truth, 1, 0, states))
    skill = kept.autoencoder
    if skill is None or skill.times != times:
        display.phase("autoencoder")
        skill = score_autoencoder(model, truth, times, on_step=display.step)
        kept.add_autoencoder(skill)
    display.finished(f"autoencoder, {len(times)} states: {skill.mean:.3f}")
    return skill


def _start(
    model: LatentModel,
    truth: Truth,
    end: datetime,
    settings: SkillSettings,
    kept: ResultsFile,
    display: _Display,
    name: str,
) -> StartSkill:
    skill, begin, how = kept.start(end), time.perf_counter(), "kept"
    if skill is None:
        found = score_start(model, truth, end, settings, display.step, display.phase)
        skill = found.skill
        kept.add_start(skill, found.fields)
        how = f"{time.perf_counter() - begin:.0f} s"
    shown = [
        f"{m} {sum(skill.errors[m]) / len(skill.errors[m]):.3f}"
        for m in (Method.FILTERING, Method.WINDOWED, Method.FORECAST, Method.PERSISTENCE)
        if m in skill.errors
    ]
    display.finished(f"{name}, {end:%Y-%m-%d %H} UTC ({how}): {', '.join(shown)}")
    return skill


LAYERS = ((0, 15_000), (15_000, 40_000), (40_000, 75_000), (75_000, 110_000))
"""Pressure layers of the table, Pa."""


@dataclass(frozen=True)
class WithheldSkill:
    """Errors at withheld stations.

    Attributes:
        time: Analysis time.
        used: Values assimilated.
        withheld: Values at withheld stations.
        outcomes: Values by outcome of quality control.
        rows: Per variable and pressure layer: count, RMSE of climatology and of the analysis.
    """

    time: datetime
    used: int
    withheld: int
    outcomes: dict[str, int]
    rows: pd.DataFrame


def verify_withheld(
    model: LatentModel,
    paths: list[Path],
    *,
    share: float = 0.2,
    members: int = 8,
    seed: int = 0,
    on_step: OnStep = no_progress,
) -> WithheldSkill:
    """Assimilate files with a share of the stations withheld, and score against those.

    Raises:
        InvalidInput: If the files hold no usable report.
    """
    keep_freed_memory(model.window_bytes)
    tables = [decode_file(path).table for path in paths]
    table = assign_errors(pa.concat_tables(tables).unify_dictionaries())
    if not table.num_rows:
        raise InvalidInput(f"Expected reports in {', '.join(map(str, paths))}; none was decoded.")
    seconds = np.median(table["time"].to_numpy().astype("datetime64[s]").astype(np.int64))
    time = datetime.fromtimestamp(round(seconds / 3600) * 3600, UTC)
    half = model.blanket_size // 2
    plan = WindowPlan.reanalysis(time - half * HOUR, model.blanket_size)
    table = _checked(table, model, share)
    observations, table = observation_set(table, model, plan.times)
    withheld = pc.fill_null(pc.equal(table["rejected_by"].cast(pa.string()), "withheld"), False)
    seen, _ = monitored_set(table, model, plan.times)
    seen = seen.select(withheld.to_numpy()[seen.rows])
    analysis = assimilate(model, observations, plan, members, seed, on_step=on_step)
    hofx = model_equivalents(analysis.latents, model, seen).mean(0)
    prior = model.denoise.base
    if not isinstance(prior, ZonalGaussianPrior):
        raise InvalidInput("Expected a checkpoint that knows its climatology; this one does not.")
    climate = prior.climatology(date_rows(plan.times)[None])
    reference = model_equivalents(climate, model, seen)[0]
    outcomes = Counter(o or "used" for o in table["rejected_by"].to_pylist())
    rows = _by_layer(table, seen.rows, seen.obs_values, reference, hofx)
    return WithheldSkill(time, len(observations), len(seen), dict(outcomes), rows)


def withheld_table(skill: WithheldSkill) -> Table:
    """Return the skill as a table for the terminal."""
    table = Table(
        title=f"Real soundings of {skill.time:%Y-%m-%d %H UTC}: RMS departures at withheld stations "
        f"({skill.used} values used, {skill.withheld} withheld)"
    )
    for name in ("variable", "pressure (Pa)", "values", "climatology", "analysis", "ratio"):
        table.add_column(name, justify="left" if name == "variable" else "right")
    for row in skill.rows.itertuples():
        ratio = row.analysis / row.climatology
        numbers = f"{row.climatology:.4g}", f"{row.analysis:.4g}", f"{ratio:.2f}"
        table.add_row(row.variable, str(row.layer), str(row.number), *numbers)
    return table


def _checked(table: pa.Table, model: LatentModel, share: float) -> pa.Table:
    context = QCContext(
        parameters=load_parameters({"withholding": {"share": share}}),
        grid=model.grid,
        levels=model.card.levels,
        orography=model.statics.orography,
    )
    for stage in ("pre", "window", "select"):
        table, _ = run_checks(table, stage, context)
    return table


def _by_layer(
    table: pa.Table, rows: np.ndarray, values: np.ndarray, climate: np.ndarray, analysis: np.ndarray
) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "variable": table["variable"].cast(pa.string()).take(pa.array(rows)).to_pylist(),
            "pressure": table["vertical"].take(pa.array(rows)).to_numpy(),
            "climatology": (values - climate) ** 2,
            "analysis": (values - analysis) ** 2,
        }
    )
    edges = [low for low, _ in LAYERS] + [LAYERS[-1][1]]
    frame["layer"] = pd.cut(frame["pressure"], edges)
    grouped = frame.groupby(["variable", "layer"], observed=True)[["climatology", "analysis"]]
    result = np.sqrt(grouped.mean())
    result.insert(0, "number", grouped.size())
    return result.reset_index()
