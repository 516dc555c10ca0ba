"""Provide what every training loop needs: settings, optimisers, averaged weights, exact resume.

A run is a folder: `config.yaml`, `last.pt` (replaced atomically), `metrics.jsonl`, TensorBoard
files. Batches and noise are drawn from a generator seeded by (seed, step, rank), so a resumed run
sees what an uninterrupted one would have seen and no generator state has to be kept.

Muon (https://kellerjordan.github.io/posts/muon, arXiv 2502.16982) makes all directions of a
matrix's update equally large. It is meant for hidden layers: embeddings, the projections into and
out of the network, biases and convolutions keep AdamW. Rates are those of AdamW, for updates are
scaled to its root mean square.
"""

import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import torch
import torch.distributed as dist
import yaml
from pydantic import BaseModel, ConfigDict, Field
from rich.console import Console
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from model.denoiser import reduced_precision
from model.domain.errors import ConfigurationError
from model.domain.files import open_atomic, write_atomic

__all__ = [
    "MatrixOptimiser",
    "Optimisation",
    "TrainingRun",
    "averaged",
    "averaged_weights",
    "built_once",
    "generator",
    "gradient_sync",
    "prefetched",
    "rank_and_world",
    "setup_distributed",
    "wait_for_file",
]

Key = TypeVar("Key")
Value = TypeVar("Value")


class Optimisation(BaseModel):
    """Settings of the optimiser and of the training loop.

    The learning rate rises linearly over `warmup` steps, then falls along a half cosine to
    `final_ratio` of its peak at `steps`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    steps: Annotated[int, Field(gt=0)]
    batch: Annotated[int, Field(gt=0)] = 16
    accumulate: Annotated[int, Field(gt=0)] = 1
    learning_rate: float = 3e-4
    final_ratio: float = 0.02
    warmup: int = 200
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float = 1.0
    ema_decay: float = 0.999
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    seed: int = 0
    save_minutes: float = 3.0
    log_every: int = 50

    def optimiser(self, module: nn.Module) -> torch.optim.AdamW:
        """Return AdamW over the trainable parameters."""
        parameters = [p for p in module.parameters() if p.requires_grad]
        return torch.optim.AdamW(
            parameters, lr=self.learning_rate, betas=self.betas, weight_decay=self.weight_decay
        )

    def rate(self, step: int) -> float:
        """Return the learning rate over its peak at `step`."""
        if step < self.warmup:
            return (step + 1) / self.warmup
        share = min((step - self.warmup) / max(self.steps - self.warmup, 1), 1.0)
        return self.final_ratio + (1 - self.final_ratio) * 0.5 * (1 + math.cos(math.pi * share))

    def set_rate(self, optimiser: torch.optim.Optimizer, step: int) -> None:
        """Set the learning rate of `step`."""
        for group in optimiser.param_groups:
            group["lr"] = self.learning_rate * self.rate(step)

    def update(
        self, module: nn.Module, optimiser: torch.optim.Optimizer, ema: AveragedModel
    ) -> None:
        """Step with clipped gradients, reset them, and average the new weights into `ema`."""
        nn.utils.clip_grad_norm_(module.parameters(), self.clip)
        optimiser.step()
        optimiser.zero_grad(set_to_none=True)
        ema.update_parameters(module)

    def autocast(self, device: str) -> AbstractContextManager[None]:
        """Return the context in which the forward pass is computed.

        `auto` is bfloat16 where the device supports it in hardware.
        """
        precision = None if self.precision == "auto" else self.precision
        return reduced_precision(torch.device(device), precision)


def averaged(module: nn.Module, decay: float) -> AveragedModel:
    """Return the exponential moving average of the weights of `module`."""
    return AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(decay))


def averaged_weights(checkpoint: Path) -> tuple[dict[str, Tensor], int]:
    """Return the averaged weights of a run's checkpoint, and how many steps it had done."""
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")
    kept = {k: v for k, v in state["parts"][1].items() if k.startswith("module.")}
    return {k.removeprefix("module."): v for k, v in kept.items()}, int(state["step"])


def generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """Return the random generator of one step of one rank, the same in every run with this seed."""
    mixed = (seed * 1_000_003 + step) * 4_099 + rank
    return torch.Generator().manual_seed(mixed % (2**63))


def setup_distributed() -> torch.device:
    """Join the process group that torchrun describes, if any; return this process's device."""
    if "LOCAL_RANK" in os.environ and not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    if torch.cuda.is_available():
        device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")


def wait_for_file(path: Path) -> None:
    """Wait for a file that another rank writes; a collective operation would time out after a while."""
    while not path.exists():
        time.sleep(0.1)


def built_once(path: Path, build: Callable[[], None]) -> None:
    """Have rank 0 make a file that is not there yet; the others wait for it.

    Arguments:
        path: On a file system that all ranks share.
        build: Makes it, in one piece.
    """
    if not path.exists() and rank_and_world()[0] == 0:
        build()
    wait_for_file(path)


