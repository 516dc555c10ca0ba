"""Jobs that continue the analysis of the hour before: each observation is assimilated once."""

from datetime import timedelta
from functools import partial

import numpy as np
import pytest
import torch

from model.card import BackgroundCard
from model.checkpoints.bundle import save_checkpoint
from model.gaussian_prior import ZonalGaussianPrior
from model.latent_model import LatentModel
from tests.model.osse.small_world import small_model
from tests.worker.pipeline.test_mirrored_members import NOON, Place, filtering
from tests.worker.tables import RECEIVED, make_table
from worker.contract.kinds import ObservationSelection
from worker.loaded_models import load_models
from worker.observations.errors import assign_errors
from worker.observations.store.store import ObservationStore
from worker.pipeline.assimilation import already_seen
from worker.replay.comparison import ReplayOutcome
from worker.replay.replay import replay
from worker.results.manifest import read_manifest

HOUR = timedelta(hours=1)


def informed_model(hours=1):
    """The small model, knowing that its backgrounds of so many hours err by a fifth of the climate."""
    model = small_model()
    errors = ZonalGaussianPrior(model.blanket_size, model.latent_shape, 3, 2)
    for variance in (errors.variance, errors.dense_variance, errors.rest_variance):
        variance.fill_(0.04)
    for m in range(len(errors.eofs)):
        basis = torch.linalg.qr(torch.randn(12, 3, dtype=torch.complex64))[0]
        errors.eofs[m] = torch.view_as_real(basis)
        errors.dense_vectors[m] = torch.view_as_real(torch.eye(2, dtype=torch.complex64))
        errors.dense_index[m] = torch.arange(2)
    model.background_errors = errors
    known = BackgroundCard(modes=3, dense=2, sigma=0.3, hours=hours)
    model.card = model.card.model_copy(update={"background": known})
    return model


class InformedPlace(Place):
    def __init__(self, folder, hours=1):
        super().__init__(folder, based=True)
        self.checkpoint = str(folder / "informed")
        save_checkpoint(informed_model(hours), folder / "informed")
        self.models = load_models([self.checkpoint], "cpu")
        self.mean = float(self.models.get(None).model.state_normalisation.mean[0])

    def observe(self, batch, count, *, hours=0, later=0, **columns):
        received = RECEIVED + timedelta(minutes=later)
        time = np.datetime64("2024-01-01T12:00", "ns") + np.timedelta64(hours, "h")
        values = {"time": time, "obs_value": np.full(count, self.mean), **columns}
        table = make_table(count, batch_id=batch, received=received, **values)
        ObservationStore(str(self.layout.observations)).publish(
            assign_errors(table), batch, received
        )


@pytest.fixture(scope="module")
def chain(tmp_path_factory):
    """A cold analysis, then new and late uploads, and the analysis an hour later."""
    place = InformedPlace(tmp_path_factory.mktemp("chain"))
    place.run("an-first", filtering(warm_start=True))
    place.observe("b2", 30, hours=1, later=60)
    place.observe("b3", 7, later=65, station_id=[f"x{i}" for i in range(7)])
    place.run("an-second", filtering(hours=1, warm_start=True))
    return place


def test_what_the_first_has_seen_is_not_assimilated_again(chain):
    first, second = (read_manifest(chain.layout, n) for n in ("an-first", "an-second"))
    assert "continued" not in first.flags and "cold_start" in first.flags
    assert "continued" in second.flags and "cold_start" not in second.flags
    assert second.background["analysis_id"] == "an-first"
    seen = sum(n for name, n in first.observations.items())
    assert second.observations["assimilated"] == seen == 40
    assert sum(second.observations.values()) == 40 + 30 + 7  # the late ones, too, are new
    assert second.observations["used"] > 0


def test_rows_seen_before_have_no_departures(chain):
    feedback = chain.feedback("an-second")
    known = np.array([o == "assimilated" for o in feedback["rejected_by"].to_pylist()])
    empty = np.isnan(feedback["background_departure"].to_numpy(zero_copy_only=False))
    assert empty[known].all() and not empty[~known].all()


def test_the_background_spreads_as_its_errors_do(chain):
    spread = chain.feedback("an-second")["background_spread"].to_numpy(zero_copy_only=False)
    climate = chain.feedback("an-first")["background_spread"].to_numpy(zero_copy_only=False)
    assert np.nanmean(spread) < 0.5 * np.nanmean(climate)


