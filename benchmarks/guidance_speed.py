"""Speed of guidance on a CPU: one MMPS evaluation, and one of 3 blankets for 4 members.

Configuration "medium" with random weights, for which the authors' implementation took 5.9 s per
evaluation (8.2 s with the released gradient checkpointing) where a 1024 x 1024 float32 product ran
at 219 GFLOP/s. Times are medians of several runs in one process, and the factors are scaled by the
same product measured here, before and after.

    python -m benchmarks.guidance_speed [--json] [--repeats 5] [--quick]
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from model.autoencoder import Autoencoder, AutoencoderConfig
from model.backbone import Backbone, BackboneConfig
from model.denoiser import BlanketDenoiser, Precision, reduced_precision
from model.execution import Batching
from model.guidance.base import BlanketRows
from model.guidance.jacobian import MMPS, Linearisation, MMPSSettings
from model.guidance.observed import DecodedObservations
from model.samplers.schedule import RectifiedSchedule
from model.trajectory import Blankets, TrajectoryDenoiser

RELEASED = {"evaluation": 8.2, "step": 8.2 * 12}
"""Seconds of the released setting; the step is 12 evaluations one after the other."""
PLAIN = {"evaluation": 5.9, "step": 5.9 * 12}
"""Seconds of the released setting without gradient checkpointing."""
REFERENCE_GFLOPS = 219.0


@dataclass(frozen=True)
class GridPoints:
    """Values on grid points, as in the reference's timings."""

    values: Tensor
    error_std: Tensor
    time: Tensor
    channel: Tensor
    cell: Tensor

    def __len__(self) -> int:
        return len(self.values)

    @property
    def time_support(self) -> tuple[np.ndarray, np.ndarray]:
        return self.time.numpy(), self.time.numpy()

    def operator(self, states: Tensor) -> Tensor:
        return states.flatten(-2)[..., self.time, self.channel, self.cell]


class Medium:
    """The networks and observations of the configuration "medium"."""

    def __init__(self, precision: Precision) -> None:
        torch.manual_seed(0)
        config = AutoencoderConfig(
            in_channels=16,
            lat_channels=32,
            shape=(64, 80),
            resize=8,
            hid_channels=(32, 64, 128, 256),
            hid_blocks=(3, 3, 3, 3),
        )
        self.autoencoder = Autoencoder(config).requires_grad_(False).eval()
        backbone = Backbone(
            BackboneConfig(
                in_channels=32,
                blanket_size=12,
                shape=config.latent_shape[1:],
                mod_features=256,
                hid_channels=256,
                hid_blocks=8,
                attention_heads=4,
            )
        )
        self.denoise = BlanketDenoiser(backbone, precision=precision).requires_grad_(False).eval()
        self.precision: Precision = precision
        self.latent_shape = config.latent_shape
        self.dates = torch.tensor([[2021, 1, 1, h] for h in range(24)])

    def decode(self, z: Tensor) -> Tensor:
        with reduced_precision(z.device, self.precision):
            return self.autoencoder.decode(z).to(z.dtype)

    def observations(self) -> GridPoints:
        g = torch.Generator().manual_seed(1)
        parts = []
        for points, channels, variance in ((60, range(3), 1e-4), (32, range(3, 13), 1e-2)):
            for k in range(12):
                cells = torch.randperm(64 * 80, generator=g)[:points]
                cell, channel = torch.meshgrid(cells, torch.tensor(channels), indexing="ij")
                size = cell.numel()
                parts.append(
                    (
                        torch.full((size,), k),
                        channel.flatten(),
                        cell.flatten(),
                        torch.full((size,), variance**0.5),
                    )
                )
        time_, channel, cell, std = (torch.cat(column) for column in zip(*parts, strict=True))
        return GridPoints(torch.randn(len(std), generator=g), std, time_, channel, cell)


def median_seconds(work: Callable[[], Any], repeats: int) -> float:
    """Return the median duration of `repeats` calls in seconds, after one warm-up call."""
    work()
    taken = []
    for _ in range(repeats):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def gflops(repeats: int = 9) -> float:
    """Return the speed of a 1024 x 1024 matrix product in GFLOP/s, to compare machines by."""
    a = torch.randn(1024, 1024)
    return 2 * 1024**3 / median_seconds(lambda: a @ a, repeats) / 1e9


def latents(medium: Medium, members: int, states: int) -> Tensor:
    g = torch.Generator().manual_seed(2)
    return 1.4 * torch.randn(members, states, *medium.latent_shape, generator=g)


