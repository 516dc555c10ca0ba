"""Constraints of DAP 2 and the choice of chunks."""

import pytest

from model.domain.errors import InvalidInput
from service.data.library import PIECE_BYTES, chunk_plan
from service.data.opendap import parse_constraint


def test_a_constraint_names_variables_members_and_slices() -> None:
    whole, array, coordinate = parse_constraint("time,t2m.t2m[0][2:2:9],t2m.latitude[0:4]")
    assert (whole.variable, whole.member, whole.slices) == ("time", None, ())
    assert (array.variable, array.member) == ("t2m", "t2m")
    assert array.slices == (slice(0, 1, 1), slice(2, 10, 2))  # DAP's stop is part of it
    assert (coordinate.member, coordinate.slices) == ("latitude", (slice(0, 5, 1),))
    assert parse_constraint("") == []


@pytest.mark.parametrize("text", ["t[", "t[-1]", "t[a]", "t[3:2]", "t[0:0:4]", "t&time>1", "a.b.c"])
def test_what_is_no_constraint_is_refused(text: str) -> None:
    with pytest.raises(InvalidInput):
        parse_constraint(text)


def test_small_grids_are_few_pieces_and_large_ones_a_field_each() -> None:
    small = chunk_plan(
        {"latitude": 48, "longitude": 96, "air_pressure": 8, "realization": 8, "time": 1}
    )
    assert small == {
        "latitude": 48,
        "longitude": 96,
        "air_pressure": 8,
        "realization": 8,
        "time": 1,
    }
    large = chunk_plan(
        {"latitude": 721, "longitude": 1440, "air_pressure": 13, "realization": 8, "bnds": 2}
    )
    assert large == {"latitude": 721, "longitude": 1440, "air_pressure": 1, "realization": 1}
    assert 4 * 721 * 1440 <= PIECE_BYTES
