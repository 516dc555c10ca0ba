"""Departure statistics of an analysis whose errors are known."""

import numpy as np
import pyarrow as pa
import pytest

from model.domain.observations import FEEDBACK_SCHEMA
from worker.results.verification.departures import departure_statistics

COUNT = 100_000


def feedback(**columns):
    count = len(columns["background_departure"])
    table = {
        name: pa.nulls(count, field.type) if name not in columns else None
        for name, field in zip(FEEDBACK_SCHEMA.names, FEEDBACK_SCHEMA, strict=True)
    }
    for name, values in columns.items():
        kind = FEEDBACK_SCHEMA.field(name).type
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        table[name] = pa.array(values).cast(plain).cast(kind)
    return pa.table(table)


def scalar_analysis(spread=2.0, error=1.0, assumed=1.0):
    """Optimal analysis of one value, many times over."""
    rng = np.random.default_rng(5)
    back, noise = rng.normal(0, spread, COUNT), rng.normal(0, error, COUNT)
    innovation = noise - back
    gain = spread**2 / (spread**2 + error**2)
    return {
        "report_type": ["synop"] * COUNT,
        "variable": ["mean_sea_level_pressure"] * COUNT,
        "vertical_kind": ["surface"] * COUNT,
        "obs_error": np.full(COUNT, assumed),
        "background_departure": innovation,
        "analysis_departure": (1 - gain) * innovation,
        "background_spread": np.full(COUNT, spread),
    }


def test_an_optimal_analysis_gives_back_its_errors():
    (found,) = departure_statistics(feedback(**scalar_analysis()))
    assert (found.report_type, found.layer, found.count) == ("synop", "surface", COUNT)
    assert found.chi2 == pytest.approx(1.0, abs=0.02)
    assert found.rms_background == pytest.approx(np.sqrt(5), abs=0.02)
    assert found.desroziers_error == pytest.approx(1.0, abs=0.01)
    assert found.desroziers_spread == pytest.approx(2.0, abs=0.02)
    # O-A of an optimal analysis has variance R (HBH + R)^-1 R.
    assert found.rms_analysis == pytest.approx(1 / np.sqrt(5), abs=0.01)
    assert abs(found.bias_background) < 0.03


def test_errors_assumed_too_small_show_in_chi2():
    (found,) = departure_statistics(feedback(**scalar_analysis(spread=2.0, error=3.0, assumed=1.0)))
    assert found.chi2 == pytest.approx(13 / 5, rel=0.02)


def test_groups_by_layer_and_leaves_out_rejected_rows():
    rows = feedback(
        report_type=["temp"] * 4,
        variable=["temperature"] * 4,
        vertical_kind=["pressure"] * 4,
        vertical=[50_000.0, 55_000.0, 85_000.0, 85_000.0],
        obs_error=[1.0] * 4,
        background_departure=[1.0, -1.0, 2.0, 99.0],
        rejected_by=[None, None, None, "buddy"],
    )
    found = departure_statistics(rows)
    assert [(s.layer, s.count) for s in found] == [("400-600 hPa", 2), ("800-1100 hPa", 1)]
    assert found[0].rms_background == pytest.approx(1.0)
    assert found[1].bias_background == pytest.approx(2.0)
    assert found[0].rms_analysis is None
    assert found[0].desroziers_error is None
