"""Conditioning on known latent states, alone or together with observations.

A forecast knows the states up to its start: they are observations of the whole latent state with
a small error, so the same guidance applies, and no decoder is needed for them.
"""

__all__ = ["JointObservations", "TiedStates"]

from collections.abc import Sequence

import torch
from torch import Tensor

from model.guidance.base import BlanketRows, Observed, ObservedBlankets


class TiedStates:
    """Known latent states of a trajectory.

    Arguments:
        latents: Standardised latents, with shape (M, T, c, h, w) or (1, T, c, h, w) for all
            members alike; any value where not tied.
        tied: Which of the T states are known, with shape (T,).
        starts: Index of the first state of each blanket.
        size: K, the number of states of a blanket.
        error_std: One standard deviation of the known latents.
        first: Number of the first blanket of `starts`.
    """

    def __init__(
        self,
        latents: Tensor,
        tied: Tensor,
        starts: Sequence[int],
        size: int,
        error_std: float = 0.05,
        first: int = 0,
    ) -> None:
        self._latents = latents
        self._tied = torch.stack([tied[s : s + size] for s in starts])
        self._starts = list(starts)
        self._size = size
        self._error_std = error_std
        self._first = first

    def select(self, rows: BlanketRows, like: Tensor) -> Observed | None:
        """See :class:`model.guidance.base.ObservedBlankets`."""
        blankets = [b - self._first for b in rows.blanket.tolist()]
        members = (rows.member % len(self._latents)).tolist()
        tied = self._tied[blankets]
        states = torch.nonzero(tied.any(dim=0))[:, 0].to(like.device)
        if not len(states):
            return None
        known = torch.stack(
            [
                self._latents[m, self._starts[b] : self._starts[b] + self._size]
                for b, m in zip(blankets, members, strict=True)
            ]
        ).to(like)
        keep = tied.to(like.device)[:, states, None, None, None]

        def predict(x: Tensor) -> Tensor:
            return torch.where(keep, x[:, states], 0.0).flatten(1)

        values = predict(known)
        return Observed(
            values,
            torch.full_like(values, self._error_std),
            keep.expand_as(known[:, states]).flatten(1),
            predict,
            (("tied states", values.shape[1]),),
        )


class JointObservations:
    """Several kinds of observation at once.

    Arguments:
        kinds: The kinds; the fit is reported for the first that is present.
    """

    def __init__(self, kinds: Sequence[ObservedBlankets]) -> None:
        self._kinds = tuple(kinds)

    def select(self, rows: BlanketRows, like: Tensor) -> Observed | None:
        """See :class:`model.guidance.base.ObservedBlankets`."""
        seen = [s for s in (kind.select(rows, like) for kind in self._kinds) if s is not None]
        if len(seen) < 2:
            return seen[0] if seen else None
        return Observed(
            torch.cat([s.values for s in seen], dim=1),
            torch.cat([s.error_std for s in seen], dim=1),
            torch.cat([s.present for s in seen], dim=1),
            lambda x: torch.cat([s.predict(x) for s in seen], dim=1),
            tuple(part for s in seen for part in s.parts),
        )
