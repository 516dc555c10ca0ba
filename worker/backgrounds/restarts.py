"""Write, read and find restart files: the latent states of a result, from which the next job starts.

Latents are exact and small; reading a published NetCDF file back would lose what was rounded.

A marker file names valid time, revision and result; the manifest and the restart file are read
only when a marker fits. A deleted result leaves a dangling marker, which is skipped.
"""

import json
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.domain.errors import StorageError
from worker.contract.layout import Layout
from worker.results.manifest import AnalysisManifest, read_manifest

__all__ = [
    "PublishedStates",
    "RESTART_NAME",
    "Restart",
    "find_restart",
    "mark_restart",
    "read_restart",
    "write_restart",
]

RESTART_NAME = "restart.safetensors"


@dataclass(frozen=True, eq=False)
class Restart:
    """Latent states of a finished job.

    Attributes:
        times: Consecutive full hours (UTC); T of them.
        latents: Standardised latents, with shape (M, T, c, h, w).
        model: SHA-256 of the checkpoint's card; latents mean nothing to another model.
    """

    times: tuple[datetime, ...]
    latents: Tensor
    model: str


def write_restart(restart: Restart, path: Path) -> None:
    """Writes the file."""
    about = {
        "times": json.dumps([time.isoformat() for time in restart.times]),
        "model": restart.model,
    }
    save_file({"latents": restart.latents.contiguous().cpu()}, path, about)


def read_restart(path: Path) -> Restart:
    """Reads the file.

    Raises:
        StorageError: If it is absent or not a restart file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            times = tuple(datetime.fromisoformat(t) for t in json.loads(about["times"]))
            return Restart(times, file.get_tensor("latents").to(torch.float32), about["model"])
    except (OSError, KeyError, ValueError) as error:
        raise StorageError(f"Expected a restart file at {path.name}; {error}.") from error


_STAMP = "%Y%m%dT%H"


@dataclass(frozen=True)
class PublishedStates:
    """A published result and its latent states.

    Attributes:
        manifest: Of the result.
        restart: Its latent states.
    """

    manifest: AnalysisManifest
    restart: Restart
    source: ClassVar[str] = "previous_analysis"
    flags: ClassVar[tuple[str, ...]] = ()

    @property
    def mirrored(self) -> bool:
        """Whether members 0 and 1, 2 and 3 … have opposite perturbations."""
        return self.manifest.mirrored

    def describe(self) -> dict[str, Any]:
        """The result."""
        return {
            "source": self.source,
            "analysis_id": self.manifest.id,
            "flavour": self.manifest.flavour,
            "revision": self.manifest.revision,
            "restart_sha256": self.restart_sha256,
        }

    @property
    def restart_sha256(self) -> str:
        """Hash of the file with the latent states."""
        found = (file.sha256 for file in self.manifest.files if file.name == RESTART_NAME)
        return next(found, "")

    def hours_to(self, time: datetime) -> int:
        """States up to and including `time`."""
        return sum(t <= time for t in self.restart.times)


def mark_restart(layout: Layout, manifest: AnalysisManifest) -> None:
    """Makes a published result with a restart file known."""
    if not manifest.times or not any(file.name == RESTART_NAME for file in manifest.files):
        return
    layout.restarts.mkdir(exist_ok=True)
    last = max(manifest.times)
    name = f"{last:{_STAMP}}__{manifest.revision:04d}__{manifest.id}"
    (layout.restarts / name).touch()


def find_restart(
    layout: Layout,
    model: str,
    at: datetime,
    max_age: timedelta,
    *,
    analysis_id: str | None = None,
    cycled: bool = False,
) -> PublishedStates | None:
    """The newest result up to `at`, its highest revision, that `model` can continue.

    Arguments:
        layout: The data folder.
        model: SHA-256 of the checkpoint's card.
        at: Last valid time accepted (UTC).
        max_age: Oldest valid time accepted, before `at`.
        analysis_id: Only this result.
        cycled: Prefer any result of the cycles to any other: an experiment of someone's own must
            not get into the chain of analyses while that has a link of its own.
    """
    names = [
        name
        for time, _, name in sorted(_markers(layout), reverse=True)
        if at - max_age <= time <= at and analysis_id in (None, name)
    ]
    if cycled:
        names.sort(key=lambda name: not _is_cycled(layout, name))
    for name in names:
        try:
            found = PublishedStates(
                read_manifest(layout, name), read_restart(layout.analysis_file(name, RESTART_NAME))
            )
        except StorageError:
            continue
        if found.restart.model == model:
            return found
    return None


def _is_cycled(layout: Layout, name: str) -> bool:
    try:
        return bool(read_manifest(layout, name).flavour)
    except StorageError:
        return False


def _markers(layout: Layout) -> list[tuple[datetime, int, str]]:
    found = []
    for path in layout.restarts.glob("*__*__*"):
        stamp, revision, name = path.name.split("__", 2)
        time = datetime.strptime(stamp, _STAMP).replace(tzinfo=UTC)
        found.append((time, int(revision), name))
    return found
