"""Draw long windows with several processes on one machine, each with its own device.

`appa worker gpu --ranks N` appears as a single worker. It is rank 0, starts the other ranks and handles
the queue, the job and the results. For a window of at least N blankets it writes the inputs to the
staging folder and sends its path to the others on their standard input; all draw their own blankets
(`model.distributed`), write the latents of their states there, and agree before every step whether to
continue. If a rank dies the attempt ends and is retried; the worker then continues alone.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import structlog
import torch
import torch.distributed as dist
from pydantic import TypeAdapter
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.assimilate import Trajectory
from model.distributed import Ranks
from model.domain.errors import AppaError, ConfigurationError, JobCancelled
from model.domain.windows import HOUR
from model.execution import OnStep
from model.passes import plan_passes
from worker.contract.kinds import JobSpec, SpecBase
from worker.contract.logs import configure_logs
from worker.idle_memory import keep_freed_memory, share_heap
from worker.loaded_models import LoadedModel, LoadedModels, choose_device, open_models
from worker.pipeline.parts import PartInputs
from worker.settings import WorkerSettings
from worker.solver import Draw, MemberSplit, Solver

__all__ = ["RankGroup", "RanksLost", "SharedBlankets"]

log = structlog.get_logger()

_FOLDER = "ranks"
_SILENCE = timedelta(minutes=30)
"""Timeout after which a rank counts as lost, much longer than a step."""


class RanksLost(AppaError):
    """A rank died or met an error of its own; the attempt is repeated without it."""

    code = "ranks_lost"
    retryable = True


def device_of(rank: int, count: int, device: str) -> str:
    """Return the device of a rank: a GPU each, or the processor for all.

    Raises:
        ConfigurationError: If there are fewer GPUs than ranks.
    """
    if choose_device(device).type != "cuda":
        return "cpu"
    if count > torch.cuda.device_count():
        raise ConfigurationError(
            f"Expected a GPU for each of {count} ranks; this machine shows "
            f"{torch.cuda.device_count()}. Start fewer, or use APPA_DEVICE=cpu."
        )
    return f"cuda:{rank}"


def join(rank: int, count: int, meeting: Path) -> Ranks:
    """Join the process group that meets in a file."""
    dist.init_process_group(
        "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=count,
        timeout=_SILENCE,
    )
    return Ranks()


class AgreedSteps:
    """Make all ranks continue, or stop, before the same step, as rank 0 decides.

    Arguments:
        on_step: Called on rank 0; None on the others.

    Attributes:
        stopped: Whether all ranks have stopped.
    """

    def __init__(self, on_step: OnStep | None = None) -> None:
        self.on_step = on_step
        self.stopped = False

    def __call__(self, step: int, steps: int) -> None:
        """Report that diffusion step `step` of `steps` begins, as `OnStep`."""
        error: Exception | None = None
        if self.on_step is not None:
            try:
                self.on_step(step, steps)
            except Exception as raised:  # sent to the others, then raised
                error = raised
        stops = torch.tensor([error is not None])
        dist.broadcast(stops, src=0)
        self.stopped = bool(stops.item())
        if error is not None:
            raise error
        if self.stopped:
            raise JobCancelled("Rank 0 stops.")


class RankGroup:
    """The ranks of this worker, as managed by rank 0.

    The others end when their standard input ends, so also when rank 0 is killed: requests come that
    way in any case. A rank that draws then fails at the next step, which it cannot agree on.

    Arguments:
        settings: Settings of the worker; the other ranks have the same except for the device.
        count: Number of ranks, including rank 0.
    """

    def __init__(self, settings: WorkerSettings, count: int) -> None:
        self.count = count
        self._folder = Path(tempfile.mkdtemp(prefix="appa-ranks-"))
        meeting = self._folder / "meeting"
        self._others = [
            subprocess.Popen(
                [sys.executable, "-m", "worker.ranks", str(rank), str(count), str(meeting)],
                env=os.environ | {"APPA_DEVICE": device_of(rank, count, settings.device)},
                stdin=subprocess.PIPE,
                text=True,
            )
            for rank in range(1, count)
        ]
        self.ranks = join(0, count, meeting)

    @property
    def whole(self) -> bool:
        """Return whether the processes of all other ranks are running."""
        return bool(self._others) and all(other.poll() is None for other in self._others)

    def tell(self, about: dict[str, Any]) -> None:
        """Send a request to draw to the other ranks."""
        for other in self._others:
            if other.stdin is not None:
                other.stdin.write(json.dumps(about) + "\n")
                other.stdin.flush()

    def end(self) -> None:
        """End the other ranks; this worker continues alone."""
        for other in self._others:
            other.kill()
            other.wait()
            if other.stdin is not None:
                with suppress(BrokenPipeError):  # a request that it never read
                    other.stdin.close()
        self._others = []
        shutil.rmtree(self._folder, ignore_errors=True)

    def split(
        self,
        spec: SpecBase,
        folder: Path,
        on_step: OnStep,
        loaded: LoadedModel,
        inputs: PartInputs,
        *,
        minimal_batches: bool,
    ) -> MemberSplit | None:
        """Return how all ranks draw a job; None if its window cannot be shared.

        Arguments:
            spec: Specification of the job.
            folder: Staging folder of the job.
            on_step: Reports progress; raises when the job must stop.
            loaded: The model.
            inputs: Inputs from which members are drawn.
            minimal_batches: Whether an earlier attempt ran out of memory.
        """
        model, plan = loaded.model, inputs.plan
        passes = plan_passes(plan, model.blanket_size, plan.stride or model.blanket_stride)
        if not self.whole or not inputs.divisible or len(passes) > 1:
            return None
        if plan.new_states_per_pass is not None or passes[0].blankets.count < self.count:
            return None
        inputs.write(folder / _FOLDER, loaded, minimal_batches=minimal_batches)
        return SharedBlankets(self, spec, inputs, folder / _FOLDER, on_step)


@dataclass(frozen=True, eq=False)
class SharedBlankets:
    """Draw all members of a window on all ranks, each its own blankets."""

    group: RankGroup
    spec: SpecBase
    inputs: PartInputs
    folder: Path
    on_step: OnStep
    parts: tuple[range, ...] = ()

    @property
    def ranks(self) -> int:
        """Return the number of ranks that share the window."""
        return self.group.count

    def __call__(self, draw: Draw) -> tuple[Tensor, Trajectory]:
        """Return the latents of all members at all times, and the trajectory of this rank."""
        about = {"folder": str(self.folder), "spec": self.spec.model_dump(mode="json")}
        members, steps = range(self.spec.members), AgreedSteps(self.on_step)
        try:
            self.group.tell(about)
            own = draw(members, ranks=self.group.ranks, on_step=steps)
            leave_states(self.folder, 0, own, self.inputs)
            dist.barrier()
            return self._together(own), own
        except Exception as error:
            if not steps.stopped:  # the others are busy or gone
                log.warning("ranks given up", reason=str(error))
                self.group.end()
                # torch's error for a lost rank, or that of writing to one that has ended
                if isinstance(error, RuntimeError | BrokenPipeError):
                    raise RanksLost(f"Expected {self.ranks} ranks; one is lost.") from error
            raise
        finally:
            shutil.rmtree(self.folder, ignore_errors=True)

    def _together(self, own: Trajectory) -> Tensor:
        shape = (self.spec.members, self.inputs.plan.length, *own.latents.shape[2:])
        latents = torch.empty(shape, dtype=own.latents.dtype)
        for rank in range(self.ranks):
            with safe_open(self.folder / f"{rank}.safetensors", framework="pt") as file:
                states, first = file.get_tensor("latents"), int(file.metadata()["first"])
            # States held by two ranks are bitwise equal.
            latents[:, first : first + states.shape[1]] = states
        return latents


def leave_states(folder: Path, rank: int, drawn: Trajectory, inputs: PartInputs) -> None:
    """Write the latents of a rank's states for rank 0."""
    first = round((drawn.first_time - inputs.plan.times[0]) / HOUR)
    path = folder / f"{rank}.safetensors"
    save_file({"latents": drawn.latents.contiguous()}, path, {"first": str(first)})


def _follow(models: LoadedModels, ranks: Ranks, about: dict[str, Any]) -> None:
    """Draw the blankets of this rank for one job."""
    spec = TypeAdapter[SpecBase](JobSpec).validate_python(about["spec"])
    loaded, folder = models.get(spec.model).at(spec.precision), Path(about["folder"])
    inputs, told = PartInputs.read(folder, spec, loaded)
    solver = Solver(
        loaded.model, spec, AgreedSteps(), minimal_batches=bool(told["minimal_batches"])
    )
    draw = solver.draw(inputs.plan, inputs.observations, inputs.background)
    leave_states(folder, ranks.rank, draw(range(spec.members), ranks=ranks), inputs)
    dist.barrier()


def main() -> None:
    """Follow rank 0 until it closes the standard input; any error ends this rank."""
    rank, count, meeting = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    share_heap()
    settings = WorkerSettings()
    configure_logs(settings)
    ranks = join(rank, count, meeting)
    models = open_models(settings)
    keep_freed_memory(models.window_bytes)
    for line in sys.stdin:
        try:
            _follow(models, ranks, json.loads(line))
        except JobCancelled:
            log.info("stopped", rank=rank)


if __name__ == "__main__":
    main()
