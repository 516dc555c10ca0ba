"""Run long computations in batches that fit into memory, with progress and cancellation.

A batch of blankets is split into equal sub-batches that fit a memory budget. The memory of one
row is measured: the bytes that reverse mode keeps for one evaluation of one row. As even a single
row may be large, guidance works through its decoded states in chunks (`model.guidance.chunks`),
whose size follows from the bytes that one state keeps. If an evaluation still runs out of memory, it
is retried with smaller chunks, and once these cannot shrink further, with fewer rows.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import psutil
import torch
from torch import Tensor

from model.domain.errors import ResourceExhausted

__all__ = ["Batching", "Chunks", "MemoryUse", "OnStep", "no_progress"]

OnStep = Callable[[int, int], None]
"""Called with (i, n) before diffusion step i of n; may raise `JobCancelled`."""


def no_progress(step: int, steps: int) -> None:
    """Report nothing: the default for `on_step`."""


_SHARE = 0.5  # of the machine's memory, when no budget is given
_OVERHEAD = 2.0  # gradients and temporaries beside what reverse mode keeps
_WORKING = 0.25  # share of the budget for the temporaries of a chunk
_TEMPORARY = 4.0  # temporaries of a chunk over what its graph keeps


@dataclass(frozen=True)
class MemoryUse:
    """Sizes of the pieces in which a computation fitted into memory.

    Attributes:
        rows: Blankets evaluated at once; None if nothing limited them.
        states: States decoded and differentiated at once; None if they were not counted.
        kept_states: States whose derivatives were kept between iterations; None likewise.
        retries: How often sizes were reduced after running out of memory.
    """

    rows: int | None
    states: int | None
    kept_states: int | None
    retries: int


class _SavedBytes:
    """Count the bytes that reverse mode keeps; counters may be nested, and each counts all."""

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}
        self.device = torch.device("cpu")

    @property
    def total(self) -> int:
        """Total size of the storages counted so far, in bytes."""
        return sum(self._storages.values())

    def add(self, tensor: Tensor) -> None:
        """Add the size of a tensor's storage; one that was counted already is not added again."""
        storage = tensor.untyped_storage()
        self._storages[storage._cdata] = storage.nbytes()
        self.device = tensor.device


_COUNTERS: ContextVar[tuple[_SavedBytes, ...]] = ContextVar("saved bytes", default=())


@contextmanager
def _counting() -> Iterator[_SavedBytes]:
    counters = (*_COUNTERS.get(), _SavedBytes())

    def pack(tensor: Tensor) -> Tensor:
        for counter in counters:
            counter.add(tensor)
        # Detached: a node that saves its own output would form a reference cycle with its graph.
        return tensor.detach()

    token = _COUNTERS.set(counters)
    try:
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield counters[-1]
    finally:
        _COUNTERS.reset(token)


class Chunks:
    """How many states are decoded and differentiated at once, and of how many the graph is kept.

    Arguments:
        budget: Bytes that an evaluation may use; None for half of the machine's or device's.
        states: States decoded at once; None to derive both numbers from the budget.
        kept: States whose graph is kept between products.
    """

    def __init__(self, budget: int | None = None, states: int | None = None, kept: int = 0) -> None:
        self.budget = budget
        self.states = states
        self.kept = kept
        self._decoded = 0

    def fit(self, before: Callable[[], object], one: Callable[[], tuple[object, int]]) -> None:
        """Derive both numbers from the budget, unless they are known.

        Arguments:
            before: Builds what is kept independently of the chunks, such as the denoiser's graph.
            one: Linearises the decoding of a few states; returns the object that is kept and the
                number of states.
        """
        if self.states is not None:
            before()
            return
        with _counting() as fixed:
            before()
        with _counting() as piece:
            held, count = one()
        del held
        budget = self.budget or int(_SHARE * _memory(piece.device))
        size = max(piece.total / max(count, 1), 1)
        self.states = max(1, int(_WORKING * budget / (_TEMPORARY * size)))
        self.kept = max(0, int(((1 - _WORKING) * budget - fixed.total) / size))

    def shrink(self) -> bool:
        """Halve both numbers; return False if there is nothing left to halve."""
        states, kept = self.used
        if states is None or kept is None or (states == 1 and kept == 0):
            return False
        self.states, self.kept = max(1, states // 2), kept // 2
        return True

    def record(self, states: int) -> None:
        """Record how many states an evaluation decodes, an upper bound of both numbers in `used`."""
        self._decoded = max(self._decoded, states)

    @property
    def used(self) -> tuple[int | None, int | None]:
        """Both numbers as far as they made a difference; None where nothing was decoded."""
        if self.states is None or not self._decoded:
            return None, None
        return min(self.states, self._decoded), min(self.kept, self._decoded)


class Batching:
    """Split work over rows into sub-batches.

    Arguments:
        budget: Bytes that an evaluation may use; None for half of the machine's or device's.
        rows: The largest number of rows of a sub-batch; None to derive it from the budget.
        chunks: Chunks of the work, which shrink before the rows do; None if it has none.
    """

    def __init__(
        self, budget: int | None = None, rows: int | None = None, chunks: Chunks | None = None
    ) -> None:
        self.budget = budget
        self.rows = rows
        self.chunks = chunks
        self.retries = 0

    @property
    def use(self) -> MemoryUse:
        """Sizes of the pieces in which the work was done."""
        states, kept = (None, None) if self.chunks is None else self.chunks.used
        return MemoryUse(self.rows, states, kept, self.retries)

    def __call__(self, work: Callable[[slice], Tensor], total: int) -> Tensor:
        """Arguments:
            work: Computes rows `part` of the result.
            total: The number of rows.

        Returns:
            The concatenated rows.

        Raises:
            ResourceExhausted: If a single row does not fit.
        """
        done: list[Tensor] = []
        start = 0
        while start < total:
            stop = min(start + self._size(total), total)
            try:
                with self._measured(stop - start):
                    done.append(work(slice(start, stop)))
                start = stop
                continue
            except (ResourceExhausted, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                self._reduce(stop - start, error)
            # After the except clause: the exception keeps the tensors that did not fit alive.
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        return torch.cat(done)

    def _size(self, total: int) -> int:
        if self.rows is None:
            return 1  # the first row of all is measured
        parts = -(-total // self.rows)
        return -(-total // parts)

    def _reduce(self, rows: int, error: BaseException) -> None:
        self.retries += 1
        if self.chunks is not None and self.chunks.shrink():
            return
        if rows == 1:
            raise ResourceExhausted(
                "Expected memory for one blanket of one member; it ran out. Use a smaller "
                "model, bfloat16 precision, or a machine with more memory."
            ) from error
        self.rows = rows // 2

    @contextmanager
    def _measured(self, rows: int) -> Iterator[None]:
        if self.rows is not None:
            yield
            return
        with _counting() as saved:
            yield
        used = _OVERHEAD * saved.total / rows
        if used:
            budget = self.budget or _SHARE * _memory(saved.device)
            self.rows = max(1, int(budget // used))


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(
        error, ResourceExhausted | MemoryError | torch.OutOfMemoryError
    ) or "can't allocate memory" in str(error)
