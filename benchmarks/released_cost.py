"""Memory and work of guidance with the released 0.25 degree model, computed without a GPU.

One evaluation of MMPS (denoiser, decoder, all solver iterations) runs with the released
configuration's own modules on tensors without data (torch's fake tensors). Every storage that
lives is counted, and so is every multiplication and addition. Members are evaluated one after the
other, as they are where memory is short, and share everything but their latents. Seconds are
those of a card at the given rates, work and traffic one after the other: an upper bound of the
computation and a lower one of everything else. Nothing here is measured.

    python -m benchmarks.released_cost [--json] [--hours 24] [--members 1 8] [--budget 30]
"""

import argparse
import json
import weakref
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from benchmarks.denoiser_flops import CONFIGS
from model.autoencoder import Autoencoder
from model.backbone import Backbone
from model.denoiser import BlanketDenoiser, Precision, reduced_precision
from model.execution import Chunks
from model.guidance.base import BlanketRows
from model.guidance.jacobian import MMPS, MMPSSettings
from model.guidance.observed import DecodedObservations
from model.guidance.solvers import Tangent

GIB = 2**30
FAKE = FakeTensorMode(allow_non_fake_inputs=True)
"""Of all tensors here; entered to make them, not to compute, so that indices stay real."""
NETWORK = {"stations": 50_000, "sondes": 8_000, "aircraft": 30_000, "sounder swath": 100_000}
"""Values per hour, each read from four grid points."""
NAME = ", ".join(f"{count} {kind}" for kind, count in NETWORK.items()) + " values an hour"
BUDGET_GIB = 36.0
CARD = {"float32": 60.0, "bfloat16": 500.0, "bytes": 2500.0}
"""TFLOP/s and GB/s that a large card sustains; `--tflops` and `--bandwidth` give others."""


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        precision: Of the products.
        members: Members, evaluated one after the other.
        hours: Observed hours of the blanket of 24.
        peak_gib: Largest memory at once, with weights.
        weights_gib: Of the networks.
        tflop_per_evaluation: Of one guided evaluation of one member.
        decoder_share: Of that work.
        network: Observations assumed.
        seconds: Of one evaluation of all members.
        gib_per_hour: Kept of each decoded state between solver iterations.
        kept_hours: Hours of which that is kept; the others are linearised again.
    """

    precision: str
    members: int
    hours: int
    peak_gib: float
    weights_gib: float
    tflop_per_evaluation: float
    decoder_share: float
    network: str
    seconds: float
    gib_per_hour: float
    kept_hours: int


class Storages(TorchDispatchMode):
    """Count the bytes of living storages, and the bytes that operations read and write."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = self.moved = self.operations = self.decoder = 0
        self._known: dict[int, Any] = {}

    def add(self, tensor: Tensor) -> None:
        """Count a tensor's storage while it lives."""
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._known:
            return
        size = storage.nbytes()
        self.now += size
        self.peak = max(self.peak, self.now)

        def gone(_: object) -> None:
            self.now -= size
            del self._known[key]

        self._known[key] = weakref.ref(storage, gone)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        count = flop_registry.get(func._overloadpacket)
        if count is not None:
            operations = count(*args, **(kwargs or {}), out_val=made)
            self.operations += operations
            self.decoder += operations if "convolution" in func.name() else 0
        tensors = [t for t in torch.utils._pytree.tree_leaves(made) if isinstance(t, Tensor)]
        for tensor in tensors:
            if isinstance(tensor, FakeTensor):
                self.add(tensor)
        if not func.is_view:
            read = [t for t in torch.utils._pytree.tree_leaves(args) if isinstance(t, Tensor)]
            self.moved += sum(t.numel() * t.element_size() for t in (*read, *tensors))
        return made


class GridPoints:
    """Values that are the mean of four grid points of one state each."""

    def __init__(self, hours: int, state_shape: tuple[int, int, int]) -> None:
        count, values = sum(NETWORK.values()), int(np.prod(state_shape))
        self.state_shape = (24, *state_shape)
        start = np.linspace(0, values - 1, 4 * count).astype(np.int64)
        self.columns = np.concatenate([hour * values + start for hour in range(hours)])
        hour = np.repeat(np.arange(hours), count)
        self.time_support = hour, hour
        self.values = torch.ones(len(hour))
        self.error_std = torch.ones(len(hour))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def operator(self) -> "GridPoints":
        return self

    def observe(self, values: Tensor) -> Tensor:
        means: Tensor = values.float().unflatten(-1, (-1, 4)).mean(-1)
        return means

    def __call__(self, states: Tensor) -> Tensor:
        return self.observe(states.flatten(-4)[..., torch.from_numpy(self.columns)])


