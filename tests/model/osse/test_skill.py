"""Every figure of a start on a tiny checkpoint, against direct computation."""

from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pytest
import torch

from lab.osse.cases import observe_case
from lab.osse.scores import Method, score_autoencoder
from lab.osse.skill import ResultsFile, SkillSettings, experiment, score_start
from model.assimilate import assimilate
from model.diagnostics.scores import rmse
from model.domain.errors import InvalidInput
from model.domain.windows import WindowPlan
from model.latent_model import climatological_states
from tests.model.osse.small_world import NETWORK, small_model, true_states

END = datetime(2021, 3, 4, 12, tzinfo=UTC)
SETTINGS = SkillSettings(
    window=4, members=3, lead=3, past=2, network=NETWORK, withhold=0.3, anomalies=30
)


@pytest.fixture(scope="module")
def model():
    return small_model()


@pytest.fixture(scope="module")
def truth(model):
    return partial(true_states, model)


@pytest.fixture(scope="module")
def scored(model, truth):
    return score_start(model, truth, END, SETTINGS)


def standardised(model, state, wanted):
    state = torch.where(torch.isnan(wanted), torch.nan, state)
    return (rmse(state, wanted, model.grid) / model.state_normalisation.std.flatten()).tolist()


def test_errors_are_those_of_the_states(model, truth, scored):
    skill = scored.skill
    states = truth(END - timedelta(hours=3), 8)
    ahead = END + timedelta(hours=3)
    expected = {
        Method.CLIMATOLOGY: (climatological_states(model, [END])[0], states[3]),
        Method.CLIMATOLOGY_AHEAD: (climatological_states(model, [ahead])[0], states[6]),
    }
    case = observe_case(model, truth, END, 4, 3, NETWORK, 0, 0.3)
    analysis = assimilate(model, case.observations(), WindowPlan.filtering(END, 4, written=4), 3, 0)
    mean = analysis.states.mean(0)
    expected |= {
        Method.FILTERING: (mean[3], states[3]),
        Method.REANALYSIS: (mean[2], states[2]),
        Method.PERSISTENCE: (mean[3], states[6]),
    }
    later = END + timedelta(hours=1)
    warm = assimilate(
        model,
        case.observations(1),
        WindowPlan.filtering(later, 4),
        3,
        0,
        warm_start=analysis.warm_start,
    )
    expected[Method.WARM] = warm.states.mean(0)[0], states[4]
    for method, (state, wanted) in expected.items():
        found = standardised(model, state, wanted)
        assert skill.errors[method] == pytest.approx(found, rel=1e-4), method
    # The window is too short for these.
    assert Method.PERSISTENCE_6 not in skill.errors
    for method in (Method.WINDOWED, Method.OPTIMAL_INTERPOLATION, Method.FORECAST):
        assert skill.seconds[method] > 0
        assert np.isfinite(skill.errors[method]).all()
    np.testing.assert_allclose(scored.fields.truth[0], states[3, 0])
    np.testing.assert_allclose(scored.fields.analysis[0], mean[3, 0], rtol=1e-4)


def test_withheld_stations_are_ranked_and_not_assimilated(model, truth, scored):
    whole = observe_case(model, truth, END, 4, 3, NETWORK, 0, 0.0)
    case = observe_case(model, truth, END, 4, 3, NETWORK, 0, 0.3)
    seen, rows = case.withheld()
    out = set(rows["station_id"].to_pylist())
    assert 5 < len(out) < 30
    known = case.known().take(case.observations().rows)
    assert out.isdisjoint(known["station_id"].to_pylist())
    assert len(seen) + len(case.observations()) == len(whole.observations())
    assert scored.skill.withheld == len(seen)
    assert scored.skill.observations == len(case.observations())
    assert {s for found in scored.skill.ranks.values() for s in found} == out
    # Two of three members in pairs of opposite noise are independent: three ranks.
    counts = [c for found in scored.skill.ranks.values() for c in found.values()]
    assert {len(c) for c in counts} == {3}
    assert sum(map(sum, counts)) == pytest.approx(len(seen))
    # An hour later the same stations are out, and nothing of that hour is known before.
    times = case.known(1)["time"].to_numpy()
    assert times.max() > case.known()["time"].to_numpy().max()
    assert case.known()["time"].to_numpy().max() <= np.datetime64(END.replace(tzinfo=None))
    assert out.isdisjoint(case.known(1).take(case.observations(1).rows)["station_id"].to_pylist())


def test_an_autoencoder_is_scored_over_states(model, truth):
    times = [END, END + timedelta(hours=5)]
    skill = score_autoencoder(model, truth, times, largest=20)
    errors = []
    for time in times:
        state = truth(time, 1)
        errors.append(standardised(model, model.decode(model.encode(state))[0], state[0]))
    assert skill.errors == pytest.approx(np.mean(errors, axis=0).tolist(), rel=1e-5)
    assert skill.mean == pytest.approx(np.mean(errors), rel=1e-5)
    # Eight Gaussian rows resolve wavenumbers up to 7.
    assert skill.largest_wavenumber == 7
    assert "sea_surface_temperature" not in {s.variable for s in skill.spectra}


def test_finished_starts_are_kept_and_others_are_refused(model, truth, scored, tmp_path):
    path = tmp_path / "skill.json"
    made_by = experiment(model, SETTINGS, None)
    kept = ResultsFile(path, made_by)
    assert kept.start(END) is None
    kept.add_autoencoder(score_autoencoder(model, truth, [END]))
    kept.add_start(scored.skill, scored.fields)
    again = ResultsFile(path, made_by)
    assert again.start(END) == scored.skill
    assert again.start(END + timedelta(hours=1)) is None
    assert again.autoencoder.times == (END,)
    assert again.fields.end == END
    np.testing.assert_array_equal(again.fields.spread, scored.fields.spread)
    with pytest.raises(InvalidInput, match="another members, truth"):
        ResultsFile(path, made_by | {"members": 9, "truth": "elsewhere.zarr"})
