"""Choice of chunks."""

from service.data.library import PIECE_BYTES, chunk_plan


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
    assert PIECE_BYTES >= 4 * 721 * 1440
