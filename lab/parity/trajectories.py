"""Compute trajectories of blankets and whole sampler runs for comparison."""

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

import torch
from azula.noise import Schedule
from torch import Tensor

from lab.parity.case import ParityCase
from lab.parity.guidance import RecordedObservations, masked
from model.guidance.base import Guidance
from model.guidance.jacobian import MMPS, MMPSSettings
from model.samplers.control import RecordedNoise
from model.samplers.sampling import SamplerSettings, sample, time_grid
from model.samplers.schedule import SCHEDULES
from model.trajectory import Blankets, TrajectoryDenoiser, fold, unfold

__all__ = [
    "blankets_of",
    "folds",
    "guided",
    "guided_samplers",
    "guided_trajectory",
    "samplers",
    "trajectory_dates",
    "trajectory_denoisers",
    "trajectory_sampler",
]

Arrays = Iterator[tuple[str, Tensor]]


class GivenLevel(Schedule):  # type: ignore[misc]  # azula has no types
    """Take the noise level itself as the time."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha = 1 and sigma = t."""
        return torch.ones_like(t), t


def blankets_of(case: ParityCase) -> Blankets:
    """Return how the recorded trajectory is covered."""
    recorded = case.config["trajectory"]
    size, stride = recorded["blanket_size"], recorded["blanket_stride"]
    return Blankets((recorded["T"] - size) // stride + 1, size, stride)


def trajectory_dates(case: ParityCase) -> Arrays:
    """Yield `traj.date`: from the start and the time step."""
    recorded = case.config["trajectory"]
    first = datetime.fromisoformat(recorded["start"]) + timedelta(hours=recorded["start_hour"])
    step = timedelta(hours=recorded["dt_hours"])
    times = [first + i * step for i in range(recorded["T"])]
    yield "traj.date", torch.tensor([[[t.year, t.month, t.day, t.hour] for t in times]])


def folds(case: ParityCase) -> Arrays:
    """Yield `traj.unfold*` and `traj.fold.*`: of toy states."""
    length = case.config["trajectory"]["T"]
    toy = case.array("traj.fold_x")
    toy = toy.reshape(len(toy), length, -1)
    for name, match in case.names(r"traj\.unfold\.(\d+)\.(\d+)"):
        yield name, unfold(toy, int(match[1]), int(match[2])).flatten(0, 1).flatten(1)
    for name, match in case.names(r"traj\.unfold_date\.(\d+)\.(\d+)"):
        repeated = case.array("traj.date").expand(len(toy), -1, -1)
        yield name, unfold(repeated, int(match[1]), int(match[2])).flatten(0, 1)
    for name, match in case.names(r"traj\.fold\.(\w+)\.(\d+)\.(\d+)"):
        parts = unfold(toy, int(match[2]), int(match[3]))
        rows = torch.arange(1, parts.shape[0] * parts.shape[1] + 1).reshape(*parts.shape[:2], 1, 1)
        folded = _fold(parts * rows.to(parts), int(match[3]), match[1])
        yield name, folded.flatten(1)


def trajectory_denoisers(case: ParityCase) -> Arrays:
    """Yield `traj.den.<mode>.*`: all blankets denoised and composed."""
    layout, date = blankets_of(case), case.array("traj.date")
    for name, match in case.names(r"traj\.den\.(\w+)\.s(.+)"):
        sigma = case.level(match[2])
        x_t = case.noisy("traj", sigma)
        if match[1] == "average":
            parts = unfold(x_t, layout.size, layout.stride)[0]
            done = case.denoise(parts, sigma, unfold(date, layout.size, layout.stride)[0])
            yield name, case.flat(_fold(done[None], layout.stride, "average"))
            continue
        denoiser = TrajectoryDenoiser(case.denoise, GivenLevel(), date[0], layout, mode=match[1])
        yield name, case.flat(denoiser(x_t, sigma).mean)


def guided(case: ParityCase) -> Arrays:
    """Yield `traj.mmps.*`: blankets with observation vectors of different lengths."""
    layout = blankets_of(case)
    guide = trajectory_guidance(case)
    for name, match in case.names(r"traj\.mmps\.s(.+)"):
        sigma = case.level(match[1])
        denoiser = TrajectoryDenoiser(
            case.denoise, GivenLevel(), case.array("traj.date")[0], layout, guidance=guide
        )
        yield name, case.flat(denoiser(case.noisy("traj", sigma), sigma).mean)


def trajectory_guidance(case: ParityCase) -> Guidance:
    """Return two iterations on the recorded observations of all blankets."""
    observed = RecordedObservations(case).decoded(blankets_of(case).count)
    return MMPS(observed, MMPSSettings(iterations=2, whiten=False, recycle=False))


def _fold(parts: Tensor, stride: int, mode: str) -> Tensor:
    if mode != "average":
        return fold(parts, stride, mode)
    # The recorded averages are sums and counts in float32, divided, whatever the type of the run.
    layout = Blankets(parts.shape[1], parts.shape[2], stride)
    total = torch.zeros(len(parts), layout.length, *parts.shape[3:], dtype=torch.float32)
    count = torch.zeros_like(total)
    for n, start in enumerate(layout.starts):
        total[:, start : start + layout.size] += parts[:, n]
        count[:, start : start + layout.size] += 1
    return (total / count).to(parts)


_STEPS = 8
"""Steps of the recorded runs that have no draws. Stochastic runs have as many draws as steps,
and the deterministic ones are as long as the ancestral one."""

_CORRECTIONS = 2


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


def samplers(case: ParityCase) -> Arrays:
    """Yield runs of one blanket under the prior."""
    for name, settings in _recorded(case, r"samp\.(ddim|ddpm|lms|lms1|pc|rewind)"):
        yield name, _run(case, name, settings, None)


def guided_samplers(case: ParityCase) -> Arrays:
    """Yield runs of one blanket with masked observations."""
    for name, settings in _recorded(case, r"samp\.(ddim|ddpm|lms|pc)_mmps"):
        guide = MMPS(
            masked(case, "vector"), MMPSSettings(iterations=2, whiten=False, recycle=False)
        )
        yield name, _run(case, name, settings, guide)


def trajectory_sampler(case: ParityCase) -> Arrays:
    """Yield runs of the whole trajectory under the prior."""
    for name, settings in _recorded(case, r"samp\.traj_(ddim|ddpm|lms|pc)"):
        yield name, _run(case, name, settings, None, blankets_of(case))


def guided_trajectory(case: ParityCase) -> Arrays:
    """Yield runs of the whole trajectory with observations of the decoded states."""
    for name, settings in _recorded(case, r"samp\.traj_(ddim|ddpm|lms|pc)_mmps"):
        yield name, _run(case, name, settings, trajectory_guidance(case), blankets_of(case))


def _recorded(case: ParityCase, pattern: str) -> Iterator[tuple[str, SamplerSettings]]:
    for name, match in case.names(pattern):
        draws = case.single.get(f"{name}.noise")
        ancestral = case.single.get("samp.ddpm.noise")
        steps = _STEPS if ancestral is None else len(ancestral)
        chosen: dict[str, Any] = {"name": match[1], "steps": steps}
        if match[1] == "pc":
            chosen |= {"corrections": _CORRECTIONS, "delta": 0.1}
        elif match[1].startswith("lms"):
            chosen |= {"name": "lms", "order": int(match[1].removeprefix("lms") or 3)}
        elif match[1] == "rewind":
            chosen |= {"rewind_after": 2, "jump": True}
        if draws is not None:
            chosen["steps"] = len(draws) // (_CORRECTIONS if match[1] == "pc" else 1)
        yield name, SamplerSettings(**chosen)


def _run(
    case: ParityCase,
    name: str,
    settings: SamplerSettings,
    guidance: Guidance | None,
    layout: Blankets | None = None,
) -> Tensor:
    recorded = case.config["schedule"]
    clock = SinglePrecisionClock(recorded["name"], recorded["sigma_min"], recorded["sigma_max"])
    start, dates = "traj.x1_unit", case.array("traj.date")[0]
    if layout is None:
        start, dates = "samp.x1_unit", case.dates[0]
        layout = Blankets(1, len(dates), len(dates))
    denoiser = TrajectoryDenoiser(case.denoise, clock, dates, layout, guidance=guidance)
    _, sigma = clock(torch.tensor(1.0))
    draws = case.single.get(f"{name}.noise", torch.empty(0)).to(case.dtype)
    x = sample(
        denoiser,
        sigma * case.blankets(case.array(start)),
        settings,
        RecordedNoise([case.blankets(draw) for draw in draws]),
        times=time_grid(settings, torch.float32),
    )
    return case.flat(x)
