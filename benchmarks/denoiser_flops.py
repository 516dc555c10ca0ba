"""Speed of the networks: denoiser and decoder forward against the machine's matrix product.

The released configuration (223M + 157M parameters, 12 972 tokens per blanket) is for a GPU; the
medium one runs anywhere. Operations are counted by torch on the meta device. Times are medians of
several runs in one process, after warming up.

    python -m benchmarks.denoiser_flops --device cuda --config released
    python -m benchmarks.denoiser_flops --device cpu --config medium [--json]
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model.autoencoder import Autoencoder, AutoencoderConfig
from model.backbone import Backbone, BackboneConfig
from model.denoiser import BlanketDenoiser, Precision, reduced_precision

CONFIGS = {
    "released": (
        AutoencoderConfig(71, 64, (721, 1440)),
        BackboneConfig(64, 24, (23, 47)),
    ),
    "released-1deg": (
        AutoencoderConfig(71, 64, (181, 360)),
        BackboneConfig(64, 24, (6, 14)),
    ),
    "medium": (
        AutoencoderConfig(
            16, 32, (64, 80), 8, hid_channels=(32, 64, 128, 256), hid_blocks=(3, 3, 3, 3)
        ),
        BackboneConfig(32, 12, (8, 12), 256, 256, 8, attention_heads=4),
    ),
}

ATTENTION = {
    "auto": None,
    "cudnn": [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
    "flash": [SDPBackend.FLASH_ATTENTION, SDPBackend.MATH],
    "math": [SDPBackend.MATH],
}


@dataclass(frozen=True)
class FlopsRow:
    """Measured rate of one computation in one precision.

    Attributes:
        work: What ran.
        precision: Of the products.
        compiled: Whether torch.compile was on.
        seconds: Median.
        tera_operations: Counted multiplications and additions, 1e12.
        rate: Tera-operations per second.
        share: Of the measured matrix-product rate in the same precision.
        peak_gib: Largest memory held on the GPU, None on a CPU.
    """

    work: str
    precision: str
    compiled: bool
    seconds: float
    tera_operations: float
    rate: float
    share: float
    peak_gib: float | None


class Networks:
    """Denoiser and decoder of one configuration on one device, with their inputs."""

    def __init__(self, name: str, device: str, batch: int, states: int) -> None:
        ae, vit = CONFIGS[name]
        torch.manual_seed(0)
        with torch.device(device):
            self.backbone = Backbone(vit).requires_grad_(False).eval()
            self.autoencoder = Autoencoder(ae).requires_grad_(False).eval()
            self.x = torch.randn(batch, vit.blanket_size, vit.in_channels, *vit.shape)
            self.z = torch.randn(states, *ae.latent_shape)
            hours = torch.arange(vit.blanket_size) % 24
            self.date = torch.stack([torch.full_like(hours, v) for v in (2021, 6, 1)] + [hours], -1)
            self.date = self.date.expand(batch, -1, -1).clone()
            self.sigma = torch.tensor(1.0)

    def denoise(self, precision: Precision) -> Tensor:
        return BlanketDenoiser(self.backbone, precision=precision)(self.x, self.sigma, self.date)

    def decode(self, precision: Precision) -> Tensor:
        with reduced_precision(self.z.device, precision):
            return self.autoencoder.decode(self.z)


def counted(name: str, batch: int, states: int) -> dict[str, float]:
    """Operations of one denoising and one decoding, in 1e12."""
    meta = Networks(name, "meta", batch, states)
    found = {}
    for work, run in (("denoiser", meta.denoise), ("decoder", meta.decode)):
        with FlopCounterMode(display=False) as counter, _attention("math"), torch.no_grad():
            run("float32")
        found[work] = counter.get_total_flops() / 1e12
    return found


def matrix_rate(device: str, precision: Precision, size: int) -> float:
    """Tera-operations per second of a square matrix product."""
    kind = torch.bfloat16 if precision == "bfloat16" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=kind) for _ in range(2))
    return 2 * size**3 / median_seconds(lambda: a @ b, device, 15) / 1e12


def median_seconds(work: Callable[[], object], device: str, repeats: int) -> float:
    """Return how long a call takes on the device, after two that warm up."""
    taken = []
    for i in range(repeats + 2):
        _finish(device)
        start = time.perf_counter()
        work()
        _finish(device)
        if i >= 2:
            taken.append(time.perf_counter() - start)
    return statistics.median(taken)


def measure(arguments: argparse.Namespace) -> list[FlopsRow]:
    """Return the measured rates of matrix products, denoiser and decoder, by precision."""
    device, repeats = arguments.device, arguments.repeats
    operations = counted(arguments.config, arguments.batch, arguments.states)
    networks = Networks(arguments.config, device, arguments.batch, arguments.states)
    if arguments.compile:
        networks.backbone.compile_blocks(mode=arguments.compile_mode)
        networks.autoencoder.decoder.compile(mode=arguments.compile_mode)
    size = arguments.matrix or (8192 if device == "cuda" else 1024)
    rows = []
    for precision in arguments.precision:
        rate = matrix_rate(device, precision, size)
        rows.append(FlopsRow(f"matrix product {size}", precision, False, 0.0, 0.0, rate, 1.0, None))
        for work, run in (("denoiser", networks.denoise), ("decoder", networks.decode)):
            if device == "cuda":
                torch.cuda.reset_peak_memory_stats()
            with _attention(arguments.attention), torch.inference_mode():
                seconds = median_seconds(lambda r=run, p=precision: r(p), device, repeats)
            peak = torch.cuda.max_memory_allocated() / 2**30 if device == "cuda" else None
            count = operations[work]
            rows.append(
                FlopsRow(
                    work,
                    precision,
                    arguments.compile,
                    seconds,
                    count,
                    count / seconds,
                    count / seconds / rate,
                    peak,
                )
            )
    return rows


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


@contextmanager
def _attention(name: str) -> Iterator[None]:
    backends = ATTENTION[name]
    chosen = nullcontext() if backends is None else sdpa_kernel(backends, set_priority=True)
    with chosen:
        yield


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--config", choices=tuple(CONFIGS), default="medium")
    parser.add_argument("--batch", type=int, default=1, help="blankets denoised together")
    parser.add_argument("--states", type=int, default=1, help="states decoded together")
    parser.add_argument("--precision", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--attention", choices=tuple(ATTENTION), default="auto")
    parser.add_argument(
        "--compile",
        action=argparse.BooleanOptionalAction,
        default=None,
        help="torch.compile; by default on a GPU only, where it pays within a minute",
    )
    parser.add_argument("--compile-mode", default="default")
    parser.add_argument("--matrix", type=int, help="size of the measured product")
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    if arguments.compile is None:
        arguments.compile = arguments.device == "cuda"
    return arguments


def _print(rows: list[FlopsRow], arguments: argparse.Namespace) -> None:
    device = torch.cuda.get_device_name() if arguments.device == "cuda" else "CPU"
    title = f"{arguments.config}, {arguments.batch} blankets, {arguments.states} states, {device}"
    table = Table(title=title)
    for column in ("work", "precision", "compiled", "ms", "TFLOP", "TFLOP/s", "of product", "GiB"):
        table.add_column(column, justify="left" if column in ("work", "precision") else "right")
    for row in rows:
        table.add_row(
            row.work,
            row.precision,
            "yes" if row.compiled else "no",
            f"{1e3 * row.seconds:.2f}" if row.seconds else "",
            f"{row.tera_operations:.3f}" if row.tera_operations else "",
            f"{row.rate:.2f}",
            f"{row.share:.0%}",
            f"{row.peak_gib:.1f}" if row.peak_gib is not None else "",
        )
    Console().print(table)


def main() -> None:
    """Measure what the command line asks for, and print it as a table or JSON."""
    arguments = _parse()
    if arguments.device == "cuda" and not torch.cuda.is_available():
        sys.exit("Expected a GPU for --device cuda; torch finds none. Use --device cpu.")
    rows = measure(arguments)
    if arguments.json:
        print(json.dumps([asdict(row) for row in rows], indent=1))
    else:
        _print(rows, arguments)


if __name__ == "__main__":
    main()
