"""Trajectories of blankets against their recordings."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import torch
from azula.noise import Schedule
from torch import Tensor

from model.checkpoints.parity.case import ParityCase
from model.checkpoints.parity.observations import RecordedObservations
from model.guidance.base import Guidance
from model.guidance.mmps import MMPS, MMPSSettings
from model.trajectory import Blankets, TrajectoryDenoiser, fold, unfold

__all__ = ["blankets_of", "dates", "folds", "guided", "trajectory_denoisers"]

Arrays = Iterator[tuple[str, Tensor]]


class GivenLevel(Schedule):
    """Takes the noise level itself as the time."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha = 1 and sigma = t."""
        return torch.ones_like(t), t


def blankets_of(case: ParityCase) -> Blankets:
    """How the recorded trajectory is covered."""
    recorded = case.config["trajectory"]
    size, stride = recorded["blanket_size"], recorded["blanket_stride"]
    return Blankets((recorded["T"] - size) // stride + 1, size, stride)


def dates(case: ParityCase) -> Arrays:
    """`traj.date`: from the start and the time step."""
    recorded = case.config["trajectory"]
    first = datetime.fromisoformat(recorded["start"]) + timedelta(hours=recorded["start_hour"])
    step = timedelta(hours=recorded["dt_hours"])
    times = [first + i * step for i in range(recorded["T"])]
    yield "traj.date", torch.tensor([[[t.year, t.month, t.day, t.hour] for t in times]])


def folds(case: ParityCase) -> Arrays:
    """`traj.unfold*` and `traj.fold.*`: of toy states."""
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
    """`traj.den.<mode>.*`: all blankets denoised and composed."""
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
    """`traj.mmps.*`: blankets with observation vectors of different lengths."""
    layout = blankets_of(case)
    guide = trajectory_guidance(case)
    for name, match in case.names(r"traj\.mmps\.s(.+)"):
        sigma = case.level(match[1])
        denoiser = TrajectoryDenoiser(
            case.denoise, GivenLevel(), case.array("traj.date")[0], layout, guidance=guide
        )
        yield name, case.flat(denoiser(case.noisy("traj", sigma), sigma).mean)


def trajectory_guidance(case: ParityCase) -> Guidance:
    """Two iterations on the recorded observations of all blankets."""
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
