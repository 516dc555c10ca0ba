"""A cache for tensors that depend on parameters alone, valid while these do not change."""

from collections.abc import Callable, Hashable, Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["ConstantCache"]

T = TypeVar("T")


class ConstantCache:
    """Keeps derived tensors between evaluations, outside the state dict.

    An entry is used again only while the tensors it came from are the same storage, of the same
    type and device, and unmodified since (an optimiser step or `load_state_dict` counts as a
    change). Where a gradient to them is wanted, or under `torch.compile` or a functional
    transform of the parameters, nothing is kept.

    Arguments:
        limit: Bytes kept at most; what does not fit is computed at each call.
    """

    def __init__(self, limit: int = 2**30) -> None:
        self.limit = limit
        self._held = 0
        self._entries: dict[Hashable, tuple[Any, Any, int]] = {}

    def get(self, key: Hashable, sources: Sequence[Tensor], make: Callable[[], T]) -> T:
        """The tensors called `key`, computed by `make` from `sources` when not held."""
        if not _constant(sources):
            return make()
        stamp = tuple((s.data_ptr(), s._version, s.dtype, s.device, s.shape) for s in sources)
        entry = self._entries.get(key)
        if entry is not None and entry[0] == stamp:
            return entry[1]
        # A tensor made in inference mode could not take part in a later backward pass.
        with torch.inference_mode(False), torch.no_grad():
            value = make()
        size = sum(v.nbytes for v in _tensors(value))
        held = self._held - (entry[2] if entry is not None else 0)
        self._entries.pop(key, None)
        if held + size <= self.limit:
            self._entries[key] = (stamp, value, size)
            held += size
        self._held = held
        return value

    def __deepcopy__(self, memo: dict[int, Any]) -> "ConstantCache":
        return ConstantCache(self.limit)

    def __reduce__(self) -> tuple[type["ConstantCache"], tuple[int]]:
        return ConstantCache, (self.limit,)


def _constant(sources: Sequence[Tensor]) -> bool:
    if torch.compiler.is_compiling():
        return False
    wanted = torch.is_grad_enabled() and any(s.requires_grad for s in sources)
    plain = all(isinstance(s, Tensor) and not s.is_meta and not s.is_inference() for s in sources)
    return plain and not wanted and not torch._C._functorch.maybe_current_level()


def _tensors(value: object) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    return [v for v in value if isinstance(v, Tensor)] if isinstance(value, tuple) else []
