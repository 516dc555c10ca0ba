"""Choose the arithmetic of the networks: precision, TF32, attention, compilation.

All settings but the precision, which a job may choose, are the same for every job of a process. They
change results by rounding, so they are recorded in the provenance, and a replay restores them.
`python -m benchmarks.denoiser_flops` prints the speed of each setting.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import torch
from torch._functorch import config as compiler

from model.backbone import Backbone
from model.denoiser import Precision, native_precision

__all__ = [
    "Arithmetic",
    "Attention",
    "arithmetic_in",
    "choose_arithmetic",
    "compile_backbone",
    "install",
]

Attention = Literal["fused", "plain"]
PRECISIONS: tuple[Precision, ...] = get_args(Precision)


@dataclass(frozen=True)
class Arithmetic:
    """How networks compute. The defaults apply to results whose provenance records none.

    Attributes:
        precision: Precision of products and convolutions, unless a job chooses another.
        tf32: Whether products in float32 on a GPU round their factors to TF32 (10-bit mantissa).
        attention: `fused` uses the device's best kernel and never stores the matrix of attention
            weights; `plain` computes softmax(q kᵀ / √d) v explicitly.
        compiled: Whether the blocks of the denoiser are compiled by `torch.compile` at first use.
    """

    precision: Precision = "float32"
    tf32: bool = False
    attention: Attention = "fused"
    compiled: bool = False

    @classmethod
    def recorded(cls, provenance: Mapping[str, Any]) -> "Arithmetic":
        """Return the arithmetic of a result, from its provenance."""
        return cls(**provenance.get("arithmetic", {}))

    def at(self, precision: Precision) -> "Arithmetic":
        """Return the same in another precision; the rest is that of the whole process."""
        return replace(self, precision=precision)


def choose_arithmetic(
    device: torch.device,
    precision: Precision | Literal["auto"] = "auto",
    *,
    tf32: bool = True,
    attention: Attention = "fused",
    compiled: bool = False,
) -> Arithmetic:
    """Resolve settings to the arithmetic on a device.

    Arguments:
        device: Where networks run.
        precision: `auto` takes bfloat16 on a GPU with units for it, else float32.
        tf32: Ask for TF32; only GPUs have it.
        attention: See `Arithmetic`.
        compiled: See `Arithmetic`.
    """
    on_gpu = device.type == "cuda"
    if precision == "auto":
        # CPUs of one centre differ in bfloat16 support, and its results should not.
        precision = native_precision(device) if on_gpu else "float32"
    return Arithmetic(precision, tf32 and on_gpu, attention, compiled)


@contextmanager
def arithmetic_in(arithmetic: Arithmetic) -> Iterator[None]:
    """Set the arithmetic of this process within a block; restore the previous one at the end."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    before = cuda.matmul.allow_tf32, cudnn.allow_tf32, cuda.flash_sdp_enabled()
    install(arithmetic)
    try:
        yield
    finally:
        _install(*before)


def install(arithmetic: Arithmetic) -> None:
    """Set the arithmetic of this process."""
    _install(arithmetic.tf32, arithmetic.tf32, arithmetic.attention == "fused")


def _install(products: bool, convolutions: bool, fused: bool) -> None:
    cuda = torch.backends.cuda
    cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions
    for enable in (cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp):
        enable(fused)


def compile_backbone(backbone: Backbone) -> None:
    """Mark the blocks of a denoiser's network for compilation, in place, at their first evaluation.

    Guidance calls the adjoint of one evaluation with several cotangents, so compiled code must not
    donate buffers that the next call needs.
    """
    compiler.donated_buffer = False
    backbone.compile_blocks(dynamic=False)
