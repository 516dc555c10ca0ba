"""Errors against hand-derived numbers and the published tables."""

import numpy as np
import pytest

from model.domain.errors import ConfigurationError
from tests.worker.tables import make_table
from worker.observations.columns import float_column
from worker.observations.decoders.bufr.radiances import SOUNDERS
from worker.observations.errors import assign_errors, exchange_errors, load_errors


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


def test_errors_that_no_sensor_has_are_those_of_the_table():
    """1e-30 K would weigh more than all other observations together; 9.97e36 fills netCDF files."""
    given = np.array([0.1, 30.0, 1e-30, 1e-4, 9.96921e36, 1e20, 0.0, -999.0])
    table = assign_errors(sonde([85000.0] * 8, obs_error=given))
    expected = [0.1, 30.0, 0.8, 0.8, 0.8, 0.8, 0.8, 0.8]
    np.testing.assert_allclose(float_column(table, "obs_error"), expected, rtol=1e-6)
    unknown = assign_errors(sonde([85000.0] * 2, "total_precipitation", obs_error=[1e-30, 1e-3]))
    assert unknown["rejected_by"].to_pylist() == ["passive", None]


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
        {
            "entries": [
                {
                    "report_types": ["satellite"],
                    "variable": "brightness_temperature",
                    "error": [1, 2],
                    "channels": [1, 2],
                    "pressure": [1, 2],
                }
            ]
        },
        {"something": 1},
    ],
)
def test_faulty_overrides_are_named(override):
    with pytest.raises(ConfigurationError, match="Observation errors in override"):
        load_errors(override)


def radiances(sensors, channels, **columns):
    return make_table(
        len(channels), report_type="satellite", platform=sensors, vertical_kind="channel",
        vertical=np.array(channels, float), variable="brightness_temperature",
        obs_value=np.full(len(channels), 240.0), **columns,
    )  # fmt: skip


def test_errors_of_radiances_by_sensor_and_channel():
    """Errors that NCEP used in January 2024, for the same channel number of other sensors as well."""
    table = assign_errors(
        radiances(
            ["amsu-a", "amsu-a", "hirs", "mhs", "amsu-b", "atms", "atms", "msu", "hirs", "iasi"],
            [5, 8, 5, 5, 3, 5, 22, 3, 20, 5],
        )
    )
    np.testing.assert_allclose(
        float_column(table, "obs_error"),
        [0.3, 0.25, 0.36, 2.0, 2.5, 0.55, 3.0, 0.23, np.nan, np.nan], rtol=1e-6,
    )  # fmt: skip
    assert table["rejected_by"].to_pylist() == [None] * 8 + ["passive"] * 2


def test_every_channel_of_every_sounder_but_visible_light_has_an_error():
    for name, sounder in SOUNDERS.items():
        channels = np.arange(1, sounder.channels + 1)
        errors = float_column(assign_errors(radiances(name, channels)), "obs_error")
        missing = [20] if name == "hirs" else []
        assert channels[np.isnan(errors)].tolist() == missing, name


def test_an_entry_without_sensors_replaces_those_of_all_sensors():
    every = {"report_types": ["satellite"], "variable": "brightness_temperature", "error": 1.5}
    table = radiances(["amsu-a", "atms", "iasi"], [5, 5, 5])
    errors = load_errors({"entries": [every]})
    assert float_column(assign_errors(table, errors), "obs_error").tolist() == [1.5] * 3
    own = {**every, "error": 2.0, "sensors": ["atms"], "channels": [5]}
    errors = load_errors({"entries": [every, own]})
    assert float_column(assign_errors(table, errors), "obs_error").tolist() == [1.5, 2.0, 1.5]
    errors = load_errors({"entries": [own]})
    np.testing.assert_allclose(
        float_column(assign_errors(table, errors), "obs_error"), [0.3, 2.0, np.nan], rtol=1e-6
    )


def test_every_entry_names_its_source():
    assert all(e.source and e.source != "override" for e in load_errors().entries)


def test_empty_table():
    assert assign_errors(make_table(0)).num_rows == 0


def test_errors_are_exchanged_where_they_came_from_the_table():
    """Of 850 and 500 hPa 0.8 K; the sender of the third value knew its error, the fourth is unknown."""
    table = assign_errors(sonde([85000.0, 50000.0, 50000.0], obs_error=[np.nan, np.nan, 0.5]))
    pilots = assign_errors(make_table(1, variable="total_precipitation"))
    entry = {"report_types": ["temp"], "variable": "temperature", "error": 2.0}
    wanted = load_errors({"entries": [entry]})
    new = exchange_errors(table, load_errors(), wanted)
    np.testing.assert_allclose(float_column(new, "obs_error"), [2.0, 2.0, 0.5])
    assert np.isnan(float_column(exchange_errors(pilots, load_errors(), wanted), "obs_error")).all()
    back = exchange_errors(new, wanted, load_errors())
    np.testing.assert_allclose(float_column(back, "obs_error"), [0.8, 0.8, 0.5], rtol=1e-6)
