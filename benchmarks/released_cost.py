"""Memory and work of guidance with the released 0.25 degree model, computed without a GPU.

One evaluation of MMPS (denoiser, decoder, all solver iterations) with the released configuration's
own modules on tensors without data (torch's fake tensors). Every storage that lives is counted,
and so is every multiplication and addition. The first observed hour runs inside the evaluation;
each other hour, which observes elsewhere, adds the decoding of its own points, value and
products, counted for every sixth hour.
Members are evaluated one after the other, as they are where memory is short, and share everything
but their latents. Seconds are those of a card at the given rates, work and traffic one after the
other: an upper bound of the computation and a lower one of everything else. Nothing here is
measured. The solver takes its default iterations, and one product more to recycle the solution
before; `--iterations` gives others, such as the authors' two.

    python -m benchmarks.released_cost [--json] [--hours 24] [--members 1 8] [--budget 30]
"""

import argparse
import json
import weakref
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import (
    flop_registry,
    sdpa_backward_flop_count,
    sdpa_flop_count,
)

from benchmarks.denoiser_flops import CONFIGS
from benchmarks.observing_network import NETWORK, Place, observed_places
from model.autoencoder import Autoencoder
from model.backbone import Backbone
from model.denoiser import BlanketDenoiser, Precision, reduced_precision
from model.execution import Chunks
from model.guidance.base import BlanketRows
from model.guidance.jacobian import MMPS, MMPSSettings
from model.guidance.observed import DecodedObservations
from model.guidance.solvers import Tangent
from model.tiled_decoder import DecodedPoints, PartialDecoder

GIB = 2**30
FAKE = FakeTensorMode(allow_non_fake_inputs=True)
"""Of all tensors here; entered to make them, not to compute, so that indices stay real."""
NAME = ", ".join(f"{count} {kind}" for kind, count in NETWORK.items()) + " values an hour"
BUDGET_GIB = 44.0
"""Of which a quarter is set aside for temporaries; the peak computed is well below."""
CARD = {"float32": 60.0, "bfloat16": 500.0, "bytes": 2500.0}
"""TFLOP/s and GB/s that a large card sustains; `--tflops` and `--bandwidth` give others."""


@dataclass(frozen=True)
class CostRow:
    """Computed cost of one configuration.

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
        tiles_share: Work of decoding an hour's points over that of the whole state.
        iterations: Of the solver, besides the product that recycles.
        gib_per_hour: Kept of each decoded state between solver iterations, the largest.
        kept_hours: Hours of which that is kept; the others are linearised again.
        decode_tflop: Of decoding what is observed, once.
        pull_tflop: Of a product with the transposed Jacobian of that; each solver iteration and
            the recycling take one.
        push_tflop: Of a product with the Jacobian; likewise.
        denoiser_tflop: Of the denoiser and its adjoints, all together.
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
    tiles_share: float
    iterations: int
    gib_per_hour: float
    kept_hours: int
    decode_tflop: float
    pull_tflop: float
    push_tflop: float
    denoiser_tflop: float


def _attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query.shape, key.shape, value.shape))


def _attention_backward(
    g: Tensor, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any
) -> int:
    return int(sdpa_backward_flop_count(g.shape, query.shape, key.shape, value.shape))


COUNTED = {
    **flop_registry,
    # torch's counter knows those of GPUs alone.
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}


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

    def count_anew(self) -> None:
        """Forget the work and the peak so far; what lives is still held."""
        self.peak = self.now
        self.moved = self.operations = self.decoder = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        count = COUNTED.get(func._overloadpacket)
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


@cache
def columns(hour: int, shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the state values that the network reads in an hour, and which four each value takes."""
    return columns_of(observed_places(hour), shape)


