"""Give the memory of the weights of an idle model back, and read them again from its bundle.

A process that waits for its next job needs no weights; reading them again takes less than a tenth of a
second where the system still has the files in its cache. Parameters stay the same objects: only their
memory goes and comes back, so what refers to them stays valid. What is derived from them is computed anew.
"""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from model.card import CARD_NAME, read_card
from model.domain.errors import CheckpointError
from model.latent_model import LatentModel
from model.nn.transformer import ConstantCache

__all__ = ["StoredWeights", "stored_weights"]

_LEAST_BYTES = 65_536
"""Size of the arrays worth giving back: smaller ones share pages with others."""


@dataclass(frozen=True)
class _File:
    """A file of a bundle that is kept open, and arrays of the model that are stored in it.

    Open, so that the arrays can be read again after the bundle was replaced or deleted.
    """

    path: Path
    descriptor: int
    arrays: dict[str, Tensor]
    state: tuple[int, int]

    @classmethod
    def opened(cls, path: Path, arrays: dict[str, Tensor]) -> "_File":
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return cls(path, descriptor, arrays, _state(descriptor))

    def read_into(self, arrays: dict[str, Tensor]) -> None:
        """Read arrays again.

        Raises:
            CheckpointError: If the file was written to since it was opened.
        """
        if _state(self.descriptor) != self.state:
            raise CheckpointError(
                f"Expected {self.path} as it was when the model was loaded; it has changed since. "
                "Restart this worker, which checks the hashes of what it loads.",
                file=str(self.path),
            )
        with safe_open(f"/proc/self/fd/{self.descriptor}", "pt") as stored:
            for name, array in arrays.items():
                array.copy_(stored.get_tensor(name))

    def equal_arrays(self) -> dict[str, Tensor]:
        """Return the arrays that are what the file says; none once it was written to."""
        if _state(self.descriptor) != self.state:
            return {}
        with safe_open(f"/proc/self/fd/{self.descriptor}", "pt") as stored:
            return {
                name: array
                for name, array in self.arrays.items()
                if torch.equal(array, stored.get_tensor(name).to(array.dtype))
            }


def _state(descriptor: int) -> tuple[int, int]:
    found = os.fstat(descriptor)
    return found.st_size, found.st_mtime_ns


class StoredWeights:
    """The large arrays of a model that its bundle stores; nothing may compute while they rest.

    Arguments:
        files: The files that hold them.
        derived: Caches of what was computed from them, which is not valid for arrays read again.
    """

    def __init__(self, files: Sequence[_File] = (), derived: Sequence[ConstantCache] = ()) -> None:
        self._files, self._derived = files, derived
        self._absent: list[tuple[_File, dict[str, Tensor]]] = []

    @torch.no_grad()
    def rest(self) -> None:
        """Free the memory of the arrays, except those that differ from the stored ones."""
        for cache in self._derived:
            cache.clear()
        for file in self._files:
            arrays = file.equal_arrays()
            self._absent.append((file, arrays))
            for array in arrays.values():
                array.untyped_storage().resize_(0)

    @torch.no_grad()
    def wake(self) -> None:
        """Read the freed arrays again.

        Raises:
            CheckpointError: If a file was written to since it was opened.
        """
        while self._absent:
            file, arrays = self._absent[-1]
            for array in arrays.values():
                array.untyped_storage().resize_(array.nbytes)
            file.read_into(arrays)
            self._absent.pop()


def stored_weights(folder: Path, model: LatentModel) -> StoredWeights:
    """Return the arrays of a loaded model that can be freed and read again.

    None of them can be where the model is not on the processor, is read from files of another kind
    than a bundle, or the system is not Linux.

    Arguments:
        folder: Folder of the bundle.
        model: Loaded from it.
    """
    card = folder / CARD_NAME
    if sys.platform != "linux" or model.device.type != "cpu" or not card.is_file():
        return StoredWeights()
    modules: dict[str, nn.Module | None] = {
        "autoencoder": model.autoencoder,
        "backbone": model.denoise.backbone,
        "base": cast("nn.Module | None", model.denoise.base),
    }
    files = []
    for role, about in read_card(card).files.items():
        module = modules.get(role)
        if module is None:
            continue
        found = {name: a for name, a in module.state_dict().items() if _can_be_freed(a)}
        with safe_open(folder / about.path, "pt") as stored:
            found = {name: found[name] for name in sorted(found.keys() & set(stored.keys()))}
        files.append(_File.opened(folder / about.path, found))
    derived = [v for m in model.modules() for v in vars(m).values() if isinstance(v, ConstantCache)]
    return StoredWeights(files, derived)


def _can_be_freed(array: Tensor) -> bool:
    storage = array.untyped_storage()
    whole = storage.resizable() and storage.nbytes() == array.nbytes
    return whole and array.nbytes >= _LEAST_BYTES
