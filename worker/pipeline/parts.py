"""Distribute the members of a job over workers, and combine them again.

The worker that holds the job writes the inputs of the analysis to its staging folder: background,
observations after all checks. A helping worker reads them there, draws members and writes their latents
to the same folder. Which members are drawn together can change their last bits, so the parts are
recorded in the provenance and a replay draws the same ones.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import pyarrow as pa
import pyarrow.feather as feather
import structlog
import torch
from redis.exceptions import RedisError
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from model.assimilate import Trajectory
from model.domain.errors import ConfigurationError
from model.domain.windows import WindowPlan
from model.operators.observation_set import ObservationSet
from worker.contract.kinds import SpecBase
from worker.contract.parts import PartBoard
from worker.contract.queues import GPU_QUEUE, WorkerReport
from worker.lease import ProgressReporter
from worker.loaded_models import LoadedModel
from worker.observations.columns import not_rejected
from worker.pipeline.departures import monitored_set
from worker.solver import Background, Draw, MemberSplit

__all__ = [
    "Consecutive",
    "PartInputs",
    "SharedMembers",
    "Splitter",
    "cut_members",
    "free_workers",
    "take_parts",
]

log = structlog.get_logger()

_ROWS, _BACKGROUND = "observations.arrow", "background.safetensors"


def cut_members(members: int, workers: int, min_members: int) -> tuple[range, ...]:
    """Return member numbers by part: at most one part per worker, of `min_members` members or more.

    Antithetic pairs stay together, because they share their noise.
    """
    min_pairs, pairs = max(1, -(-min_members // 2)), -(-members // 2)
    count = max(1, min(workers, members // (2 * min_pairs)))
    edges = [2 * (pairs * i // count) for i in range(count)] + [members]
    return tuple(range(a, b) for a, b in zip(edges, edges[1:], strict=False))


def free_workers(
    reports: Sequence[WorkerReport], own: WorkerReport, loaded: LoadedModel
) -> list[WorkerReport]:
    """Return the other idle workers that would draw identical members."""
    return [
        report
        for report in reports
        if report.ready
        and report.name != own.name
        and report.busy_with is None
        and GPU_QUEUE in report.queues
        and report.version == own.version
        and _kind(report.device) == _kind(own.device)
        and any(
            info.sha256 == loaded.sha256 and loaded.model.precision in info.precisions
            for info in report.capabilities.models
        )
    ]


def _kind(device: str) -> str:
    """Return a device without its number: `cuda:1 (NVIDIA H100)` is equivalent to `cuda:0 (…)`."""
    name, _, rest = device.partition(" ")
    return f"{name.partition(':')[0]} {rest}"


@dataclass(frozen=True, eq=False)
class PartInputs:
    """Inputs from which the members of a job are drawn.

    Attributes:
        plan: Times of the states.
        observations: Observations that passed all checks.
        background: The first guess.
        rows: All observations with their outcome, from which `observations` are rebuilt.
        past: Number of states of the earlier result, from which the plan is rebuilt.
    """

    plan: WindowPlan
    observations: ObservationSet
    background: Background
    rows: pa.Table
    past: int

    @property
    def divisible(self) -> bool:
        """Return whether dividing pays off: an analysis continued in closed form is cheap."""
        given = len(self.observations) or any(self.plan.tied)
        return bool(given) and self.background.prior is None

    def write(self, folder: Path, loaded: LoadedModel, **about: Any) -> None:
        """Write the inputs to a folder for other workers."""
        folder.mkdir()
        # An Arrow file has one dictionary per column.
        rows = self.rows.unify_dictionaries()
        feather.write_feather(rows, folder / _ROWS, compression="zstd")
        about |= {
            "past": self.past,
            "source": self.background.source,
            "antithetic": self.background.antithetic,
            "model": loaded.sha256,
            "arithmetic": asdict(loaded.arithmetic),
            "observed": _digest(self.observations),
        }
        latents = {"latents": self.background.latents.contiguous().cpu()}
        save_file(latents, folder / _BACKGROUND, {"about": json.dumps(about)})

    @classmethod
    def read(
        cls, folder: Path, spec: SpecBase, loaded: LoadedModel
    ) -> "tuple[PartInputs, Mapping[str, Any]]":
        """Return the inputs and metadata written by another worker.

        Raises:
            OSError: If the attempt has ended and its folder is gone.
            ConfigurationError: If this worker would draw different members.
        """
        with safe_open(folder / _BACKGROUND, framework="pt") as file:
            about = json.loads(file.metadata()["about"])
            latents = file.get_tensor("latents")
        own = {"model": loaded.sha256, "arithmetic": asdict(loaded.arithmetic)}
        if own != {key: about[key] for key in own}:
            raise ConfigurationError(
                f"Expected a worker with {about['model'][:12]} in {about['arithmetic']} to draw "
                f"members; got {loaded.sha256[:12]} in {own['arithmetic']}."
            )
        plan = spec.plan(loaded.model.blanket_size, about["past"])
        rows = feather.read_table(folder / _ROWS)
        monitored, rows = monitored_set(rows, loaded.model, plan.times)
        observations = monitored.select(not_rejected(rows)[monitored.rows])
        if _digest(observations) != about["observed"]:
            raise ConfigurationError(
                f"Expected to make the observations that were left in {folder} as they are; "
                f"{len(observations)} were made, and not the same. Draw all members on one worker."
            )
        background = Background(
            plan.times, latents, about["source"], antithetic=about["antithetic"]
        )
        return cls(plan, observations, background, rows, about["past"]), about


def _digest(observations: ObservationSet) -> str:
    """Return a digest of y and R, to ensure that all parts use the same observations."""
    digest = hashlib.sha256()
    for tensor in (observations.values, observations.error_std):
        digest.update(tensor.detach().cpu().double().numpy().tobytes())
    return digest.hexdigest()


class Splitter(Protocol):
    """Decide whether and how the members of a job are split."""

    def __call__(
        self, loaded: LoadedModel, inputs: PartInputs, *, minimal_batches: bool
    ) -> MemberSplit | None:
        """Return how to draw the parts; None to draw all members at once."""


def take_parts(
    board: PartBoard, draw: Draw, folder: Path, progress: ProgressReporter
) -> Trajectory | None:
    """Take and draw free parts until none is left.

    Arguments:
        board: The parts.
        draw: Draws members by their numbers.
        folder: Folder for their latents.
        progress: Progress of this process; it also receives the steps of all parts.

    Returns:
        The trajectory of the last part; None if there was none to take.
    """
    drawn: Trajectory | None = None
    while (number := board.take(_made(folder, board))) is not None:
        with board.held(number):
            progress.shared = partial(board.report, number)
            drawn = draw(board.parts[number])
            unfinished = folder / f".{os.getpid()}-{number}"
            save_file({"latents": drawn.latents.contiguous()}, unfinished)
            unfinished.rename(_part_file(folder, number))
    return drawn


def _made(folder: Path, board: PartBoard) -> list[int]:
    """Return the finished parts: a file is renamed when it is complete."""
    return [n for n in range(len(board.parts)) if _part_file(folder, n).exists()]


def _part_file(folder: Path, number: int) -> Path:
    return folder / f"{number}.safetensors"


@dataclass(frozen=True, eq=False)
class SharedMembers:
    """Draw the members of a job with several workers, as the one that holds the job.

    Attributes:
        board: The announced parts.
        folder: Folder with the inputs; removed at the end.
        progress: Progress of the job.
        call: Asks the other workers for help.
        interval: Seconds between two checks for finished parts.
    """

    board: PartBoard
    folder: Path
    progress: ProgressReporter
    call: Callable[[], None]
    interval: float = 0.2
    ranks: int = 1

    @property
    def parts(self) -> tuple[range, ...]:
        """Return the member numbers of each part."""
        return self.board.parts

    def __call__(self, draw: Draw) -> tuple[Tensor, Trajectory]:
        """Return the latents of all members, and the trajectory of a part drawn here.

        Finished parts are found by their files, not by the board, so that a restart of the broker only
        costs the help of other workers.
        """
        own: Trajectory | None = None
        try:
            self.call()
            while True:
                try:
                    own = take_parts(self.board, draw, self.folder, self.progress) or own
                except RedisError as error:
                    log.warning("parts unknown", reason=str(error))
                if len(_made(self.folder, self.board)) == len(self.parts):
                    break
                self.progress.shared = lambda step, steps: self.board.progress()
                self.progress.wait()
                time.sleep(self.interval)
            files = [_part_file(self.folder, number) for number in range(len(self.parts))]
            latents = torch.cat([load_file(path)["latents"] for path in files])
            with suppress(RedisError):
                self.progress.adopt_shared_progress()
        finally:
            self.progress.shared = None
            with suppress(RedisError):  # the board expires after a day
                self.board.withdraw()
            shutil.rmtree(self.folder, ignore_errors=True)
        if own is None:  # another worker took over its part
            own = draw(self.parts[0])
        return latents, own


@dataclass(frozen=True)
class Consecutive:
    """Draw the parts of an earlier run one after another, as a replay does."""

    parts: tuple[range, ...]
    ranks: int = 1

    def __call__(self, draw: Draw) -> tuple[Tensor, Trajectory]:
        """Return the latents of all members, and the trajectory of the last part."""
        drawn = [draw(part) for part in self.parts]
        return torch.cat([part.latents for part in drawn]), drawn[-1]
