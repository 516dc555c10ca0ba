"""What a result must say about how it was made, so that it can be made again bit by bit."""

import hashlib
import math
import platform
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from worker.columns import codes
from worker.jobs.observation_files import StoreFiles

__all__ = ["code_digest", "environment", "from_plain", "plain", "rows_of_batches"]

_SOURCES = ("model", "worker")
_INFINITE = {"inf": math.inf, "-inf": -math.inf}


def environment(device: torch.device) -> dict[str, Any]:
    """What the last bits of a result depend on besides the code: libraries, threads, processor."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
    return {
        "device": str(device),
        "device_name": name,
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
    }


def code_digest() -> str:
    """SHA-256 over the sources of model and worker: versions alone do not tell edits apart."""
    return _CODE


def _digest_of_sources() -> str:
    root = Path(__file__).parents[1]
    digest = hashlib.sha256()
    for package in _SOURCES:
        for path in sorted((root / package).rglob("*.py")):
            digest.update(f"{path.relative_to(root)}\n".encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def rows_of_batches(table: pa.Table, store: StoreFiles) -> dict[str, dict[str, Any]]:
    """For each batch with rows in `table`: how many, and the hash of the batch's content."""
    code, names = codes(table, "batch_id")
    counts = np.bincount(code[code >= 0], minlength=len(names))
    found = {}
    for name, rows in zip(names, counts, strict=True):
        manifest = store.manifest(name) if rows else None
        if manifest is not None:  # superobservations belong to no batch of the store
            found[name] = {"rows": int(rows), "content_hash": manifest.content_hash}
    return found


def plain(value: Any) -> Any:
    """`value` as JSON can hold it: infinite numbers become words."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return value


def from_plain(value: Any) -> Any:
    """The inverse of `plain`."""
    if isinstance(value, Mapping):
        return {k: from_plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [from_plain(v) for v in value]
    return _INFINITE.get(value, value) if isinstance(value, str) else value


_CODE = _digest_of_sources()
"""Taken when this process starts: files may be replaced under a worker that runs."""