def columns_of(
    places: Sequence[Place], shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the same of given places on a regular grid.

    Values of a place take channels in turn: the six of the surface, or those on levels.
    """
    channels, high, wide = shape
    found = []
    for place in places:
        y, x = (90 - place.lat) / 180 * (high - 1), place.lon % 360 / 360 * wide
        y, x = np.clip(y.astype(int), 0, high - 2), x.astype(int) % wide
        cell = np.stack([(y + i) * wide + (x + j) % wide for i in (0, 1) for j in (0, 1)], axis=-1)
        first, count = (0, 6) if place.surface else (6, channels - 6)
        channel = first + np.arange(place.values) % count
        values = channel[:, None, None] * high * wide + cell
        found.append(values.reshape(-1, 4))
    used, where = np.unique(np.concatenate(found), return_inverse=True)
    return used, where.reshape(-1, 4)


class AveragedPoints:
    """Values that are the mean of four grid points of one state each, of the first hours.

    Arguments:
        found: What `columns` returns for each of these hours.
        state_shape: Of a state.
    """

    def __init__(
        self, found: Sequence[tuple[np.ndarray, np.ndarray]], state_shape: tuple[int, int, int]
    ) -> None:
        self.state_shape = (24, *state_shape)
        hours = len(found)
        size = int(np.prod(state_shape))
        self.columns = np.concatenate([used + h * size for h, (used, _) in enumerate(found)])
        before = np.cumsum([0, *(len(used) for used, _ in found)])
        where = [inside + start for start, (_, inside) in zip(before, found, strict=False)]
        self._where = torch.from_numpy(np.concatenate(where))
        hour = np.repeat(np.arange(hours), [len(inside) for _, inside in found])
        self.time_support = hour, hour
        self.values = torch.ones(len(hour))
        self.error_std = torch.ones(len(hour))

    def __len__(self) -> int:
        return len(self.values)

    @property
    def operator(self) -> "AveragedPoints":
        return self

    def observe(self, values: Tensor) -> Tensor:
        means: Tensor = values.float()[..., self._where].mean(-1)
        return means

    def __call__(self, states: Tensor) -> Tensor:
        return self.observe(states.flatten(-4)[..., torch.from_numpy(self.columns)])


class Released:
    """The released networks without data.

    Arguments:
        precision: Of the products.
        name: Of their configuration: on their own grid, or on a smaller one.
    """

    def __init__(self, precision: Precision, name: str = "released") -> None:
        self.config, backbone = CONFIGS[name]
        self.precision = precision
        with torch.device("meta"):  # their initialisation takes long on fake tensors
            self.autoencoder = Autoencoder(self.config).requires_grad_(False).eval()
            network = Backbone(backbone).requires_grad_(False).eval()
        with FAKE:
            self.autoencoder.to_empty(device="cpu")
            network.to_empty(device="cpu")
        self.denoise = BlanketDenoiser(network, precision=precision)
        self.decode = PartialDecoder(self.autoencoder, self._whole, self.read)

    @property
    def weights(self) -> list[Tensor]:
        """Parameters and buffers of both networks, to count their memory."""
        modules = (self.autoencoder, self.denoise)
        return [t for m in modules for t in (*m.parameters(), *m.buffers())]

    @property
    def shape(self) -> tuple[int, int, int]:
        """Shape (C, Y, X) of a state."""
        return (self.config.in_channels, *self.config.shape)

    def _whole(self, latents: Tensor) -> Tensor:
        with reduced_precision(latents.device, self.precision):
            states = self.autoencoder.decode(latents)
        return states.to(latents.dtype) * 2.0 + 1.0

    def read(self, points: DecodedPoints, latents: Tensor) -> Tensor:
        """Return decoded values at points (*, N), as `LatentModel` reads them: scaled and in float32."""
        with reduced_precision(latents.device, self.precision):
            values = points(latents)
        return values.to(latents.dtype) * 2.0 + 1.0

    def counter(self, *inputs: Tensor) -> Storages:
        """Return a counter to which weights and inputs are known."""
        storages = Storages()
        for tensor in (*self.weights, *inputs):
            storages.add(tensor)
        return storages


@dataclass(frozen=True)
class Count:
    """Operations, those of them of the decoder, and bytes moved."""

    operations: int = 0
    decoder: int = 0
    moved: int = 0

    @classmethod
    def of(cls, storages: Storages) -> "Count":
        return cls(storages.operations, storages.decoder, storages.moved)

    def plus(self, other: "Count", times: int = 1) -> "Count":
        """Return the sum with a multiple of another."""
        pairs = zip(asdict(self).values(), asdict(other).values(), strict=True)
        return Count(*(a + times * b for a, b in pairs))


@dataclass(frozen=True)
class HourCost:
    """Cost of decoding the observed points of an hour: products, bytes kept, share of the whole."""

    value: Count
    vjp: Count
    jvp: Count
    kept: int
    share: float


@dataclass(frozen=True)
class Cost:
    """Cost of one guided evaluation of one member."""

    peak: int
    weights: int
    count: Count
    kept_hours: int
    hours: Sequence[HourCost]


def evaluate(
    model: Released, seen: AveragedPoints, budget: int, iterations: int
) -> tuple[Storages, Chunks]:
    """Return what an MMPS evaluation with recycled solution, its most expensive form, counts."""
    with FAKE:
        x_t = torch.empty(1, 24, *model.config.latent_shape)
        previous = torch.empty(len(seen))
        date = torch.zeros(1, 24, 4, dtype=torch.int64)
    rows, sigma = BlanketRows(torch.tensor([0]), torch.tensor([0])), torch.tensor(1.0)
    chunks = Chunks(budget)
    guide = MMPS(
        DecodedObservations([seen], model.decode),
        MMPSSettings(iterations=iterations),
        chunks=chunks,
    )
    storages = model.counter(x_t, previous)
    with storages:
        guide(model.denoise, x_t, sigma, date, rows)  # decides on chunks
        guide._previous[(0, 0)] = previous
        storages.count_anew()
        guide(model.denoise, x_t, sigma, date, rows)
    return storages, chunks


def hour_cost(model: Released, hour: int) -> HourCost:
    """Return the cost of the linearised decoding of what is observed in an hour."""
    points = DecodedPoints(model.autoencoder, columns(hour, model.shape)[0], 1)
    with FAKE:
        z = torch.empty(1, 1, *model.config.latent_shape)
        w = torch.empty(1, len(points.channel))
    read = partial(model.read, points)
    counts, storages = [], model.counter(z, w)
    before = storages.now

    def part() -> None:
        counts.append(Count.of(storages))
        storages.operations = storages.decoder = storages.moved = 0

    with storages:
        tangent = Tangent(read, z)
        part()
        tangent.vjp(w)
        part()
        tangent.jvp(z)
        part()
    kept = storages.now - before
    del tangent
    value, vjp, jvp = counts
    return HourCost(value, vjp, jvp, kept, points.share)


def kept_per_state(model: Released) -> int:
    """Return the bytes that the linearised decoding of a whole state keeps."""
    with FAKE:
        z = torch.empty(1, *model.config.latent_shape)
    storages = model.counter(z)
    before = storages.now
    with storages:
        tangent = Tangent(
            lambda x: model.decode(x).flatten(1).index_select(1, torch.arange(1000)), z
        )
        tangent.jvp(torch.empty_like(z))
    kept = storages.now - before
    del tangent
    return kept


def costs(
    precision: Precision, hours_observed: int, budget: int, iterations: int
) -> dict[int, Cost]:
    """Return the cost of evaluations with 1 to `hours_observed` observed hours."""
    model = Released(precision)
    seen = AveragedPoints([columns(0, model.shape)], model.shape)
    first, chunks = evaluate(model, seen, budget, iterations)
    weights = sum(t.numel() * t.element_size() for t in model.weights)
    products = iterations + 1
    # The network hardly changes its cost with the hour: every sixth one is counted.
    counted = [hour_cost(model, hour) for hour in range(0, hours_observed, 6)]
    hours = [counted[hour // 6] for hour in range(hours_observed)]
    count, peak, found = Count.of(first), first.peak, {}
    for number, hour in enumerate(hours, 1):
        if number > 1:
            count = count.plus(hour.value).plus(hour.vjp, products).plus(hour.jvp, products)
            if number <= chunks.kept:
                peak += hour.kept
            else:  # linearised again for both products, the adjoint recorded for the second
                count = count.plus(hour.value, 2 * products).plus(hour.vjp, products)
        kept = min(chunks.kept, number)
        found[number] = Cost(peak, weights, count, kept, hours[:number])
    return found


def table(arguments: argparse.Namespace) -> list[CostRow]:
    """Return the cost of an evaluation for each precision, number of hours and of members."""
    rows = []
    latents = 2 * 24 * int(np.prod(CONFIGS["released"][0].latent_shape)) * 4
    for precision in arguments.precision:
        rate = arguments.tflops or CARD[precision]
        budget = int(arguments.budget * GIB)
        known = costs(precision, max(arguments.hours), budget, arguments.iterations)
        for hours in arguments.hours:
            cost = known[hours]
            work = cost.count
            seconds = work.operations / rate / 1e12 + work.moved / arguments.bandwidth / 1e9
            parts = (
                sum(hour.value.operations for hour in cost.hours),
                sum(hour.vjp.operations for hour in cost.hours),
                sum(hour.jvp.operations for hour in cost.hours),
                work.operations - work.decoder,
            )
            rows += [
                CostRow(
                    precision,
                    members,
                    hours,
                    round((cost.peak + (members - 1) * latents) / GIB, 2),
                    round(cost.weights / GIB, 2),
                    round(work.operations / 1e12, 1),
                    round(work.decoder / work.operations, 3),
                    NAME,
                    round(members * seconds, 2),
                    round(float(np.mean([hour.share for hour in cost.hours])), 3),
                    arguments.iterations,
                    round(max(hour.kept for hour in cost.hours) / GIB, 3),
                    cost.kept_hours,
                    *(round(part / 1e12, 1) for part in parts),
                )
                for members in arguments.members
            ]
    return rows


def main() -> None:
    """Compute what the command line asks for, and print it as a table or JSON."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--hours", nargs="+", type=int, default=[3, 6, 12, 24])
    parser.add_argument("--members", nargs="+", type=int, default=[1, 3, 8])
    parser.add_argument("--budget", type=float, default=BUDGET_GIB, help="GiB of an evaluation")
    parser.add_argument(
        "--iterations", type=int, default=MMPSSettings().iterations, help="of the solver"
    )
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
