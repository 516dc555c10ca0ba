"""Speed-up of one job by more devices: measured with 1 and 2 processes, computed to 64 cards.

    python -m benchmarks.devices [--json] [--steps 4] [--members 8] [--blankets 8]
    python -m benchmarks.devices --only blankets --blankets 364 --unobserved --steps 2

Measured are `appa-t31`, MMPS and one thread a process: members of one window over processes, and the
blankets of one long window over ranks; the second command draws half a year. The speed-up is of the
time on the clock; beside it stands that of the processor time of the slowest process, which other work
on the machine does not spoil as much, and the memory of the largest process beyond the loaded model.

Computed is a job of the released model on cards of the given rates: what each card does for its members,
what the holder of the job does alone (decoding and writing all members), what passes through Redis and
between ranks. The operations of the networks are counted; the rates are arguments.
"""

import argparse
import json
import resource
import tempfile
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn

from benchmarks.denoiser_flops import CONFIGS, counted
from model.assimilate import assimilate
from model.assimilation_settings import AssimilationSettings
from model.checkpoints.bundle import load_checkpoint
from model.distributed import Ranks
from model.domain.windows import WindowPlan
from model.guidance.jacobian import MMPSSettings
from model.samplers.sampling import SamplerSettings
from worker.pipeline.parts import cut_members

__all__ = ["PairTiming", "Scaling", "computed", "measure"]

START = datetime(2021, 3, 4, tzinfo=UTC)
ROWS = slice(10, 40, 6)
"""Rows of the grid that are observed, all along them, in every channel."""


