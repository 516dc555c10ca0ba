"""Choose the arithmetic of the networks: precision, TF32, attention, compilation.

All of it is the same for every job of a process but the precision, which a job may choose. It
changes results by rounding, so that it is part of their provenance and a replay sets it again.
What each setting brings is printed by `python -m benchmarks.denoiser_flops`.
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
    """How networks compute. The defaults are those of results that do not say.

    Attributes:
        precision: Of products and convolutions, unless a job chooses another.
        tf32: Whether products in float32 on a GPU round their factors to TF32, with 10 bits.
        attention: `fused` never holds the matrix of weights of all pairs of tokens, and takes the
            kernel that suits the device; `plain` is softmax(q kᵀ / √d) v as it is written.
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
    """Return the arithmetic that settings mean on a device.

    Arguments:
        device: Where networks run.
        precision: `auto` takes bfloat16 on a GPU with units for it, else float32.
        tf32: Ask for TF32; only GPUs have it.
        attention: See `Arithmetic`.
        compiled: See `Arithmetic`.
    """
    on_gpu = device.type == "cuda"
    if precision == "auto":
        # Processors of one centre differ in their units, and its results should not.
        precision = native_precision(device) if on_gpu else "float32"
    return Arithmetic(precision, tf32 and on_gpu, attention, compiled)


@contextmanager
def arithmetic_in(arithmetic: Arithmetic) -> Iterator[None]:
    """Compute so in this process; what was set before comes back at the end."""
    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    before = cuda.matmul.allow_tf32, cudnn.allow_tf32, cuda.flash_sdp_enabled()
    install(arithmetic)
    try:
        yield
    finally:
        _install(*before)


def install(arithmetic: Arithmetic) -> None:
    """Compute so in this process from now on."""
    _install(arithmetic.tf32, arithmetic.tf32, arithmetic.attention == "fused")


def _install(products: bool, convolutions: bool, fused: bool) -> None:
    cuda = torch.backends.cuda
    cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = products, convolutions
    for enable in (cuda.enable_flash_sdp, cuda.enable_mem_efficient_sdp, cuda.enable_cudnn_sdp):
        enable(fused)


def compile_backbone(backbone: Backbone) -> None:
    """Have the blocks of a denoiser's network compiled, in place, when they are first evaluated.

    Guidance pulls several cotangents through one evaluation, so a compiled adjoint may not write
    over what it needs again.
    """
    compiler.donated_buffer = False
    backbone.compile_blocks(dynamic=False)
