"""Whole sampler runs against their recordings."""

from collections.abc import Iterator
from typing import Any

import torch
from azula.noise import Schedule
from torch import Tensor

from model.checkpoints.parity.case import ParityCase
from model.checkpoints.parity.guidance import masked
from model.checkpoints.parity.trajectory import blankets_of, trajectory_guidance
from model.guidance.base import Guidance
from model.guidance.mmps import MMPS, MMPSSettings
from model.noise import RecordedNoise
from model.sampling import SamplerSettings, sample, time_grid
from model.schedule import SCHEDULES
from model.trajectory import Blankets, TrajectoryDenoiser

__all__ = ["guided_samplers", "guided_trajectory", "samplers", "trajectory_sampler"]

Arrays = Iterator[tuple[str, Tensor]]

_STEPS = 8
"""Steps of the recorded runs where no draw tells them. Stochastic runs have as many draws as steps,
and the deterministic ones are as long as the ancestral one."""

_CORRECTIONS = 2


class SinglePrecisionClock(Schedule):
    """The schedule as the recording evaluates it: in float32, cancelling near t = 1."""

    def __init__(self, name: str, sigma_min: float, sigma_max: float) -> None:
        self.exact = SCHEDULES[name](sigma_min, sigma_max)
        self.name, self.low, self.high = name, sigma_min, sigma_max

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha and sigma in float32."""
        t = t.float()
        if self.name != "rectified":
            return self.exact(t)
        sigma = (t + (1 - t) * self.low) / (t * (1 / self.high - 1) + 1)
        return torch.ones_like(sigma), sigma


def samplers(case: ParityCase) -> Arrays:
    """Runs of one blanket under the prior."""
    for name, settings in _recorded(case, r"samp\.(ddim|ddpm|lms|lms1|pc|rewind)"):
        yield name, _run(case, name, settings, None)


def guided_samplers(case: ParityCase) -> Arrays:
    """Runs of one blanket with masked observations."""
    for name, settings in _recorded(case, r"samp\.(ddim|ddpm|lms|pc)_mmps"):
        guide = MMPS(
            masked(case, "vector"), MMPSSettings(iterations=2, whiten=False, recycle=False)
        )
        yield name, _run(case, name, settings, guide)


def trajectory_sampler(case: ParityCase) -> Arrays:
    """Runs of the whole trajectory under the prior."""
    for name, settings in _recorded(case, r"samp\.traj_(ddim|ddpm|lms|pc)"):
        yield name, _run(case, name, settings, None, blankets_of(case))


def guided_trajectory(case: ParityCase) -> Arrays:
    """Runs of the whole trajectory with observations of the decoded states."""
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
