"""Errors against hand-derived numbers and the published tables."""

import numpy as np
import pytest

from model.domain.errors import ConfigurationError
from tests.worker.tables import make_table
from worker.observations.columns import float_column
from worker.observations.errors import assign_errors, load_errors


def sonde(pressure, variable="temperature", **columns):
    return make_table(
        len(pressure),
        report_type="temp",
        vertical_kind="pressure",
        vertical=np.asarray(pressure, dtype=float),
        variable=variable,
        **columns,
    )


def test_values_of_the_published_radiosonde_table():
    table = assign_errors(sonde([100000.0, 85000.0, 50000.0, 20000.0, 1000.0, 100.0]))
    np.testing.assert_allclose(
        float_column(table, "obs_error"), [1.2, 0.8, 0.8, 1.2, 1.5, 1.5], rtol=1e-6
    )


def test_interpolation_is_linear_in_the_logarithm_of_pressure():
    # Halfway between 300 (0.9 K) and 250 hPa (1.2 K) in ln p lies their geometric mean.
    table = assign_errors(sonde([np.sqrt(300.0 * 250.0) * 100.0]))
    np.testing.assert_allclose(float_column(table, "obs_error"), [1.05], rtol=1e-6)


def test_heights_use_the_standard_atmosphere():
    # ICAO: 11 000 m is 226.32 hPa, between 250 (3.2 m/s) and 200 hPa (2.7 m/s).
    table = make_table(
        1,
        report_type="pilot",
        vertical_kind="height",
        vertical=11000.0,
        variable="u_component_of_wind",
        obs_value=np.array([10.0]),
    )
    share = np.log(250.0 / 226.32) / np.log(250.0 / 200.0)
    expected = 3.2 + share * (2.7 - 3.2)
    np.testing.assert_allclose(
        float_column(assign_errors(table), "obs_error"), [expected], rtol=1e-4
    )


def test_humidity_error_is_a_bounded_share_of_the_value():
    table = sonde([90000.0] * 3, "specific_humidity", obs_value=np.array([0.01, 1e-9, 0.9]))
    np.testing.assert_allclose(
        float_column(assign_errors(table), "obs_error"), [0.002, 1e-6, 5e-3], rtol=1e-6
    )


def test_the_providers_error_is_kept():
    table = make_table(3, obs_error=np.array([0.7, np.nan, -1.0]))
    np.testing.assert_allclose(
        float_column(assign_errors(table), "obs_error"), [0.7, 2.5, 2.5], rtol=1e-6
    )


def test_no_entry_is_passive_and_stays_in_the_table():
    table = assign_errors(make_table(2, variable=["total_precipitation", "2m_temperature"]))
    assert table["rejected_by"].to_pylist() == ["passive", None]
    assert table["qc_flag"].to_pylist() == [1, 0]
    assert table.num_rows == 2


def test_an_earlier_rejection_is_not_overwritten():
    table = make_table(1, variable="total_precipitation", rejected_by="decode")
    assert assign_errors(table)["rejected_by"].to_pylist() == ["decode"]


def test_overrides_apply_in_order(tmp_path):
    file = tmp_path / "site.yaml"
    file.write_text(
        "entries:\n  - {report_types: [synop], variable: 2m_temperature, error: 1.0, source: ours}\n"
    )
    errors = load_errors(file)
    assert float_column(assign_errors(make_table(1), errors), "obs_error")[0] == 1.0
    upload = {"entries": [{"report_types": ["synop"], "variable": "2m_temperature", "error": 0.5}]}
    errors = load_errors(file, upload)
    assert float_column(assign_errors(make_table(1), errors), "obs_error")[0] == 0.5
    ships = make_table(1, report_type="ship")
    assert float_column(assign_errors(ships, errors), "obs_error")[0] == 2.5


def test_representativeness_adds_in_quadrature():
    errors = load_errors(
        {"representativeness": {"factor": 2.0, "addend": {"2m_temperature": 12.0}}}
    )
    assert float_column(assign_errors(make_table(1), errors), "obs_error")[0] == 13.0  # 5, 12, 13


@pytest.mark.parametrize(
    "override",
    [
        {"entries": [{"report_types": ["synop"], "variable": "no_such", "error": 1.0}]},
        {"entries": [{"report_types": ["no_such"], "variable": "2m_temperature", "error": 1.0}]},
        {"entries": [{"report_types": ["synop"], "variable": "2m_temperature", "error": 0.0}]},
        {
            "entries": [
                {
                    "report_types": ["temp"],
                    "variable": "temperature",
                    "error": [1, 2],
                    "pressure": [1],
                }
            ]
        },
        {"something": 1},
    ],
)
def test_faulty_overrides_are_named(override):
    with pytest.raises(ConfigurationError, match="Observation errors in override"):
        load_errors(override)


def test_every_entry_names_its_source():
    assert all(e.source and e.source != "override" for e in load_errors().entries)


def test_empty_table():
    assert assign_errors(make_table(0)).num_rows == 0
