"""Read the settings of recorded runs: dates, time grids, step counts and sampler settings.

In `config.json`, beside the sizes:

* `trajectory`: `start` (`2020-02-28`, `2020-02-28T18:00` or `[2020, 2, 28, 18]`), `start_hour` where
  `start` has none, and `dt_hours`;
* `samplers`: settings of `SamplerSettings` for all runs, and under the name of a run (`rewind`) or
  of its method (`pc`) those for it alone.

The rest follows from the recorded arrays: a stochastic run draws once a step, or once a correction,
and the deterministic ones are as long as the ancestral one unless `samplers.steps` says otherwise. If
neither gives the number of steps, `NotRecorded` is raised.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import datetime, timedelta
from typing import Any

import torch
from azula.noise import Schedule
from torch import Tensor

from lab.parity.case import NotRecorded, ParityCase, ParityComparison, compare
from model.samplers.sampling import SamplerSettings, time_grid
from model.samplers.schedule import SCHEDULES

__all__ = ["GRIDS", "SinglePrecisionClock", "clock", "grids", "recorded_runs", "trajectory_dates"]

GRIDS = (
    r"samp\.(grid(\d+)|sigma_(min|max)|(\w+?)(\d*)\.(?=t|sigma|alpha))(\.?(times?|t|sigma|alpha))?"
)
"""Names of time grids and noise levels: `samp.grid8`, `samp.lms8.sigma`, `samp.sigma_max`."""

_METHODS = ("ddim", "ddpm", "lms", "pc", "rewind")
_FIRST = {"corrections": 2, "delta": 0.1, "rewind_after": 2, "jump": True, "order": 3}
"""Settings of the first recording; a set whose runs had others says so in its `samplers`."""


class SinglePrecisionClock(Schedule):  # type: ignore[misc]  # azula has no types
    """The schedule as the recording evaluates it: in float32, cancelling near t = 1."""

    def __init__(self, name: str, sigma_min: float, sigma_max: float) -> None:
        self.exact = SCHEDULES[name](sigma_min, sigma_max)
        self.name, self.low, self.high = name, sigma_min, sigma_max

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha and sigma, computed in float32."""
        t = t.float()
        if self.name != "rectified":
            return self.exact(t)
        sigma = (t + (1 - t) * self.low) / (t * (1 / self.high - 1) + 1)
        return torch.ones_like(sigma), sigma


def clock(case: ParityCase) -> SinglePrecisionClock:
    """Return the schedule of the recorded runs."""
    said = case.config["schedule"]
    return SinglePrecisionClock(said["name"], said["sigma_min"], said["sigma_max"])


def trajectory_dates(case: ParityCase) -> Iterator[tuple[str, Tensor]]:
    """Yield `traj.date`: from the start and the time step that the configuration gives."""
    said = case.config["trajectory"]
    first = _start(said)
    if not isinstance(said.get("dt_hours"), int | float):
        raise NotRecorded("config.json does not say trajectory.dt_hours, the hours between states")
    step = timedelta(hours=said["dt_hours"])
    times = [first + i * step for i in range(said["T"])]
    yield "traj.date", torch.tensor([[[t.year, t.month, t.day, t.hour] for t in times]])


def _start(said: Mapping[str, Any]) -> datetime:
    start = said.get("start")
    try:
        if isinstance(start, str):
            first = datetime.fromisoformat(start).replace(tzinfo=None)
        elif isinstance(start, list):
            first = datetime(*start)
        else:
            raise ValueError
    except (TypeError, ValueError):
        raise NotRecorded(
            "config.json does not say trajectory.start as a date, a date with time, or "
            f"[year, month, day, hour]; got {start!r}"
        ) from None
    # An hour beside the date replaces none or midnight; beside another hour it must be the same.
    hour = said.get("start_hour", first.hour)
    if first.hour not in (0, hour):
        raise NotRecorded(f"config.json gives two hours of the start: {first.hour} and {hour}")
    return first.replace(hour=0) + timedelta(hours=hour)


def recorded_runs(case: ParityCase, pattern: str) -> Iterator[tuple[str, SamplerSettings]]:
    """Yield the names that match, whose first group is the method, with their settings.

    Raises:
        NotRecorded: If the recording does not tell how many steps a run has.
    """
    for name, match in case.names(pattern):
        yield name, _settings(case, name.removeprefix("samp."), match[1])


