"""Write, read and find restart files: the latent states of a result, from which the next job starts.

Latents are exact and small; published NetCDF files are rounded, so reading them back would not be.

The catalogue says which results have a restart file; the file is read only when its times fit.
"""

import json
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, ClassVar

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from model.domain.errors import StorageError
from worker.contract.layout import Layout
from worker.contract.suites import CHALLENGER
from worker.observations.bias import BiasState
from worker.results.catalogue import Catalogue
from worker.results.entries import Entry, ResultFilter
from worker.results.manifest import AnalysisManifest
from worker.results.store import result_store

__all__ = [
    "RestartRanking",
    "PublishedStates",
    "RESTART_NAME",
    "Restart",
    "find_restart",
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
        biases: Bias estimates of sensors after the job.
    """

    times: tuple[datetime, ...]
    latents: Tensor
    model: str
    biases: BiasState = field(default_factory=BiasState)


def write_restart(restart: Restart, path: Path) -> None:
    """Write the latent states, their times and the hash of their model to `path`."""
    about = {
        "times": json.dumps([time.isoformat() for time in restart.times]),
        "model": restart.model,
        "biases": restart.biases.model_dump_json(),
    }
    save_file({"latents": restart.latents.contiguous().cpu()}, path, about)


def read_restart(path: Path) -> Restart:
    """Return the content of a restart file.

    Raises:
        StorageError: If it is absent or not a restart file.
    """
    try:
        with safe_open(path, framework="pt") as file:
            about = file.metadata()
            times = tuple(datetime.fromisoformat(t) for t in json.loads(about["times"]))
            biases = BiasState.model_validate_json(about.get("biases", "{}"))
            latents = file.get_tensor("latents").to(torch.float32)
            return Restart(times, latents, about["model"], biases)
    except (OSError, KeyError, ValueError) as error:
        raise StorageError(f"Expected a restart file at {path.name}; {error}.") from error


@dataclass(frozen=True)
class PublishedStates:
    """A published result and its latent states.

    Attributes:
        manifest: Manifest of the result.
        restart: Its latent states.
    """

    manifest: AnalysisManifest
    restart: Restart
    source: ClassVar[str] = "previous_analysis"
    flags: ClassVar[tuple[str, ...]] = ()

    @property
    def antithetic(self) -> bool:
        """Return whether members 0 and 1, 2 and 3 … have opposite perturbations."""
        return self.manifest.mirrored

    def describe(self) -> dict[str, Any]:
        """Return what the manifest of the next result says about this background."""
        return {
            "source": self.source,
            "analysis_id": self.manifest.id,
            "flavour": self.manifest.flavour,
            "revision": self.manifest.revision,
            "restart_sha256": self.restart_sha256,
        }

    @property
    def restart_sha256(self) -> str:
        """Return the SHA-256 of the file with the latent states."""
        found = (file.sha256 for file in self.manifest.files if file.name == RESTART_NAME)
        return next(found, "")

    def hours_to(self, time: datetime) -> int:
        """Return the number of states up to and including `time`."""
        return sum(t <= time for t in self.restart.times)


@dataclass(frozen=True)
class RestartRanking:
    """Rank the results that a cycle may continue: those of its own suite come first.

    A challenger continues only its own results and, because it branches off there, those of the
    champion from before its first hour. No other job continues a challenger's results, unless its
    suite was promoted.

    Attributes:
        suite: Id of its suite; empty for the installation's own.
        challenger: Whether that suite is on trial.
        branched: First valid time of the challenger (UTC).
    """

    suite: str = ""
    challenger: bool = False
    branched: datetime | None = None

    def rank(self, entry: Entry) -> int | None:
        """Return the rank of a result, 0 for the best; None if it may not be continued."""
        if entry.flavour and entry.suite == self.suite:
            return 0
        if entry.flavour == CHALLENGER:
            return None
        if self.challenger:
            early = self.branched is not None and entry.last_time < self.branched
            return 1 if early and entry.flavour else None
        return 1 if entry.flavour else 2


def find_restart(
    layout: Layout,
    model: str,
    at: datetime,
    max_age: timedelta,
    *,
    analysis_id: str | None = None,
    ranking: RestartRanking | None = None,
) -> PublishedStates | None:
    """Return the newest result up to `at`, its highest revision, that `model` can continue.

    Arguments:
        layout: The data folder.
        model: SHA-256 of the checkpoint's card.
        at: Last valid time accepted (UTC).
        max_age: Oldest valid time accepted, before `at`.
        analysis_id: Only this result.
        ranking: Ranking of a cycle; it prefers all results of cycles to others, so that an experiment
            is continued only where there is no result of a cycle. None outside the cycles.
    """
    ids = None if analysis_id is None else (analysis_id,)
    wanted = ResultFilter(
        ids=ids,
        last_from=at - max_age,
        last_to=at,
        with_restart=True,
        challengers=ranking is not None,
    )
    with Catalogue(layout) as catalogue:
        found = catalogue.entries(wanted)
        found.sort(key=lambda entry: (entry.last_time, entry.revision, entry.id), reverse=True)
        if ranking is not None:
            ranks = {entry.id: ranking.rank(entry) for entry in found}
            found = [entry for entry in found if ranks[entry.id] is not None]
            found.sort(key=lambda entry: ranks[entry.id] or 0)
        for entry in found:
            states = _read_states(layout, catalogue, entry.id)
            if states is not None and states.restart.model == model:
                return states
    return None


def _read_states(layout: Layout, catalogue: Catalogue, name: str) -> PublishedStates | None:
    """Return a result that can be continued; None if it was deleted or damaged."""
    manifest = catalogue.find(name)
    if manifest is None:
        return None
    path = result_store(layout).file(name, RESTART_NAME)  # retried while a bucket is unavailable
    try:
        return PublishedStates(manifest, read_restart(path))
    except StorageError:
        return None
