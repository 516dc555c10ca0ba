"""GMRES against its recorded iterates."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from model.checkpoints.parity.case import ParityCase
from model.checkpoints.parity.compare import Outcome, compare
from model.linear_solve import gmres

__all__ = ["solve"]


def solve(case: ParityCase) -> Iterator[Outcome]:
    """`gmres.<matrix>.it<n>`, from zero or from a recorded start, and in single precision."""
    for name, match in case.names(r"gmres\.(\w+)(\.f32)?\.it(\d+)(\.x0)?"):
        kind = torch.float32 if match[2] else torch.float64
        times = _product(case.double[f"gmres.{match[1]}"].to(kind))
        b = case.double["gmres.b"].to(kind)
        start = case.double["gmres.x0"].to(kind) if match[4] else torch.zeros_like(b)
        rest = b - times(start) if match[4] else b
        x = start + gmres(times, rest, iterations=int(match[3])).x
        double = case.double.get(f"gmres.{match[1]}.it{match[3]}")
        noise = None
        if match[2] and double is not None:
            noise = float((case.outputs[name].double() - double).abs().max())
        yield compare(case, name, x.to(case.outputs[name].dtype), noise)


def _product(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: (matrix @ v[..., None])[..., 0]