def _settings(case: ParityCase, run: str, label: str) -> SamplerSettings:
    method = next(m for m in _METHODS if label.startswith(m))
    chosen: dict[str, Any] = {"name": method}
    wanted = {"pc": ("corrections", "delta"), "lms": ("order",), "rewind": ("rewind_after", "jump")}
    for key in wanted.get(method, ()):
        first = int(label[3:]) if key == "order" and label[3:] else _FIRST[key]
        chosen[key] = _said(case, run, method, key, default=first)
    for key in ("start", "stop"):
        chosen[key] = _said(case, run, method, key, default=float(key == "start"))
    return SamplerSettings(**chosen, steps=_steps(case, run, method, chosen.get("corrections", 1)))


def _said(case: ParityCase, run: str, method: str, key: str, default: Any = None) -> Any:
    """Return a setting of a run: its own, its method's, that of all, or the default."""
    samplers = case.config.get("samplers", {})
    if isinstance(samplers, dict):
        for part in (samplers.get(run), samplers.get(method), samplers):
            if isinstance(part, dict) and key in part:
                return part[key]
    if default is not None and key in _FIRST and not (key == "order" and run[-1].isdigit()):
        case.assume(f"samplers.{method}.{key}", default)
    return default


def _steps(case: ParityCase, run: str, method: str, draws_a_step: int) -> int:
    samplers = case.config.get("samplers", {})
    own = samplers.get(run) if isinstance(samplers, dict) else None
    if isinstance(own, dict) and "steps" in own:
        return int(own["steps"])
    draws = case.single.get(f"samp.{run}.noise")
    if draws is not None:
        return len(draws) // draws_a_step
    said = _said(case, run, method, "steps")
    if isinstance(said, int):
        return said
    ancestral = case.single.get("samp.ddpm.noise")
    if ancestral is None:
        raise NotRecorded(
            f"config.json does not say samplers.steps (or samplers.{run}.steps), and samp.{run} "
            "has no recorded draws to count"
        )
    return len(ancestral)


def grids(case: ParityCase) -> Iterator[ParityComparison]:
    """Yield time grids and noise levels: of as many steps as the name or the configuration says.

    A grid without a kind in its name (`samp.grid8`) is of times if it lies within [0, 1], else of
    noise levels.
    """
    for name, match in case.names(GRIDS):
        theirs = case.outputs[name]
        if match[3]:
            times, kind = torch.tensor([float(match[3] == "max")]), "sigma"
        else:
            times = _grid(case, match)
            kind = match[7] or ("t" if _within_unit(theirs) else "sigma")
        yield _nearest(case, name, times, kind)


def _grid(case: ParityCase, match: re.Match[str]) -> Tensor:
    run = f"{match[4]}{match[5]}" if match[4] else f"grid{match[2]}"
    if match[4] and f"samp.{run}" in case.outputs:  # the digit, if any, is the order of that run
        return time_grid(_settings(case, run, run.removeprefix("traj_").removesuffix("_mmps")))
    ends = {k: _said(case, run, "grid", k, default=float(k == "start")) for k in ("start", "stop")}
    steps = int(match[2] or match[5] or _steps(case, run, match[4], 1))
    return time_grid(SamplerSettings(steps=steps, **ends))


def _within_unit(values: Tensor) -> bool:
    return bool(values.numel()) and bool(((values >= 0) & (values <= 1)).all())


def _nearest(case: ParityCase, name: str, times: Tensor, kind: str) -> ParityComparison:
    """Compare with the grid in float32, as the samplers build it, and in float64; keep the nearer."""
    theirs = case.outputs[name]
    outcomes = []
    for dtype in (torch.float32, torch.float64):
        t = times.to(dtype)
        schedule = clock(case) if dtype == torch.float32 else clock(case).exact
        alpha, sigma = schedule(t)
        ours = {"sigma": sigma, "alpha": alpha}.get(kind, t).to(theirs.dtype)
        same_size = ours.numel() == theirs.numel()
        outcomes.append(compare(case, name, ours.reshape(theirs.shape) if same_size else ours))
    return min(outcomes, key=lambda o: (o.status != "matched", o.error is None, o.error))
