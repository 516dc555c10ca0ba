"""Run long computations: batches as large as memory allows, with progress and cancellation.

A batch of blankets is split into equal sub-batches that fit a memory budget. The memory of one
row is measured: the bytes that reverse mode keeps for one evaluation of one row. If an
evaluation runs out of memory all the same, the sub-batches are halved and it is retried.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
import torch
from torch import Tensor

from model.domain.errors import ResourceExhausted

__all__ = ["Batching", "OnStep", "no_progress"]

OnStep = Callable[[int, int], None]
"""Called with (i, n) before diffusion step i of n; may raise `JobCancelled`."""


def no_progress(step: int, steps: int) -> None:
    """Report nothing: the default where nobody listens."""


_SHARE = 0.5  # of the machine's memory, when no budget is given
_OVERHEAD = 2.0  # gradients and temporaries beside what reverse mode keeps


class Batching:
    """Split work over rows into sub-batches.

    Arguments:
        budget: Bytes that an evaluation may use; None for half of the machine's or device's.
        rows: The largest number of rows of a sub-batch; None to derive it from the budget.
    """

    def __init__(self, budget: int | None = None, rows: int | None = None) -> None:
        self.budget = budget
        self.rows = rows

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
            except (ResourceExhausted, MemoryError, RuntimeError) as error:
                if not _out_of_memory(error):
                    raise
                self._halve(stop - start, error)
                continue
            start = stop
        return torch.cat(done)

    def _size(self, total: int) -> int:
        if self.rows is None:
            return 1  # the first row of all is measured
        parts = -(-total // self.rows)
        return -(-total // parts)

    def _halve(self, rows: int, error: BaseException) -> None:
        if rows == 1:
            raise ResourceExhausted(
                "Expected memory for one blanket of one member; it ran out. Use a smaller "
                "model, bfloat16 precision, or a machine with more memory."
            ) from error
        self.rows = rows // 2
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    @contextmanager
    def _measured(self, rows: int) -> Iterator[None]:
        if self.rows is not None:
            yield
            return
        storages: dict[int, int] = {}
        device = torch.device("cpu")

        def pack(tensor: Tensor) -> Tensor:
            nonlocal device
            storage = tensor.untyped_storage()
            storages[storage.data_ptr()] = storage.nbytes()
            device = tensor.device
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            yield
        used = _OVERHEAD * sum(storages.values()) / rows
        if used:
            self.rows = max(1, int((self.budget or _SHARE * _memory(device)) // used))


def _memory(device: torch.device) -> int:
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    return int(psutil.virtual_memory().total)


def _out_of_memory(error: BaseException) -> bool:
    return isinstance(
        error, ResourceExhausted | MemoryError | torch.OutOfMemoryError
    ) or "can't allocate memory" in str(error)
