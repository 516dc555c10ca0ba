"""Denoise trajectories of any length, blanket by blanket.

A trajectory of T latent states is covered by N blankets of K states whose starts are `stride`
states apart, T = (N - 1) stride + K. Neighbouring blankets overlap; of the K denoised states of
each, a mode decides what is kept:

* `symmetrical`: the middle `stride` states, farthest from both ends (the first and the last
  blanket keep their outer ends as well);
* `causal`: the last `stride` states of every blanket after the first;
* `average`: everything, averaged where blankets overlap.

All blankets of all members go through the denoiser together, in the largest sub-batches that fit
in memory. On several ranks each holds the states of its own blankets only
(:mod:`model.distributed`).

References:
    | Appa: Bending Weather Dynamics with Latent Diffusion Models for Global Data Assimilation
      (Andry et al., 2025)
    | https://arxiv.org/abs/2504.18720
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from azula.denoise import Denoiser, DiracPosterior
from azula.noise import Schedule
from torch import Tensor

from model.domain.errors import InvalidInput
from model.domain.registry import Registry
from model.execution import Batching
from model.guidance.base import BlanketRows, Denoise, Guidance, Unguided

__all__ = ["Blankets", "MODES", "TrajectoryDenoiser", "fold", "fold_weights", "unfold"]


@dataclass(frozen=True)
class Blankets:
    """How a trajectory is covered by blankets.

    Attributes:
        count: N, the number of blankets.
        size: K, the number of states of each.
        stride: States between the starts of neighbours.
    """

    count: int
    size: int
    stride: int

    def __post_init__(self) -> None:
        if self.count < 1 or not 1 <= self.stride <= self.size:
            raise InvalidInput(
                f"Expected at least one blanket and a stride between 1 and {self.size}, so that "
                f"no state is left out; got {self.count} blankets and stride {self.stride}."
            )

    @classmethod
    def covering(cls, length: int, size: int, stride: int) -> "Blankets":
        """Return the fewest blankets that cover at least `length` states."""
        if not 1 <= stride <= size:
            return cls(1, size, stride)  # raises InvalidInput
        return cls(1 + max(0, -(-(length - size) // stride)), size, stride)

    @property
    def length(self) -> int:
        """T, the number of states covered."""
        return (self.count - 1) * self.stride + self.size

    @property
    def starts(self) -> tuple[int, ...]:
        """Index of the first state of each blanket."""
        return tuple(n * self.stride for n in range(self.count))

    def part(self, first: int, stop: int) -> "Blankets":
        """Return the blankets [first, stop) as a trajectory of their own."""
        return Blankets(stop - first, self.size, self.stride)


def _symmetrical(blankets: Blankets) -> Tensor:
    lead = (blankets.size - blankets.stride) // 2
    weights = torch.zeros(blankets.count, blankets.size, dtype=torch.float64)
    weights[:, lead : lead + blankets.stride] = 1
    weights[0, :lead] = 1
    weights[-1, lead:] = 1
    return weights


def _causal(blankets: Blankets) -> Tensor:
    weights = torch.zeros(blankets.count, blankets.size, dtype=torch.float64)
    weights[:, -blankets.stride :] = 1
    weights[0] = 1
    return weights


def _average(blankets: Blankets) -> Tensor:
    ones = torch.ones(1, blankets.count, blankets.size, dtype=torch.float64)
    return (1 / unfold(_add_up(ones, blankets), blankets.size, blankets.stride))[0]


MODES: Registry[Callable[[Blankets], Tensor]] = Registry(
    "way to compose blankets", symmetrical=_symmetrical, causal=_causal, average=_average
)


def fold_weights(blankets: Blankets, mode: str) -> Tensor:
    """Return the weight of each state of each blanket, float64, with shape (N, K).

    The weights of a state add to 1.
    """
    return MODES[mode](blankets)


def unfold(trajectory: Tensor, size: int, stride: int) -> Tensor:
    """Return the blankets of a trajectory.

    Arguments:
        trajectory: With shape (M, T, *), (T - size) a multiple of `stride`.
        size: K.
        stride: States between starts.

    Returns:
        A view with shape (M, N, K, *).
    """
    length = trajectory.shape[1]
    if length < size or (length - size) % stride:
        raise InvalidInput(
            f"Expected a trajectory of {size} states plus a multiple of {stride}; got {length}."
        )
    return trajectory.unfold(1, size, stride).movedim(-1, 2)


def _add_up(blankets: Tensor, layout: Blankets) -> Tensor:
    total = blankets.new_zeros(blankets.shape[0], layout.length, *blankets.shape[3:])
    for n, start in enumerate(layout.starts):
        total[:, start : start + layout.size] += blankets[:, n]
    return total


def fold(blankets: Tensor, stride: int, mode: str = "symmetrical") -> Tensor:
    """Return the trajectory composed of its blankets.

    Arguments:
        blankets: With shape (M, N, K, *).
        stride: States between starts.
        mode: One of MODES.

    Returns:
        With shape (M, T, *).
    """
    layout = Blankets(blankets.shape[1], blankets.shape[2], stride)
    return _fold(blankets, layout, fold_weights(layout, mode))


def _fold(blankets: Tensor, layout: Blankets, weights: Tensor) -> Tensor:
    weights = weights.to(blankets).reshape(*weights.shape, *[1] * (blankets.ndim - 3))
    return _add_up(blankets * weights, layout)


def _whole(total: Tensor) -> Tensor:
    return total


class TrajectoryDenoiser(Denoiser):  # type: ignore[misc]  # azula has no types
    r"""A trajectory's denoiser in azula's protocol, so that azula's samplers drive it.

    Arguments:
        denoise: The denoiser of blankets; noise is added to unscaled latents.
        schedule: The noise schedule.
        dates: Year, month, day, hour of each of the T states, int64, with shape (T, 4).
        blankets: How these states are covered.
        mode: What is kept of each blanket, one of MODES.
        guidance: The guidance of blankets; None for the prior.
        batching: How rows are split into sub-batches.
        first: Number of the first of these blankets in the whole trajectory (a rank's share).
        total: Number of blankets of the whole trajectory; None if these are all.
        exchange: Adds the contributions of other ranks to the T states held here.
    """

    def __init__(
        self,
        denoise: Denoise,
        schedule: Schedule,
        dates: Tensor,
        blankets: Blankets,
        *,
        mode: str = "symmetrical",
        guidance: Guidance | None = None,
        batching: Batching | None = None,
        first: int = 0,
        total: int | None = None,
        exchange: Callable[[Tensor], Tensor] = _whole,
    ) -> None:
        super().__init__()
        if len(dates) != blankets.length:
            raise InvalidInput(
                f"Expected {blankets.length} dates, one for each state; got {len(dates)}."
            )
        whole = Blankets(total or blankets.count, blankets.size, blankets.stride)
        self.denoise = denoise
        self.schedule = schedule
        self.dates = unfold(dates[None], blankets.size, blankets.stride)[0]
        self.blankets = blankets
        self.weights = fold_weights(whole, mode)[first : first + blankets.count]
        self.guidance = guidance or Unguided()
        self.batching = batching or Batching()
        self.first = first
        self.exchange = exchange

    @torch.no_grad()
    def forward(self, x_t: Tensor, t: Tensor, **kwargs: object) -> DiracPosterior:
        r"""Arguments:
            x_t: A noisy trajectory of M members, with shape (M, T, c, h, w).
            t: The diffusion time, with shape ().

        Returns:
            E[x | x_t] or, with guidance, E[x | x_t, y].
        """
        alpha, sigma = self.schedule(t)
        members, count = x_t.shape[0], self.blankets.count
        views = unfold(x_t / alpha, self.blankets.size, self.blankets.stride)
        dates = self.dates.to(x_t.device)
        # Blanket-major: the members of one blanket share its observations and its operator.
        blanket = torch.arange(count, device=x_t.device).repeat_interleave(members)
        member = torch.arange(members, device=x_t.device).repeat(count)
        rows = BlanketRows(blanket + self.first, member)

        def work(part: slice) -> Tensor:
            chosen = views[member[part], blanket[part]]
            return self.guidance(
                self.denoise, chosen, sigma / alpha, dates[blanket[part]], rows[part]
            )

        done = self.batching(work, len(rows)).unflatten(0, (count, members)).movedim(1, 0)
        return DiracPosterior(self.exchange(_fold(done, self.blankets, self.weights)))
