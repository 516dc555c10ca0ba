"""Feedback files: each observation once with one flag, in all formats, read by other readers."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyodc
import pytest
import xarray as xr

from model.domain.errors import InvalidInput
from model.domain.observations import (
    FEEDBACK_SCHEMA,
    REPORT_TYPES,
    empty_table,
    validate_table,
)
from model.domain.variables import VARIABLES
from tests.worker.outputs.feedback_tables import make_feedback
from tests.worker.outputs.products import make_product
from tests.worker.tables import make_table
from worker.observations.columns import float_column
from worker.observations.decoders.base import DecodeContext
from worker.observations.decoders.decode import decode_file
from worker.observations.lexicons import IODA_NAMES, VARNO
from worker.results.outputs.feedback import checked_feedback, write, write_odb


@pytest.fixture
def product():
    return make_product(members=2, feedback=make_feedback())


def test_parquet_holds_the_table(product, tmp_path):
    [(path, role), _] = write(product, tmp_path)
    assert (path.name, role) == ("appa_obsfb_20250320T12Z_v1.parquet", "feedback")
    found = pq.read_table(path)
    assert found.num_rows == 41 + 5 * 12
    assert found.to_pylist() == product.feedback.to_pylist()
    assert b"checkpoint_sha256" in pq.read_schema(path).metadata[b"appa"]
    assert found.schema.field("obs_error").metadata[b"units"] == b"SI"


def test_ioda_has_every_observation_once_with_one_flag(product, tmp_path):
    path = write(product, tmp_path)[1][0]
    with xr.open_datatree(path, engine="netcdf4") as tree:
        flags = tree["EffectiveQC"].to_dataset().load()
        values, error = tree["ObsValue"].to_dataset().load(), tree["EffectiveError"].load()
        departure, hofx = tree["ombg"].load(), tree["hofx"].load()
        places = tree["MetaData"].to_dataset().load()
    # stations, one duplicate apart, and one location for both variables of a sonde's level
    assert flags.sizes["Location"] == 41 + 5 * 6 * 2
    assert sum(int(flags[name].notnull().sum()) for name in flags) == 101
    t2m = flags["airTemperatureAt2M"].values
    assert [(t2m == n).sum() for n in (0, 19, 30, 32)] == [37, 2, 1, 1]
    assert int(error["airTemperatureAt2M"].notnull().sum()) == 37
    known = values["airTemperature"].notnull().values
    np.testing.assert_allclose(
        departure["airTemperature"].values[known],
        (values["airTemperature"] - hofx["airTemperature"]).values[known],
    )
    assert set(np.unique(places["pressure"].values[known])) == {
        92500.0, 85000, 70000, 50000, 30000, 20000,
    }  # fmt: skip
    assert places["dateTime"].values[-1] == np.datetime64("2025-03-20T11:31:07")
    assert places["stationIdentification"].values[-1] == "0-20000-0-00004"
    networks = places["reportType"].attrs["flag_meanings"].split()
    assert networks[int(places["reportType"].values[-1])] == "temp"


def test_variables_at_one_place_share_a_location(tmp_path):
    table = make_feedback(stations=4, sondes=3)
    same = table.set_column(
        table.schema.get_field_index("batch_id"),
        FEEDBACK_SCHEMA.field("batch_id"),
        pa.array(["one"] * len(table)).dictionary_encode(),
    )
    same = same.set_column(
        same.schema.get_field_index("observation_id"),
        FEEDBACK_SCHEMA.field("observation_id"),
        pa.array(np.arange(len(table))),
    )
    path = write(make_product(members=2, feedback=same), tmp_path)[1][0]
    with xr.open_datatree(path, engine="netcdf4") as tree:
        values = tree["ObsValue"].to_dataset().load()
    assert values.sizes["Location"] == 5 + 3 * 6
    both = values["airTemperature"].notnull() & values["windEastward"].notnull()
    assert int(both.sum()) == 18


def test_odb_is_read_back_by_another_reader(product, tmp_path):
    [(path, role)] = write_odb(product, tmp_path)
    assert role == "feedback"
    with path.open("rb") as stream:
        frame = pyodc.read_odb(stream, single=True)
    assert len(frame) == 101
    t2m = frame[frame["varno@body"] == 39]
    assert t2m["datum_status@body"].value_counts().to_dict() == {1: 37, 4: 3, 2: 1}
    np.testing.assert_array_equal(
        frame["obsvalue@body"], float_column(product.feedback, "obs_value")
    )
    assert frame["date@hdr"].unique().tolist() == [20250320]
    assert frame["time@hdr"].unique().tolist() == [115000, 113107]
    assert frame["statid@hdr"].iloc[-1] == "0-20000-0-00004"


def test_outside_files_hold_values_with_their_bias_and_name_it(tmp_path):
    table = make_feedback(stations=4, sondes=1)
    bias = np.zeros(len(table))
    bias[-1] = 0.75
    column = pa.array(bias, pa.float64(), mask=bias == 0)
    i = table.schema.get_field_index("obs_bias")
    product = make_product(members=2, feedback=table.set_column(i, table.schema.field(i), column))
    measured = float_column(table, "obs_value") + bias
    [(path, _)] = write_odb(product, tmp_path)
    with path.open("rb") as stream:
        frame = pyodc.read_odb(stream, single=True)
    np.testing.assert_array_equal(frame["obsvalue@body"], measured)
    assert frame["biascorr@body"].iloc[-1] == 0.75
    departure = measured[-1] - 0.75 - frame["hofx_background@appa"].iloc[-1]
    assert frame["fg_depar@body"].iloc[-1] == pytest.approx(departure)
    path = write(product, tmp_path)[1][0]
    with xr.open_datatree(path, engine="netcdf4") as tree:
        values = tree["ObsValue"]["windEastward"].values
        biases = tree["ObsBias"]["windEastward"].values
    assert biases[np.isfinite(biases)].tolist() == [0.75]
    assert values[np.isfinite(biases)] == [pytest.approx(measured[-1])]


def test_every_variable_has_its_names_outside():
    assert set(IODA_NAMES) == set(VARIABLES) == set(VARNO)


def _every_variable() -> pa.Table:
    """Three rows of each variable, at each kind of vertical coordinate that it can have."""
    kinds = {"level": ["pressure", "height"], "layer": ["layer"], "channel": ["channel"]}
    rows = [
        (variable, kind)
        for variable in VARIABLES.values()
        for kind in (
            kinds["level"]
            if variable.kind == "atmospheric"
            else kinds.get(variable.vertical, [variable.vertical])
        )
        for _ in range(3)
    ]
    count = len(rows)
    kind = np.array([kind for _, kind in rows])
    vertical = np.select(
        [np.isin(kind, ["pressure", "layer"]), kind == "height", kind == "channel"],
        [85000.0, 1234.5, 7.0],
        np.nan,
    )
    table = make_table(
        count,
        report_type=[list(REPORT_TYPES)[i % len(REPORT_TYPES)] for i in range(count)],
        variable=[variable.id for variable, _ in rows],
        vertical_kind=kind.tolist(),
        vertical=vertical,
        vertical_top=np.where(kind == "layer", 50000.0, np.nan),
        scan_angle=np.where(kind == "channel", -12.5, np.nan),
        obs_value=np.arange(count) + 0.1,
        obs_error=np.full(count, 0.5),
    )
    names = [n for n in FEEDBACK_SCHEMA.names if n not in table.column_names]
    for name in names:
        field = FEEDBACK_SCHEMA.field(name)
        table = table.append_column(field, pa.nulls(count, field.type))
    return validate_table(table, FEEDBACK_SCHEMA)


@pytest.mark.parametrize("form", ["ioda", "odb"])
@pytest.mark.parametrize("make", [_every_variable, make_feedback])
def test_our_own_feedback_is_decoded_whole(tmp_path, form, make):
    product = make_product(members=2, feedback=make())
    [(path, _)] = write(product, tmp_path)[1:] if form == "ioda" else write_odb(product, tmp_path)
    options = {"ignore_status": True} if form == "odb" else {}
    decoded = decode_file(path, context=DecodeContext(options=options))
    assert decoded.report.rejected == {}
    columns = (
        "report_type", "station_id", "lat", "lon", "elevation", "time", "vertical_kind",
        "vertical", "vertical_top", "scan_angle", "variable", "obs_value", "obs_error",
    )  # fmt: skip

    def rows(table: pa.Table) -> list[tuple]:
        return sorted((tuple(row.values()) for row in table.select(columns).to_pylist()), key=repr)

    assert rows(decoded.table) == rows(product.feedback)


def test_an_empty_window_is_written(tmp_path):
    product = make_product(members=2, feedback=empty_table(FEEDBACK_SCHEMA))
    files = [path for path, _ in write(product, tmp_path)]
    assert pq.read_table(files[0]).num_rows == 0
    with xr.open_datatree(files[1], engine="netcdf4") as tree:
        assert tree.sizes["Location"] == 0
    assert write_odb(product, tmp_path) == []


def test_a_forecast_has_no_feedback(tmp_path):
    assert write(make_product(kind="forecast", members=2), tmp_path) == []


def test_a_flag_that_is_not_the_checks_is_refused():
    table = make_feedback()
    index = table.schema.get_field_index("qc_flag")
    flags = float_column(table, "qc_flag").astype(np.uint8)
    flags[1] = 12
    wrong = table.set_column(index, FEEDBACK_SCHEMA.field("qc_flag"), pa.array(flags))
    with pytest.raises(InvalidInput, match="flag 19 .* got 12 in row 1"):
        checked_feedback(wrong)


def test_an_observation_that_comes_twice_is_refused():
    table = make_feedback()
    with pytest.raises(InvalidInput, match="1 of 102 rows"):
        checked_feedback(pa.concat_tables([table, table.slice(0, 1)]))


@pytest.mark.parametrize("fill", [9.969209968386869e36, -9.969209968386869e36, np.inf])
def test_a_value_that_is_a_fill_value_costs_no_job(product, tmp_path, fill):
    """NetCDF fills masked floats with 9.969209968386869e36; converted files hold it as a value."""
    table = product.feedback
    values = float_column(table, "obs_value").copy()
    values[0] = fill
    place = table.schema.get_field_index("obs_value")
    table = table.set_column(place, table.schema.field(place), pa.array(values))
    written = write(make_product(members=2, feedback=table), tmp_path)
    assert [role for _, role in written] == ["feedback", "feedback"]
    assert pq.read_table(written[0][0])["obs_value"][0].as_py() == fill