class Released:
    """The released networks without data."""

    def __init__(self, precision: Precision) -> None:
        self.config, backbone = CONFIGS["released"]
        self.precision = precision
        with torch.device("meta"):  # their initialisation takes long on fake tensors
            self.autoencoder = Autoencoder(self.config).requires_grad_(False).eval()
            network = Backbone(backbone).requires_grad_(False).eval()
        with FAKE:
            self.autoencoder.to_empty(device="cpu")
            network.to_empty(device="cpu")
            self.std = torch.empty(self.config.in_channels, 1, 1)
        self.denoise = BlanketDenoiser(network, precision=precision)

    @property
    def weights(self) -> list[Tensor]:
        """All parameters and buffers."""
        modules = (self.autoencoder, self.denoise)
        return [t for m in modules for t in (*m.parameters(), *m.buffers())]

    def decode(self, latents: Tensor) -> Tensor:
        """Like `LatentModel.decode` without mask."""
        with reduced_precision(latents.device, self.precision):
            states = self.autoencoder.decode(latents)
        physical: Tensor = states.to(latents.dtype) * self.std + self.std
        return physical


@dataclass(frozen=True)
class Cost:
    """Of one evaluation of one member: bytes, operations and bytes moved."""

    peak: int
    weights: int
    operations: int
    decoder: int
    moved: int
    chunks: Chunks
    kept_bytes: int


def evaluate(precision: Precision, hours: int, budget: int) -> Cost:
    """Return the cost of one MMPS evaluation with recycled solution, its most expensive form."""
    model = Released(precision)
    shape = (model.config.in_channels, *model.config.shape)
    guide_of = DecodedObservations([GridPoints(hours, shape)], model.decode)
    with FAKE:
        x_t = torch.empty(1, 24, *model.config.latent_shape)
        previous = torch.empty(hours * sum(NETWORK.values()))
        date = torch.zeros(1, 24, 4, dtype=torch.int64)
    rows, sigma = BlanketRows(torch.tensor([0]), torch.tensor([0])), torch.tensor(1.0)
    chunks = Chunks(budget)
    guide = MMPS(guide_of, MMPSSettings(), chunks=chunks)
    guide(model.denoise, x_t, sigma, date, rows)  # decides on chunks
    guide._previous[(0, 0)] = previous
    storages = Storages()
    for tensor in (*model.weights, x_t, previous):
        storages.add(tensor)
    weights = sum(t.numel() * t.element_size() for t in model.weights)
    with storages:
        guide(model.denoise, x_t, sigma, date, rows)
    return Cost(
        storages.peak, weights, storages.operations, storages.decoder, storages.moved, chunks,
        kept_per_state(model),
    )  # fmt: skip


def kept_per_state(model: Released) -> int:
    """Return the bytes that the linearised decoding of one state keeps."""
    with FAKE:
        z = torch.empty(1, *model.config.latent_shape)
    storages = Storages()
    for tensor in (*model.weights, z):
        storages.add(tensor)
    before = storages.now
    with storages:
        tangent = Tangent(
            lambda x: model.decode(x).flatten(1).index_select(1, torch.arange(1000)), z
        )
        tangent.push(torch.empty_like(z))
    kept = storages.now - before
    del tangent
    return kept


def table(arguments: argparse.Namespace) -> list[Row]:
    """Return all lines."""
    rows = []
    for precision in arguments.precision:
        rate = arguments.tflops or CARD[precision]
        for hours in arguments.hours:
            cost = evaluate(precision, hours, int(arguments.budget * GIB))
            seconds = cost.operations / rate / 1e12 + cost.moved / arguments.bandwidth / 1e9
            latents = 2 * 24 * int(np.prod(Released(precision).config.latent_shape)) * 4
            for members in arguments.members:
                rows.append(
                    Row(
                        precision,
                        members,
                        hours,
                        round((cost.peak + (members - 1) * latents) / GIB, 2),
                        round(cost.weights / GIB, 2),
                        round(cost.operations / 1e12, 1),
                        round(cost.decoder / cost.operations, 3),
                        NAME,
                        round(members * seconds, 2),
                        round(cost.kept_bytes / GIB, 3),
                        min(cost.chunks.kept, hours),
                    )
                )
    return rows


def main() -> None:
    """Compute and print."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--hours", nargs="+", type=int, default=[3, 6, 12, 24])
    parser.add_argument("--members", nargs="+", type=int, default=[1, 3, 8])
    parser.add_argument("--budget", type=float, default=BUDGET_GIB, help="GiB of an evaluation")
    parser.add_argument("--tflops", type=float, help="of the card, for all precisions")
    parser.add_argument("--bandwidth", type=float, default=CARD["bytes"], help="GB/s of the card")
    arguments = parser.parse_args()
    rows = table(arguments)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
        return
    shown = Table(title=f"Released model, one guided evaluation, computed; {NAME}")
    names = [name for name in asdict(rows[0]) if name != "network"]
    for name in names:
        shown.add_column(name.replace("_", " "), justify="right")
    for row in rows:
        shown.add_row(*(str(getattr(row, name)) for name in names))
    Console().print(shown)


if __name__ == "__main__":
    main()