def rank_and_world() -> tuple[int, int]:
    """Return this process's rank and the number of processes."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def gradient_sync(module: nn.Module, *, last: bool) -> AbstractContextManager[Any]:
    """Return the context of a backward pass; ranks average gradients only in the last of a step."""
    if not last and isinstance(module, DistributedDataParallel):
        return module.no_sync()
    return nullcontext()


def prefetched(
    read: Callable[[Key], Value], keys: Iterable[Key], ahead: int = 2
) -> Iterator[Value]:
    """Yield what is read for each key, in order, while the next ones are being read.

    Arguments:
        read: Called from other threads.
        keys: What to read.
        ahead: How many values are held, or being read, beyond the one that was yielded.
    """
    pool = ThreadPoolExecutor(max(ahead, 1), "prefetch")
    waiting: deque[Future[Value]] = deque()
    try:
        for key in keys:
            waiting.append(pool.submit(read, key))
            if len(waiting) > ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


class TrainingRun:
    """The folder of one training run.

    Arguments:
        folder: Made if absent.
        config: Written to `config.yaml`; a folder that was started with another one is refused,
            because a resumed run must be the same run (`steps` alone may be raised).
    """

    def __init__(self, folder: Path, config: BaseModel) -> None:
        self.folder = folder
        self.rank, _ = rank_and_world()
        folder.mkdir(parents=True, exist_ok=True)
        self._check(config)
        self._console = Console()
        self._writer: Any = None
        self._saved = self._logged = time.monotonic()
        self._samples = 0

    def _check(self, config: BaseModel) -> None:
        path, values = self.folder / "config.yaml", config.model_dump(mode="json")
        if path.exists():
            before = yaml.safe_load(path.read_text())
            differing = _differences(before, values)
            if differing - {"optimisation.steps", "optimisation.save_minutes"}:
                raise ConfigurationError(
                    f"Expected the configuration {path} was started with; these differ: "
                    f"{', '.join(sorted(differing))}. Use another folder for another run."
                )
        if self.rank == 0:
            write_atomic(path, yaml.safe_dump(values, sort_keys=False))  # other ranks may read it

    def resume(self, *parts: Any) -> int:
        """Load the state of `parts` if there is a checkpoint; return the next step."""
        path = self.folder / "last.pt"
        if not path.exists():
            return 0
        state = torch.load(path, weights_only=True, map_location="cpu")
        for part, values in zip(parts, state["parts"], strict=True):
            part.load_state_dict(values)
        return int(state["step"])

    def save(self, step: int, *parts: Any) -> None:
        """Replace the checkpoint atomically; `step` is the next one to run."""
        if self.rank != 0:
            return
        with open_atomic(self.folder / "last.pt") as file:
            torch.save({"step": step, "parts": [p.state_dict() for p in parts]}, file)
        self._saved = time.monotonic()

    def due(self, minutes: float) -> bool:
        """Return whether the last save is `minutes` old."""
        return time.monotonic() - self._saved > 60 * minutes

    def log(self, step: int, total: int, samples: int, **values: float | Tensor) -> None:
        """Print and record metrics with the samples per second since the last call."""
        if self.rank != 0:
            return
        now = time.monotonic()
        rate = samples / max(now - self._logged, 1e-9)
        self._logged = now
        numbers = {k: float(v) for k, v in values.items()}
        record = {"step": step, "samples_per_second": rate, **numbers}
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
        text = " ".join(f"{k} {v:.4g}" for k, v in numbers.items())
        self._console.print(f"step {step}/{total} {text} | {rate:.1f} samples/s", highlight=False)
        for name, value in numbers.items():
            self._tensorboard().add_scalar(name, value, step)

    def _tensorboard(self) -> Any:
        if self._writer is None:
            # TensorBoard is an optional extra, needed only by training.
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self.folder))
        return self._writer


def _differences(before: Any, after: Any, prefix: str = "") -> set[str]:
    if isinstance(before, dict) and isinstance(after, dict):
        keys = before.keys() | after.keys()
        found: set[str] = set()
        for key in keys:
            found |= _differences(before.get(key), after.get(key), f"{prefix}{key}.")
        return found
    return set() if before == after else {prefix.rstrip(".")}


class MatrixOptimiser:
    """Muon and AdamW, stepped together.

    Arguments:
        module: The network; `blocks` in a parameter's name marks a hidden layer.
        learning_rate: Of the matrices of hidden layers.
        other_rate: Of everything else.
        weight_decay: Of both.
    """

    def __init__(
        self,
        module: nn.Module,
        learning_rate: float,
        other_rate: float,
        weight_decay: float = 0.01,
    ) -> None:
        hidden = {
            name: p
            for name, p in module.named_parameters()
            if p.ndim == 2 and "blocks." in name and min(p.shape) >= 16
        }
        rest = [p for name, p in module.named_parameters() if name not in hidden]
        self.parts: tuple[torch.optim.Optimizer, ...] = (
            torch.optim.Muon(
                hidden.values(),
                lr=learning_rate,
                weight_decay=weight_decay,
                adjust_lr_fn="match_rms_adamw",
            ),
            torch.optim.AdamW(rest, lr=other_rate, betas=(0.9, 0.95), weight_decay=weight_decay),
        )
        self.rates = learning_rate, other_rate

    def step(self, factor: float) -> None:
        """Update at `factor` times the learning rates and reset the gradients."""
        for part, rate in zip(self.parts, self.rates, strict=True):
            for group in part.param_groups:
                group["lr"] = rate * factor
            part.step()
            part.zero_grad(set_to_none=True)

    def state_dict(self) -> dict[str, Any]:
        """Return the states of both parts."""
        return {str(i): part.state_dict() for i, part in enumerate(self.parts)}

    def load_state_dict(self, states: dict[str, Any]) -> None:
        """Restore the states of all parts as `state_dict` returned them."""
        for i, part in enumerate(self.parts):
            part.load_state_dict(states[str(i)])
