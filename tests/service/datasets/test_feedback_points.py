"""The feedback of an analysis over HTTP: columns and rows against the table that was published."""

import json
from pathlib import Path

import departures
import httpx
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from gateway_process import GatewayProcess
from published import Wanted, publish_result

from model.domain.observations import QC_FLAGS


@pytest.fixture(scope="module")
def table(gateway: GatewayProcess, tmp_path_factory) -> pa.Table:
    folder: Path = tmp_path_factory.mktemp("points")
    table = departures.few()
    publish_result(gateway.layout, "fp-an", folder / "fp-an", Wanted(feedback=table))
    publish_result(gateway.layout, "fp-fc", folder / "fp-fc", Wanted(kind="forecast"))
    return table


def points(http: httpx.Client, **query: object) -> tuple[dict, dict[str, np.ndarray]]:
    """The metadata and the columns, names in place of numbers."""
    answer = http.get("/v1/analyses/fp-an/feedback", params=query)
    assert answer.status_code == 200, answer.text
    body = answer.content
    start = 4 + int.from_bytes(body[:4], "little")
    info, columns = json.loads(body[4:start]), {}
    for column in info["columns"]:
        kind = np.dtype(column["type"]).newbyteorder("<")
        assert (start + column["offset"]) % kind.itemsize == 0  # as typed arrays need it
        values = np.frombuffer(body, kind, info["points"], start + column["offset"])
        columns[column["name"]] = np.array(column["names"])[values] if column["names"] else values
    end = info["columns"][-1]
    assert len(body) == start + end["offset"] + info["points"] * np.dtype(end["type"]).itemsize
    return info, columns


def test_stations_are_chosen_by_their_ids(http, table) -> None:
    _, columns = points(http, stations="S1,W9")
    assert columns["row"].tolist() == [0, 2, 3, 4, 6]
    rows = http.get("/v1/analyses/fp-an/feedback", params={"f": "json", "stations": "S2"}).json()
    assert [(r["station_id"], r["outcome"]) for r in rows["rows"]] == [("S2", "background_check")]
    assert points(http, stations="nobody")[0]["matching"] == 0


def test_columns_are_those_of_the_table(http, table) -> None:
    info, columns = points(http)
    assert (info["total"], info["matching"], info["points"]) == (7, 7, 7)
    np.testing.assert_array_equal(columns["row"], np.arange(7))
    for name in ("lon", "lat", "obs_error", "background_departure", "analysis_departure"):
        wanted = pc.fill_null(table[name].cast(pa.float64()), np.nan).to_numpy()
        np.testing.assert_allclose(columns[name], wanted, rtol=1e-6, err_msg=name)
    assert columns["network"].tolist() == table["report_type"].to_pylist()
    assert columns["variable"].tolist() == table["variable"].to_pylist()
    used = [name or "used" for name in table["rejected_by"].to_pylist()]
    assert columns["outcome"].tolist() == used
    assert columns["layer"].tolist() == [
        "surface", "surface", "800-1100 hPa", "250-400 hPa", "150-250 hPa", "surface", "surface",
    ]  # fmt: skip
    assert info["meanings"]["bounds"] == QC_FLAGS["bounds"].meaning
    assert info["units"]["2m_temperature"] == "K"


def test_layers_are_named_as_in_the_departure_statistics(http, table) -> None:
    from worker.results.verification.departures import layer_names

    _, columns = points(http)
    frame = table.select(["vertical_kind", "vertical"]).to_pandas()
    assert columns["layer"].tolist() == layer_names(frame).tolist()


@pytest.mark.parametrize(
    ("query", "rows"),
    [
        ({"variables": "2m_temperature"}, [0, 1, 5]),
        ({"networks": "temp,ship"}, [2, 3, 4, 5]),
        ({"layers": "surface"}, [0, 1, 5, 6]),
        ({"layers": "250-400 hPa"}, [3]),
        ({"outcome": "used"}, [0, 2, 3, 6]),
        ({"outcome": "rejected"}, [1, 4, 5]),
        ({"rejected_by": "withheld"}, [4]),
        ({"variables": "2m_temperature", "outcome": "rejected", "networks": "synop"}, [1]),
        ({"rows": "6,0,99"}, [0, 6]),
        ({"variables": "10m_u_component_of_wind"}, []),
    ],
)
def test_filters(http, table, query, rows) -> None:
    info, columns = points(http, **query)
    assert columns["row"].tolist() == rows
    assert info["matching"] == len(rows)
    assert sum(count["count"] for count in info["counts"]) == 7  # of all, whatever is asked


def test_counts_are_by_network_variable_layer_and_outcome(http, table) -> None:
    info, _ = points(http, networks="ship")
    counts = {
        (c["network"], c["variable"], c["layer"], c["outcome"]): c["count"] for c in info["counts"]
    }
    assert counts["synop", "2m_temperature", "surface", "used"] == 1
    assert counts["synop", "2m_temperature", "surface", "background_check"] == 1
    assert counts["temp", "temperature", "150-250 hPa", "withheld"] == 1
    assert len(counts) == 7


def test_fewer_points_are_spread_over_all(http, table) -> None:
    info, columns = points(http, limit=3)
    assert (info["matching"], info["points"]) == (7, 3)
    assert columns["row"].tolist() == [0, 3, 6]


def test_rows_hold_everything(http, table) -> None:
    answer = http.get("/v1/analyses/fp-an/feedback", params={"rows": "5,1", "f": "json"})
    first, second = answer.json()["rows"]
    assert (first["row"], first["station_id"], first["outcome"]) == (1, "S2", "background_check")
    assert first["meaning"] == QC_FLAGS["background_check"].meaning
    assert (first["obs_value"], first["obs_error"], first["units"]) == (279.0, 1.5, "K")
    assert (first["background_departure"], first["analysis_departure"]) == (-2.0, -0.75)
    assert first["hofx_background"] == 281.0
    assert first["time"] == "2025-03-20T11:50:00Z"
    assert (second["station_id"], second["background_departure"]) == ("<b>SHIP</b>", None)


def test_what_cannot_be_answered(http, table) -> None:
    def code(analysis: str, **query: object) -> tuple[int, str]:
        answer = http.get(f"/v1/analyses/{analysis}/feedback", params=query)
        return answer.status_code, answer.json()["code"]

    assert code("fp-fc") == (404, "not_found")
    assert code("fp-none") == (404, "not_found")
    assert code("fp-an", layers="moon")[1] == "unknown_name"
    assert code("fp-an", variables="colour")[1] == "unknown_name"
    assert code("fp-an", rows="-1")[1] == "invalid_input"
    assert code("fp-an", rows="x")[1] == "invalid_input"


def test_a_table_of_an_earlier_version_has_no_bias(http, gateway, table, tmp_path) -> None:
    new = ["obs_bias", "canonical_station", "station_alias", "scan_angle"]
    old = table.drop_columns(new)
    publish_result(gateway.layout, "fp-old", tmp_path / "fp-old", Wanted(feedback=old))
    answer = http.get("/v1/analyses/fp-old/feedback", params={"f": "json", "rows": "0"})
    row = answer.json()["rows"][0]
    assert (row["obs_bias"], row["scan_angle"]) == (None, None)
