"""A data folder with published results, made by the worker's own pipeline without a broker."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

from model.checkpoints.bundle import load_checkpoint, save_checkpoint
from tests.model.checkpoint_parts import tiny_model
from tests.worker.tables import RECEIVED, make_table
from worker.contract.jobs import JobRecord
from worker.contract.kinds import FilteringSpec, ForecastSpec, ObservationSelection
from worker.contract.layout import Layout
from worker.loaded_models import LoadedModels, load_models
from worker.observations.errors import assign_errors, load_errors
from worker.observations.store.store import ObservationStore
from worker.pipeline.assimilation import assimilate_window
from worker.replay.replay import QuietProgress
from worker.results.manifest import AnalysisManifest

SMALL = {"members": 2, "steps": 3, "outputs": ["netcdf", "feedback"]}
NOON: datetime = make_table(1)["time"][0].as_py().to_pydatetime()


@dataclass
class Installation:
    layout: Layout
    checkpoint: Path
    models: LoadedModels
    mean: float

    def at(self, root: Path) -> "Installation":
        return Installation(Layout(root), self.checkpoint, self.models, self.mean)

    @property
    def store(self) -> ObservationStore:
        return ObservationStore(str(self.layout.observations))

    def observe(self, batch: str, count: int, *, later: int = 0, errors=None, **columns) -> None:
        """Publishes an upload that arrived `later` minutes after the first."""
        received = RECEIVED + timedelta(minutes=later)
        values = {"obs_value": np.full(count, self.mean), **columns}
        table = assign_errors(
            make_table(count, batch_id=batch, received=received, **values),
            *([load_errors(errors)] if errors else []),
        )
        self.store.publish(table, batch, received)

    def run(self, name: str, spec) -> AnalysisManifest:
        """Runs and publishes a job, as a model worker does."""
        job = JobRecord(id=f"job-{name}", analysis_id=name, spec=spec)
        staging = self.layout.staging(name, 1)
        staging.mkdir()
        progress = QuietProgress(lambda step, steps: None)
        manifest = assimilate_window(job, self.layout, self.models, progress, staging)
        staging.rename(self.layout.analysis(name))
        return manifest


def make_installation(folder: Path) -> Installation:
    """Observations of two uploads; a cold analysis, one that continues it, a forecast."""
    checkpoint = folder / "tiny"
    save_checkpoint(tiny_model(), checkpoint)
    mean = float(load_checkpoint(checkpoint).state_normalisation.mean[0])
    made = Installation(
        Layout(folder / "data").create(), checkpoint, load_models([str(checkpoint)], "cpu"), mean
    )
    made.observe("b1", 20)
    made.observe("b2", 10, later=5, station_id=[f"x{i}" for i in range(10)])
    made.run("an-cold", FilteringSpec(valid_time=NOON, **SMALL))
    late = ObservationSelection(cut_off=RECEIVED + timedelta(minutes=2))
    after = NOON + timedelta(hours=2)
    made.run("an-next", FilteringSpec(valid_time=after, observations=late, seed=3, **SMALL))
    made.run("fc-next", ForecastSpec(valid_time=after, lead_hours=3, **SMALL))
    return made
