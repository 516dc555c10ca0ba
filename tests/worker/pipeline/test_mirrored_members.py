"""Jobs on a checkpoint with a closed-form prior: what their files say of pairs, and what it changes."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import xarray as xr

from model.checkpoints.bundle import load_checkpoint, save_checkpoint
from tests.model.checkpoint_parts import tiny_model
from tests.model.osse.small_world import small_model
from tests.worker.tables import RECEIVED, make_table
from worker.contract.jobs import JobRecord
from worker.contract.kinds import FilteringSpec, ForecastSpec
from worker.contract.layout import Layout
from worker.loaded_models import LoadedModel, LoadedModels
from worker.observations.errors import assign_errors
from worker.observations.store.store import ObservationStore
from worker.pipeline.assimilation import assimilate_window
from worker.results.manifest import AnalysisManifest, read_manifest

NOON = make_table(1)["time"][0].as_py().to_pydatetime()
STATIONS = 40


class Quiet:
    """Progress of a job that nobody watches."""

    def phase(self, *_):
        pass

    def __call__(self, *_):
        pass


class Place:
    """A data folder with observations, and a model that works there."""

    def __init__(self, folder: Path, based: bool) -> None:
        save_checkpoint(small_model() if based else tiny_model(), folder / "tiny")
        model = load_checkpoint(folder / "tiny")
        warm = LoadedModel("tiny", "ab" * 32, model, folder / "tiny")
        self.models = LoadedModels((warm,), torch.device("cpu"))
        self.layout = Layout(folder / "data").create()
        mean = float(model.state_normalisation.mean[0])
        table = assign_errors(make_table(STATIONS, obs_value=np.full(STATIONS, mean)))
        ObservationStore(str(self.layout.observations)).publish(table, "b1", RECEIVED)

    def run(self, name: str, spec) -> AnalysisManifest:
        """The published manifest of a job."""
        job = JobRecord(id=f"job-{name}", spec=spec, analysis_id=name)
        folder = self.layout.tmp / name
        folder.mkdir()
        assimilate_window(job, self.layout, self.models, Quiet(), folder)
        folder.rename(self.layout.analysis(name))
        return read_manifest(self.layout, name)

    def fields(self, name: str) -> xr.Dataset:
        (path,) = (p for p in self.layout.analysis(name).glob("*.nc") if "obsfb" not in p.name)
        return xr.load_dataset(path)

    def feedback(self, name: str):
        (path,) = self.layout.analysis(name).glob("*obsfb*.parquet")
        return pq.read_table(path)


def over_mean_square(ds: xr.Dataset) -> float:
    """Published variance over the mean square deviation of the members, averaged over cells."""
    members = ds["t2m"].transpose("realization", ...).values.astype(np.float64)
    square = ((members - members.mean(0)) ** 2).mean(0).mean()
    return float((ds["t2m_spread"].values.astype(np.float64) ** 2).mean() / square)


def filtering(hours=0, **values):
    values = {"members": 4, "window_hours": 4, "outputs": ["netcdf", "feedback"], **values}
    return FilteringSpec(valid_time=NOON + timedelta(hours=hours), **values)


@pytest.fixture(scope="module")
def mirrored(tmp_path_factory):
    """A cold start, an analysis an hour later that continues it, and a forecast."""
    place = Place(tmp_path_factory.mktemp("based"), based=True)
    place.run("an-first", filtering())
    place.run("an-second", filtering(hours=1))
    place.run("fc", ForecastSpec(valid_time=NOON, lead_hours=2, members=4, outputs=["netcdf"]))
    return place


@pytest.mark.parametrize("name", ["an-first", "an-second"])
def test_an_analysis_in_pairs_divides_by_the_number_of_members(mirrored, name):
    manifest, ds = read_manifest(mirrored.layout, name), mirrored.fields(name)
    assert manifest.mirrored and manifest.background["mirrored"]
    assert ds.attrs["mirrored_members"] == "true" and ds.attrs["ranked_members"] == 2
    assert ds["t2m_spread"].attrs["ensemble_divisor"] == 4.0
    assert over_mean_square(ds) == pytest.approx(1.0, abs=0.03)  # files are rounded
    rank = mirrored.feedback(name)["rank"].to_numpy()
    assert rank.min() >= 0 and rank.max() <= 2


def test_the_second_analysis_continues_the_first(mirrored):
    assert read_manifest(mirrored.layout, "an-second").background["analysis_id"] == "an-first"


def test_a_forecast_from_pairs_is_in_pairs(mirrored):
    manifest, ds = read_manifest(mirrored.layout, "fc"), mirrored.fields("fc")
    assert manifest.mirrored and manifest.background["mirrored"]
    assert ds.attrs["mirrored_members"] == "true"
    assert ds["t2m_spread"].attrs["ensemble_divisor"] == 4.0
    assert over_mean_square(ds) == pytest.approx(1.0, abs=0.03)


def test_pairs_are_lost_when_an_odd_ensemble_is_repeated(mirrored):
    mirrored.run("an-three", filtering(hours=2, members=3))
    six = mirrored.run("an-six", filtering(hours=3, members=6))
    assert six.background["analysis_id"] == "an-three"
    # Members 0, 1, 2, 0, 1, 2: the fourth and fifth are no pair. The analysis has pairs again.
    assert "mirrored" not in six.background and six.mirrored


def test_a_checkpoint_without_a_prior_divides_by_one_less(tmp_path):
    place = Place(tmp_path, based=False)
    manifest = place.run("an", filtering(steps=3))
    ds = place.fields("an")
    assert not manifest.mirrored and "mirrored" not in manifest.background
    assert ds["t2m_spread"].attrs["ensemble_divisor"] == 3.0
    assert over_mean_square(ds) == pytest.approx(4 / 3, abs=0.03)
    assert ds.attrs["mirrored_members"] == "false" and ds.attrs["ranked_members"] == 4