@dataclass(frozen=True)
class GridRows:
    """Values of a few rows of every state, in the protocol of `ObservationSet`."""

    hours: int
    channels: int
    columns: int
    error: Tensor

    def __len__(self) -> int:
        return self.hours * self.channels * len(range(48)[ROWS]) * self.columns

    def operator(self, states: Tensor) -> Tensor:
        """Return the values of states (*, T, C, Y, X), with shape (*, N)."""
        return states[..., ROWS, :].flatten(-4)

    @property
    def values(self) -> Tensor:
        return torch.zeros(len(self))

    @property
    def error_std(self) -> Tensor:
        one = self.error[None, :, None].expand(self.hours, -1, len(self) // len(self.error))
        return one[..., : len(self) // (self.hours * self.channels)].flatten()

    @property
    def time_support(self) -> tuple[np.ndarray, np.ndarray]:
        hour = np.repeat(np.arange(self.hours), len(self) // self.hours)
        return hour, hour

    def select(self, mask: np.ndarray) -> "GridRows":
        """Return the rows of the hours that a mask keeps."""
        hours = int(mask.reshape(self.hours, -1).all(axis=1).sum())
        return GridRows(hours, self.channels, self.columns, self.error)

    def for_blanket(self, start: int, stop: int) -> "GridRows":
        """Return those of the states [start, stop)."""
        return GridRows(
            min(stop, self.hours) - max(start, 0), self.channels, self.columns, self.error
        )


@dataclass(frozen=True)
class Work:
    """Work shared by the processes: several members of one blanket, or one member of many blankets."""

    kind: str
    members: int
    blankets: int
    steps: int
    observed: bool = True


def _part(rank: int, count: int, work: Work, folder: str) -> None:
    """Do one process's share and leave its times."""
    torch.set_num_threads(1)
    meeting = f"file://{folder}/meet"
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=count)
    model = load_checkpoint("appa-t31")
    settings = AssimilationSettings(
        sampler=SamplerSettings(name="xeab", steps=work.steps),
        guidance=MMPSSettings(iterations=2),
    )
    size, stride = model.blanket_size, model.blanket_stride
    plan = WindowPlan.reanalysis(START, size + (work.blankets - 1) * stride, stride=stride)
    channels, columns = len(model.channels), int(model.card.grid.nlon)
    error = 0.5 * model.state_normalisation.std.flatten()
    seen: Any = GridRows(plan.length, channels, columns, error) if work.observed else None
    members = range(work.members)
    options: dict[str, Any] = {"ranks": Ranks()} if work.kind == "blankets" and count > 1 else {}
    if work.kind == "members":
        members = cut_members(work.members, count, 1)[rank]
        options = {"first_member": members.start, "ensemble": work.members}
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    dist.barrier()
    wall, used = time.perf_counter(), time.process_time()
    assimilate(model, seen, plan, len(members), 0, settings=settings, decode=False, **options)
    times = {"wall": time.perf_counter() - wall, "processor": time.process_time() - used}
    times["memory"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1e3
    (Path(folder) / f"{rank}.json").write_text(json.dumps(times))
    dist.destroy_process_group()


@dataclass(frozen=True)
class PairTiming:
    """Times of one and of two processes.

    Attributes:
        kind: `members` or `blankets`.
        seconds: On the clock, of 1 and 2 processes, of the slowest of them.
        processor_seconds: Of the slowest process.
        megabytes: At the peak, beyond the loaded model, of the largest process.
    """

    kind: str
    seconds: tuple[float, float]
    processor_seconds: tuple[float, float]
    megabytes: tuple[float, float]

    @property
    def speedup(self) -> float:
        """Ratio of the wall-clock time of one process to that of two."""
        return self.seconds[0] / self.seconds[1]

    @property
    def processor_speedup(self) -> float:
        """Likewise of processor time: the bound for a machine with nothing else to do."""
        return self.processor_seconds[0] / self.processor_seconds[1]


def measure(work: Work) -> PairTiming:
    """Return the times of one and of two processes."""
    found = []
    for count in (1, 2):
        with tempfile.TemporaryDirectory() as folder:
            spawn(_part, (count, work, folder), nprocs=count)
            times = [json.loads((Path(folder) / f"{r}.json").read_text()) for r in range(count)]
        found.append({key: max(t[key] for t in times) for key in times[0]})
    one, two = found

    def both(key: str) -> tuple[float, float]:
        return one[key], two[key]

    return PairTiming(work.kind, both("wall"), both("processor"), both("memory"))


@dataclass(frozen=True)
class Scaling:
    """A job of the released model on some cards.

    Attributes:
        devices: Cards.
        sampling: Seconds in which the slowest card draws its members.
        alone: Seconds of the worker that holds the job: decoding and writing.
        redis: Operations a second of all cards: heartbeats, steps, looks at the board.
        read_gb: Inputs that are read from the shared folder, by all cards together.
        speedup: Of the whole job over one card.
        exchanged_mb: Of one member's long window (a blanket of 24 h a card, stride 12): latents that
            a card sends and receives in every denoising.
    """

    devices: int
    sampling: float
    alone: float
    redis: float
    read_gb: float
    speedup: float
    exchanged_mb: float


def computed(arguments: argparse.Namespace) -> list[Scaling]:
    """Return a job of `--members` members of 24 hours on 1 to 64 cards."""
    autoencoder, backbone = CONFIGS["released"]
    decoder = counted("released", 1, 1)["decoder"]
    latent = 4 * int(np.prod(autoencoder.latent_shape))
    state = 4 * autoencoder.in_channels * int(np.prod(autoencoder.shape))
    hours, members = backbone.blanket_size, arguments.ensemble
    evaluations = arguments.evaluations
    alone = 2 * members * hours * decoder / arguments.tflops  # background and analysis
    alone += members * arguments.written * state / arguments.disk / 1e9
    inputs = members * hours * latent + arguments.rows * 200  # background, and rows of observations
    found: list[Scaling] = []
    for devices in (1, 2, 4, 8, 16, 32, 64):
        parts = cut_members(members, devices, 1)
        largest = max(len(part) for part in parts)
        sampling = largest * evaluations * arguments.evaluation / arguments.tflops
        # Each part: a heartbeat four times in its lifetime, and a step (told, then all read) a second
        # at most; the holder looks at the board five times a second while it waits.
        redis = len(parts) * (4 / arguments.lease + 2) + 5
        overlap = 2 * (hours - hours // 2) * latent if devices > 1 else 0
        whole = sampling + alone
        first = found[0].sampling + found[0].alone if found else whole
        found.append(
            Scaling(
                devices, sampling, alone, redis, len(parts) * inputs / 1e9, first / whole,
                2 * overlap / 1e6,
            )
        )  # fmt: skip
    return found


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=4, help="diffusion steps of what is measured")
    parser.add_argument("--members", type=int, default=8, help="of what is measured")
    parser.add_argument("--blankets", type=int, default=8, help="of what is measured")
    parser.add_argument("--ensemble", type=int, default=64, help="members of what is computed")
    parser.add_argument("--evaluations", type=int, default=16, help="of guidance, per member")
    parser.add_argument("--evaluation", type=float, default=780.0, help="TFLOP of one")
    parser.add_argument("--rows", type=int, default=24 * 188_000, help="observed values")
    parser.add_argument("--tflops", type=float, default=500.0, help="that a card sustains")
    parser.add_argument("--disk", type=float, default=1.0, help="GB/s written, compressed")
    parser.add_argument("--written", type=int, default=1, help="hours written")
    parser.add_argument("--lease", type=float, default=30.0, help="APPA_LEASE_SECONDS")
    parser.add_argument("--only", choices=("members", "blankets"), help="measure these alone")
    parser.add_argument("--unobserved", action="store_true", help="draw from the prior")
    parser.add_argument("--computed-only", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser.parse_args()


def main() -> None:
    """Measure the speedup of two processes, compute the scaling, and print both tables."""
    asked = _arguments()
    works = [
        Work("members", asked.members, 1, asked.steps, not asked.unobserved),
        Work("blankets", 1, asked.blankets, asked.steps, not asked.unobserved),
    ]
    works = [w for w in works if not asked.computed_only and asked.only in (None, w.kind)]
    measured = [measure(work) for work in works]
    scaling = computed(asked)
    if asked.json:
        rows = [
            asdict(m) | {"speedup": m.speedup, "processor_speedup": m.processor_speedup}
            for m in measured
        ]
        print(json.dumps({"measured": rows, "computed": [asdict(row) for row in scaling]}))
        return
    for m in measured:
        one, two = m.seconds
        print(
            f"{m.kind}: {one:.1f} s with one process, {two:.1f} s with two: {m.speedup:.2f} x "
            f"({m.processor_speedup:.2f} x by processor time); "
            f"{m.megabytes[0]:.0f} MB, {m.megabytes[1]:.0f} MB each"
        )
    print(f"computed: {asked.ensemble} members of 24 h at 0.25 degrees, {asked.tflops:g} TFLOP/s")
    print("cards  sampling s  holder alone s  speed-up  Redis /s  inputs GB  exchanged MB")
    for row in scaling:
        print(
            f"{row.devices:5d}  {row.sampling:10.0f}  {row.alone:14.0f}  {row.speedup:8.1f}  "
            f"{row.redis:8.0f}  {row.read_gb:9.1f}  {row.exchanged_mb:12.1f}"
        )


if __name__ == "__main__":
    main()