def test_an_analysis_that_continues_replays_identically(chain):
    verdict = replay(chain.layout, "an-second", checkpoints=[chain.checkpoint])
    assert verdict.outcome is ReplayOutcome.IDENTICAL, verdict.findings


def test_the_impact_of_all_networks_is_what_the_analysis_took_away(tmp_path, monkeypatch):
    place = InformedPlace(tmp_path)
    linear = place.models.get(None).model.tangent
    whole = property(lambda model: partial(model.decode, mask=False))
    monkeypatch.setattr(LatentModel, "decode_standardised", lambda model, z: linear(z))
    monkeypatch.setattr(LatentModel, "decode_partly", whole)
    withheld = {"observations": ObservationSelection(withhold=0.4)}
    place.run("an-first", filtering(warm_start=True, **withheld))
    rng = np.random.default_rng(2)
    networks = {"report_type": np.where(np.arange(120) % 3 > 0, "synop", "ship")}
    where = {"lat": rng.uniform(-80, 80, 120), "lon": rng.uniform(-180, 180, 120)}
    warmer = place.mean + 2.0 + rng.standard_normal(120)
    place.observe("b2", 120, hours=1, later=60, **where, **networks, obs_value=warmer)
    manifest = place.run("an-second", filtering(hours=1, warm_start=True, **withheld))
    assert "continued" in manifest.flags
    table = place.feedback("an-second")
    rows = table.filter([o == "withheld" for o in table["rejected_by"].to_pylist()]).to_pandas()
    rows = rows[rows["background_departure"].notna()]
    assert len(rows) > 20
    before, after = (
        (rows[f"{of}_departure"] ** 2 / rows["obs_error"] ** 2).sum()
        for of in ("background", "analysis")
    )
    impact = manifest.scores["impact"]
    assert set(impact) == {"synop", "ship"}
    assert sum(impact.values()) == pytest.approx(1 - after / before, rel=0.02)


@pytest.mark.parametrize(
    ("reason", "values"),
    [
        ("a gap of two hours", {"hours": 3, "warm_start": True}),
        ("no warm start asked for", {"hours": 1}),
        ("another window", {"hours": 1, "warm_start": True, "window_hours": 3}),
        (
            "other observations",
            {"hours": 1, "warm_start": True, "observations": ObservationSelection(withhold=0.2)},
        ),
    ],
)
def test_anything_else_sees_its_whole_window(chain, reason, values):
    manifest = chain.run(f"an-{reason.replace(' ', '-')}", filtering(**values))
    assert "continued" not in manifest.flags
    assert "assimilated" not in manifest.observations


def test_hourly_cycles_may_be_chains_side_by_side(tmp_path):
    """Each continues the analysis of two hours before, the second the first for want of an older."""
    place = InformedPlace(tmp_path, hours=2)
    names = ["an-0", "an-1", "an-2", "an-3"]
    for hour, name in enumerate(names):
        if hour:
            place.observe(f"b{hour + 1}", 10, hours=hour, later=60 * hour)
        place.run(name, filtering(hours=hour, warm_start=True))
    made = [read_manifest(place.layout, name) for name in names]
    assert ["continued" in m.flags for m in made] == [False, True, True, True]
    assert [m.background.get("analysis_id") for m in made[1:]] == ["an-0", "an-0", "an-1"]
    assert made[3].observations["assimilated"] == sum(made[1].observations.values())
    verdict = replay(place.layout, "an-3", checkpoints=[place.checkpoint])
    assert verdict.outcome is ReplayOutcome.IDENTICAL, verdict.findings


def test_a_checkpoint_that_does_not_know_its_errors_starts_from_the_trajectory(tmp_path):
    place = Place(tmp_path, based=True)
    place.run("an-first", filtering(warm_start=True))
    second = place.run("an-second", filtering(hours=1, warm_start=True))
    assert "warm_start" in second.flags and "continued" not in second.flags


def test_late_rows_and_later_hours_are_new(chain):
    first = read_manifest(chain.layout, "an-first")
    minutes = first.model_copy(update={"cut_off": RECEIVED - timedelta(minutes=1)})
    table = make_table(3, batch_id="b1")
    assert already_seen(table, first).all()
    assert not already_seen(table, minutes).any()
    assert not already_seen(make_table(3, batch_id="b9"), first).any()
    assert not already_seen(table, first.model_copy(update={"valid_time": NOON - HOUR})).any()