def evaluate(medium: Medium, batch_rows: int) -> Callable[[int, int], Tensor]:
    """(members, blankets) -> one evaluation of the guided trajectory at sigma = 1."""
    seen = medium.observations()

    def run(members: int, blankets: int) -> Tensor:
        layout = Blankets(blankets, 12, 6)
        guide = MMPS(
            DecodedObservations([seen] * blankets, medium.decode),
            MMPSSettings(iterations=2, whiten=False, recycle=False),
        )
        denoiser = TrajectoryDenoiser(
            medium.denoise,
            RectifiedSchedule(),
            medium.dates[: layout.length],
            layout,
            guidance=guide,
            batching=Batching(rows=batch_rows),
        )
        t = RectifiedSchedule().time(torch.tensor(1.0, dtype=torch.float64))
        return denoiser(latents(medium, members, layout.length), t).mean

    return run


def pieces(medium: Medium, repeats: int) -> dict[str, float]:
    """Seconds of the products that an evaluation is made of, on one blanket."""
    x_t, sigma = latents(medium, 1, 12), torch.tensor(1.0)
    rows = BlanketRows(torch.tensor([0]), torch.tensor([0]))
    seen = DecodedObservations([medium.observations()], medium.decode).select(rows, x_t)
    point = Linearisation(medium.denoise, seen.predict, x_t, sigma, medium.dates[None, :12])
    y, u = torch.randn_like(point.y_hat), torch.randn_like(x_t)
    point.observe_vjp(y)
    with torch.no_grad():
        found = {
            "denoiser forward": lambda: medium.denoise(x_t, sigma, medium.dates[None, :12]),
            "decode of 12 states": lambda: medium.decode(x_t[0]),
            "denoiser VJP": lambda: point.denoise_vjp(u),
            "observe(decode) VJP": lambda: point.observe_vjp(y),
            "observe(decode) JVP": lambda: point.observe_jvp(u),
        }
        return {name: median_seconds(work, repeats) for name, work in found.items()}


def measure(repeats: int, quick: bool) -> dict[str, Any]:
    before = gflops()
    results: dict[str, dict[str, float]] = {}
    outputs = {}
    for precision in ("float32", "bfloat16"):
        medium = Medium(precision)
        run = evaluate(medium, batch_rows=1 if quick else 4)
        seconds = pieces(medium, repeats)
        seconds["evaluation"] = median_seconds(lambda run=run: run(1, 1), repeats)
        if not quick:
            seconds["step"] = median_seconds(lambda run=run: run(4, 3), max(1, repeats // 2))
        results[precision] = seconds
        outputs[precision] = run(1, 1)
    after = gflops()
    error = (outputs["bfloat16"] - outputs["float32"]).norm() / outputs["float32"].norm()
    scale = REFERENCE_GFLOPS / statistics.mean((before, after))
    return {
        "threads": torch.get_num_threads(),
        "gflops_before": before,
        "gflops_after": after,
        "seconds": results,
        "factor_against_released": {
            p: {k: RELEASED[k] * scale / s[k] for k in RELEASED if k in s}
            for p, s in results.items()
        },
        "factor_against_plain": {
            p: {k: PLAIN[k] * scale / s[k] for k in PLAIN if k in s} for p, s in results.items()
        },
        "bfloat16_relative_error": float(error),
    }


def show(found: dict[str, Any]) -> None:
    table = Table(title="Guidance, configuration medium, 2 GMRES iterations")
    for name in ("work", "float32 s", "bfloat16 s", "x released f32", "x released bf16"):
        table.add_column(name, justify="left" if name == "work" else "right")
    for work, single in found["seconds"]["float32"].items():
        half = found["seconds"]["bfloat16"][work]
        factors = [found["factor_against_released"][p].get(work) for p in ("float32", "bfloat16")]
        table.add_row(
            "4 members x 3 blankets" if work == "step" else work,
            f"{single:.3f}",
            f"{half:.3f}",
            *("" if f is None else f"{f:.2f}" for f in factors),
        )
    console = Console()
    console.print(table)
    console.print(
        f"{found['threads']} threads; calibration {found['gflops_before']:.0f} and "
        f"{found['gflops_after']:.0f} GFLOP/s (reference {REFERENCE_GFLOPS:.0f}); relative error "
        f"of bfloat16 {found['bfloat16_relative_error']:.1e}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one evaluation only")
    arguments = parser.parse_args()
    found = measure(arguments.repeats, arguments.quick)
    print(json.dumps(found, indent=1)) if arguments.json else show(found)


if __name__ == "__main__":
    main()
