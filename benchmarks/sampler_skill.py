"""Time to equal skill: sampler x steps x solver iterations against the exact posterior.

A Gaussian field that moves and forgets, many precise observations of linear combinations, and the
exact denoiser: the posterior is known in closed form, so what is left is the error of the sampler
and of the linear solve. The mean comes from sampling without noise (the map is affine), the spread
from members. The cost counts products with a network or its derivatives: forward, adjoint and
tangent each count one, for the denoiser and the decoder alike.

    python -m benchmarks.sampler_skill [--json] [--quick]
"""

import argparse
import json
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from azula.denoise import GaussianDenoiser
from azula.linalg.covariance import FullCovariance
from rich.console import Console
from rich.table import Table
from torch import Tensor

from lab.parity.trajectories import GivenLevel
from model.execution import Batching
from model.guidance.base import BlanketRows, FitReport, Observed
from model.guidance.jacobian import MMPS, MMPSSettings
from model.samplers.control import RecordedNoise
from model.samplers.sampling import SamplerSettings, sample
from model.samplers.schedule import RectifiedSchedule
from model.trajectory import Blankets, TrajectoryDenoiser

STATES, POINTS, OBSERVATIONS, ERROR = 6, 40, 120, 0.05
MEMBERS = 128
GRID = {
    "pc": ((8, 2), (16, 2), (32, 2)),  # (steps, corrections); the release: 32 and 2
    "ddim": ((16, 0), (32, 0), (64, 0)),
    "xeab": ((8, 0), (16, 0), (32, 0)),
    "zeab": ((8, 0), (16, 0), (32, 0)),
    "lms": ((8, 0), (16, 0), (32, 0)),
}
SOLVES = (
    (2, False),
    (1, True),
    (2, True),
    (3, True),
    (4, True),
    (7, True),
)  # (iterations, recycle)


class GaussianProblem:
    """The field, its observations and its exact posterior."""

    def __init__(self) -> None:
        rng = np.random.default_rng(4)
        x = np.arange(POINTS)
        distance = np.minimum(np.abs(x[:, None] - x), POINTS - np.abs(x[:, None] - x))
        space = np.exp(-0.5 * (distance / 4.0) ** 2) + 0.01 * np.eye(POINTS)
        blocks = [
            [0.95 ** abs(s - t) * np.roll(space, t - s, axis=0) for s in range(STATES)]
            for t in range(STATES)
        ]
        prior = np.block(blocks)
        prior = (prior + prior.T) / 2
        values, vectors = np.linalg.eigh(prior)
        prior = (vectors * values.clip(min=1e-6)) @ vectors.T
        size = STATES * POINTS
        self.h = np.zeros((OBSERVATIONS, size))
        for row in self.h:
            row[rng.choice(size, 3, replace=False)] = rng.normal(size=3)
        truth = vectors @ (np.sqrt(values.clip(min=1e-6)) * rng.normal(size=size))
        self.y = self.h @ truth + ERROR * rng.normal(size=OBSERVATIONS)
        gain_of = prior @ self.h.T
        gain = gain_of @ np.linalg.inv(self.h @ gain_of + ERROR**2 * np.eye(OBSERVATIONS))
        self.mean = gain @ self.y
        self.spread = np.sqrt(np.diag(prior - gain @ gain_of.T))
        mean = torch.zeros(size, dtype=torch.float64)
        covariance = FullCovariance(
            torch.from_numpy(vectors), torch.from_numpy(values.clip(min=1e-6))
        )
        self.gaussian = GaussianDenoiser(mean, covariance, GivenLevel())

    def denoise(self, x_t: Tensor, sigma: Tensor, date: Tensor) -> Tensor:
        return self.gaussian(x_t.flatten(1), sigma).mean.reshape(x_t.shape)

    def select(self, rows: BlanketRows, like: Tensor) -> Observed:
        h = torch.from_numpy(self.h)
        values = torch.from_numpy(self.y).expand(len(rows), -1)
        return Observed(
            values,
            torch.full_like(values, ERROR),
            torch.ones_like(values, dtype=torch.bool),
            lambda x: x.flatten(1) @ h.T,
            (("observations", OBSERVATIONS),),
        )


@dataclass(frozen=True)
class SkillRow:
    """Error, spread and cost of one sampler with one solver.

    Attributes:
        mean_error: Root mean square error of the posterior mean over the posterior spread.
        spread_ratio: Root mean square ensemble variance over the exact one.
        chi: Post-fit innovation in units of the observation error at the last noise level.
        products: Cost: products with a network or its derivatives.
    """

    sampler: str
    steps: int
    corrections: int
    iterations: int
    recycle: bool
    products: int
    mean_error: float
    spread_ratio: float
    chi: float


def run(
    problem: GaussianProblem,
    name: str,
    steps: int,
    corrections: int,
    iterations: int,
    recycle: bool,
) -> SkillRow:
    report = FitReport()
    denoiser = TrajectoryDenoiser(
        problem.denoise,
        RectifiedSchedule(),
        torch.zeros(STATES, 4, dtype=torch.int64),
        Blankets(1, STATES, 1),
        guidance=MMPS(problem, MMPSSettings(iterations=iterations, recycle=recycle), report),
        batching=Batching(rows=MEMBERS + 1),
    )
    generator = torch.Generator().manual_seed(9)
    draws = torch.randn(
        1 + steps * corrections, MEMBERS, STATES, POINTS, 1, 1, generator=generator
    ).double()
    # The first row has no noise: the posterior mean as the sampler sees it.
    draws = torch.cat((torch.zeros_like(draws[:, :1]), draws), dim=1)
    settings = SamplerSettings(name=name, steps=steps, corrections=corrections)
    x = sample(denoiser, 1e3 * draws[0], settings, RecordedNoise(draws[1:])).flatten(1).numpy()
    (_, last) = report.levels[-1]
    products = steps * (1 + corrections) * (2 + 3 * (iterations + recycle))
    error = np.sqrt((((x[0] - problem.mean) / problem.spread) ** 2).mean())
    ratio = np.sqrt((x[1:].var(axis=0, ddof=1) / problem.spread**2).mean())
    return SkillRow(
        name,
        steps,
        corrections,
        iterations,
        recycle,
        products,
        float(error),
        float(ratio),
        last.chi_after,
    )


def show(rows: list[SkillRow]) -> None:
    table = Table(title="Sampler, steps and solver iterations against the exact posterior")
    for column in SkillRow.__dataclass_fields__:
        table.add_column(column, justify="left" if column == "sampler" else "right")
    for row in sorted(rows, key=lambda r: r.products):
        table.add_row(
            *(f"{v:.3f}" if isinstance(v, float) else str(v) for v in asdict(row).values())
        )
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--quick", action="store_true", help="few steps only")
    arguments = parser.parse_args()
    problem = GaussianProblem()
    rows: list[Any] = []
    for name, lengths in GRID.items():
        for steps, corrections in lengths[: 1 if arguments.quick else None]:
            for solve in SOLVES[: 2 if arguments.quick else None]:
                rows.append(run(problem, name, steps, corrections, *solve))
    print(json.dumps([asdict(r) for r in rows], indent=1)) if arguments.json else show(rows)


if __name__ == "__main__":
    main()
