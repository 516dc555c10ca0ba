"""Share a long trajectory among ranks, each of which holds the states of its own blankets.

Blankets are denoised independently, so ranks communicate only after each denoising, where
neighbouring blankets overlap: every rank adds the contributions of the others to its states. Noise
depends on the valid time of a state, so ranks draw the same numbers for shared states without
communication. The memory of a rank grows with its blankets, not with the trajectory.
"""

from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from model.domain.errors import ConfigurationError
from model.domain.windows import WindowPlan
from model.passes import Pass
from model.trajectory import Blankets

__all__ = ["LocalWindow", "Ranks", "Share", "local_window"]


@dataclass(frozen=True)
class Share:
    """The blankets [first, stop) of a trajectory.

    Attributes:
        whole: All blankets.
        first: Number of the first blanket held.
        stop: Number after the last.
    """

    whole: Blankets
    first: int
    stop: int

    @property
    def blankets(self) -> Blankets:
        """Those held, as a trajectory of their own."""
        return self.whole.part(self.first, self.stop)

    @property
    def states(self) -> tuple[int, int]:
        """First and last-plus-one state held, in the whole trajectory."""
        start = self.first * self.whole.stride
        return start, start + self.blankets.length

    @property
    def owned(self) -> tuple[int, int]:
        """First and last-plus-one state that this rank writes; every state has one owner."""
        last = self.stop == self.whole.count
        start, stop = self.states
        return start, stop if last else self.stop * self.whole.stride


class Ranks:
    """The ranks of a process group.

    Arguments:
        group: The process group; None for all ranks. `torch.distributed` must be initialised.
    """

    def __init__(self, group: dist.ProcessGroup | None = None) -> None:
        self.group = group
        self.rank = dist.get_rank(group)
        self.count = dist.get_world_size(group)

    def shares(self, whole: Blankets) -> tuple[Share, ...]:
        """Return consecutive blankets for each rank, as equal as can be."""
        if whole.count < self.count:
            raise ConfigurationError(
                f"Expected at least one blanket for each of {self.count} ranks; the trajectory "
                f"has {whole.count}. Use fewer ranks or a smaller stride."
            )
        edges = [rank * whole.count // self.count for rank in range(self.count + 1)]
        return tuple(Share(whole, a, b) for a, b in zip(edges[:-1], edges[1:], strict=True))

    def share(self, whole: Blankets) -> Share:
        """Return the blankets of this rank."""
        return self.shares(whole)[self.rank]

    def exchange(self, whole: Blankets, local: Tensor) -> Tensor:
        """Add what other ranks contribute to the states held here.

        Arguments:
            whole: All blankets.
            local: This rank's contributions, with shape (M, T_local, *).

        Returns:
            The sums, with the same shape. Ranks add up in the same order, so states held twice
            are equal to the last bit.
        """
        shares = self.shares(whole)
        here, stop = shares[self.rank].states
        parts: dict[int, tuple[int, int, Tensor]] = {}
        operations = []
        for rank, other in enumerate(shares):
            a, b = max(here, other.states[0]), min(stop, other.states[1])
            if rank == self.rank or a >= b:
                continue
            mine = local[:, a - here : b - here].contiguous()
            theirs = torch.empty_like(mine)
            parts[rank] = a - here, b - here, theirs
            peer = rank if self.group is None else dist.get_global_rank(self.group, rank)
            operations.append(dist.P2POp(dist.isend, mine, peer, self.group))
            operations.append(dist.P2POp(dist.irecv, theirs, peer, self.group))
        if operations:
            for request in dist.batch_isend_irecv(operations):
                request.wait()
        total = torch.zeros_like(local)
        for rank in range(self.count):
            if rank == self.rank:
                total += local
            elif rank in parts:
                a, b, theirs = parts[rank]
                total[:, a:b] += theirs
        return total


@dataclass(frozen=True)
class LocalWindow:
    """The part of a plan that one rank computes.

    Attributes:
        plan: The plan of the states held; written are those the rank owns.
        part: The pass over them.
        share: The rank's blankets.
        start: Index of the first state held, in the whole plan.
        stop: Index after the last.
        tied_states: Which of the plan's tied states are held.
        writes: Whether the rank owns a written state at all.
    """

    plan: WindowPlan
    part: Pass
    share: Share
    start: int
    stop: int
    tied_states: slice
    writes: bool


def local_window(plan: WindowPlan, passes: tuple[Pass, ...], ranks: Ranks) -> LocalWindow:
    """Return the states of a plan that a rank's blankets cover.

    Raises:
        ConfigurationError: If the plan takes several passes, which follow each other, or has
            fewer blankets than there are ranks.
    """
    if len(passes) != 1:
        raise ConfigurationError(
            f"Expected a plan in one pass to share between ranks; this one takes {len(passes)}, "
            "one after the other. Plan it without new_states_per_pass."
        )
    (part,) = passes
    share = ranks.share(part.blankets)
    low, high = (part.first + state for state in share.states)
    start, stop = max(low, 0), min(high, plan.length)
    own_low, own_high = (part.first + state for state in share.owned)
    held = range(start, stop)
    written = tuple(plan.written[i] and own_low <= i < own_high for i in held)
    writes = any(written)
    local = replace(
        plan,
        times=plan.times[start:stop],
        observed=plan.observed[start:stop],
        tied=plan.tied[start:stop],
        # A plan must write something; the caller drops it.
        written=written if writes else tuple(i == start for i in held),
    )
    before = sum(plan.tied[:start])
    tied_states = slice(before, before + sum(local.tied))
    return LocalWindow(
        local, Pass(low - start, share.blankets), share, start, stop, tied_states, writes
    )
