"""Standardised errors, wall clock and memory of the methods of one start."""

import resource
import sys
import time
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor

from model.diagnostics.scores import rmse
from model.latent_model import LatentModel
from model.osse.start_skill import Method

__all__ = ["Scorer", "peak_memory", "standardised_rmse"]

Result = TypeVar("Result")


def standardised_rmse(model: LatentModel, states: Tensor, truth: Tensor) -> Tensor:
    """Area-weighted RMSE over the channel's standard deviation.

    Arguments:
        model: The checkpoint, whose statistics standardise.
        states: Physical, with shape (C, Y, X).
        truth: Likewise; where it is NaN (sea surface temperature on land), cells are left out.

    Returns:
        With shape (C,), float64.
    """
    states = torch.where(torch.isnan(truth), torch.nan, states.cpu())
    return rmse(states, truth, model.grid) / model.state_normalisation.std.flatten().double().cpu()


def peak_memory() -> float:
    """The most memory this process has held so far, GiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    # Linux counts in KiB, macOS in bytes.
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


class Scorer:
    """Collects errors and times of methods."""

    def __init__(self, model: LatentModel) -> None:
        self.model = model
        self.errors: dict[Method, tuple[float, ...]] = {}
        self.seconds: dict[Method, float] = {}
        self.processor: dict[Method, float] = {}

    def score(self, method: Method, states: Tensor, truth: Tensor) -> None:
        """States and truth with shape (C, Y, X)."""
        self.errors[method] = tuple(standardised_rmse(self.model, states, truth).tolist())

    def timed(self, method: Method, work: Callable[[], Result]) -> Result:
        """Does the work and notes its wall clock, and its processor time over all cores."""
        begin, used = time.perf_counter(), time.process_time()
        result = work()
        self.seconds[method] = time.perf_counter() - begin
        self.processor[method] = time.process_time() - used
        return result
