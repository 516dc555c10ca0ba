"""EDR answers are bounded: counted by hand from the shapes, refused before anything is read."""

import dask.array as da
import httpx
import numpy as np
import published
import pytest
import xarray as xr
import xpublish_edr.plugin as upstream
from gateway_process import StartGateway

import service.data.application  # noqa: F401  (bounds the plugin)
from service.data.library import AnswerTooLarge, check_answer, check_points

ROWS, COLUMNS = published.GRID.shape
FIELD = ROWS * COLUMNS
T2M = 3 * FIELD  # members
T = 2 * T2M  # levels


def never_read(*_: object) -> np.ndarray:
    raise AssertionError("the values were read")


def fields(*shape: int) -> xr.DataArray:
    dims = ("realization", "latitude", "longitude")
    lazy = da.from_delayed(da.core.delayed(never_read)(), shape, dtype="f4")
    return xr.DataArray(
        lazy, dims=dims, coords={d: np.arange(n) for d, n in zip(dims, shape, strict=True)}
    )


def test_a_global_cube_is_refused_without_reading_it() -> None:
    whole = xr.Dataset({"t": fields(10, 721, 1440), "u": fields(10, 721, 1440)})
    for write in (upstream.to_cf_covjson, *upstream.output_formats().values()):
        with pytest.raises(AnswerTooLarge) as refused:
            write(whole)
        assert refused.value.context["values"] == 2 * 10 * 721 * 1440
        assert refused.value.context["limit"] == 2_000_000


def test_tables_repeat_each_variable_over_all_dimensions() -> None:
    mixed = xr.Dataset({"t": fields(4, 700, 700), "flat": fields(4, 700, 700)[0]})
    with pytest.raises(AnswerTooLarge) as refused:
        check_answer(mixed, "csv")
    assert refused.value.context["values"] == 2 * 4 * 700 * 700
    with pytest.raises(AnswerTooLarge) as refused:
        check_answer(mixed)
    assert refused.value.context["values"] == 5 * 700 * 700
    check_answer(mixed[["flat"]])


def test_an_area_is_counted_by_its_cells() -> None:
    wide = xr.Dataset({"t": fields(5, 400, 400), "flat": fields(5, 400, 400)[0]})
    check_points(wide, 2_000_000 // 6, {"latitude", "longitude"})
    with pytest.raises(AnswerTooLarge) as refused:
        check_points(wide, 2_000_000 // 6 + 1, {"latitude", "longitude"})
    assert refused.value.context["sizes"] == {"realization": 5, "points": 333_334}


def test_over_http(start_gateway: StartGateway, tmp_path) -> None:
    gateway = start_gateway(APPA_EDR_MAX_VALUES=str(T))
    published.publish(gateway.layout, "an-data", tmp_path)
    world = "POLYGON((-1 -91,359 -91,359 91,-1 91,-1 -91))"
    inner = "POLYGON((-20 -20,20 -20,20 20,-20 20,-20 -20))"

    def ask(query: str, names: str | None, **more: str) -> httpx.Response:
        shape = {"bbox": "-1,-91,359,91"} if query == "cube" else {}
        named = {"parameter-name": names} if names else {}
        address = f"{gateway.url}/v1/data/an-data/edr/{query}"
        # The first request imports what reads data sets.
        return httpx.get(address, params={**shape, **named, **more}, timeout=60)

    def values(answer: httpx.Response) -> int:
        problem = answer.json()
        assert (answer.status_code, problem["code"]) == (413, "answer_too_large"), answer.text
        assert str(T) in problem["detail"]
        assert "parameter-name" in problem["detail"]
        assert problem["context"]["limit"] == T
        return problem["context"]["values"]

    found = ask("cube", "t")
    assert (found.status_code, len(found.json()["ranges"]["t"]["values"])) == (200, T)
    assert values(ask("cube", "t,t2m")) == T + T2M
    assert values(ask("cube", "t,t2m", f="csv")) == 2 * T
    assert values(ask("cube", None)) > 10 * T
    assert ask("cube", "t,t2m", z="50000").status_code == 200
    assert ask("cube", "t,t2m", z="50000", f="nc").status_code == 200
    assert ask("area", "t", coords=world).status_code == 200
    assert values(ask("area", "t,t2m", coords=world)) == T + T2M
    assert ask("area", "t,t2m", coords=inner).status_code == 200
    assert ask("position", "t,t2m", coords="POINT(7 47)").status_code == 200
