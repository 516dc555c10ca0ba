"""Run the starts of `appa verify osse` one after the other: stored as they finish, with progress."""

import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from rich.console import Console
from rich.progress import Progress, TaskID, TimeElapsedColumn

from lab.osse.cases import Truth, analysis_times, open_truth
from lab.osse.scores import AutoencoderSkill, CaseFields, Method, StartSkill, score_autoencoder
from lab.osse.skill import ResultsFile, SkillSettings, experiment, score_start
from lab.osse.skill_report import SkillReport, make_report
from model.checkpoints.bundle import load_checkpoint
from model.denoiser import Precision
from model.domain.errors import InvalidInput
from model.latent_model import LatentModel

__all__ = ["Experiment", "seasons_first", "verify_osse"]


@dataclass(frozen=True)
class Experiment:
    """What is asked for.

    Attributes:
        checkpoint: Name or folder.
        truth: A store of states; None for the case that ships with the checkpoint.
        first, last: Earliest and latest time of the truth used (UTC).
        starts: Analysis times, at most.
        states: Test states of the autoencoder.
        precision: Of the networks.
        keep: A file for the results of finished starts.
        finished: Whether to report what is kept and compute nothing.
    """

    checkpoint: str
    truth: str | None = None
    first: datetime | None = None
    last: datetime | None = None
    starts: int = 12
    states: int = 24
    precision: Precision = "bfloat16"
    keep: Path | None = None
    finished: bool = False


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
    """Scores the autoencoder and every start that is not kept already.

    Returns:
        The report, the checkpoint, and maps of one case.
    """
    model = load_checkpoint(asked.checkpoint, precision=asked.precision)
    truth = open_truth(model, asked.checkpoint, asked.truth, asked.first, asked.last)
    kept = ResultsFile(asked.keep, experiment(model, settings, asked.truth))
    ends = analysis_times(truth, settings.window, max(settings.lead, 1), asked.starts)
    if asked.finished:
        autoencoder, starts = _finished(kept, ends)
    else:
        autoencoder, starts = _all(model, truth, ends, settings, asked.states, kept)
    return make_report(model, settings, autoencoder, starts), model, kept.fields


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
    states: int,
    kept: ResultsFile,
) -> tuple[AutoencoderSkill, list[StartSkill]]:
    # Progress does not belong to the output, which may be JSON for another program.
    console = Console(stderr=True)
    columns = (*Progress.get_default_columns(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        parts = bar.add_task("all", total=len(ends) + 1)
        display = _Display(console, bar, parts, bar.add_task("", total=None))
        autoencoder = _autoencoder(model, truth, states, kept, display)
        found = {}
        for number, end in enumerate(seasons_first(ends)):
            name = f"start {number + 1} of {len(ends)}"
            found[end] = _start(model, truth, end, settings, kept, display, name)
    return autoencoder, [found[end] for end in ends]


def seasons_first(ends: list[datetime]) -> list[datetime]:
    """Another order: the first four are a quarter of the period apart."""
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
