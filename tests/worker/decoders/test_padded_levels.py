"""Ascents with different numbers of levels are decoded together: each keeps its own levels."""

from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pyarrow.compute as pc
from bufr_messages import decode

from lab.encoders.bufr import encode_bufr
from tests.worker.tables import make_table
from worker.observations.decoders.base import DecodeContext, MessageLimits
from worker.observations.decoders.bufr.template import Template
from worker.observations.decoders.decode import decode_file

LEVELS = (1, 2, 3, 5, 8, 9, 16, 17, 33)


def ascents():
    """Temperatures 300, 299, … K from 1000 hPa up, by station: as many as its number says."""
    tables = []
    for number, levels in enumerate(LEVELS):
        tables.append(
            make_table(
                levels, report_type="temp", station_id=f"10{levels:03d}", profile_id=number,
                vertical_kind="pressure", vertical=1e5 - 1000.0 * np.arange(levels),
                variable="temperature", obs_value=300.0 - np.arange(levels), lat=50.0, lon=10.0,
            )
        )  # fmt: skip
    return b"".join(encode_bufr(table, "temp") for table in tables)


def test_each_ascent_has_its_own_levels_and_values():
    # Twice, so that the layouts of the first are known and packed messages come in.
    decoded = decode(ascents() + ascents())
    assert decoded.report.messages == decoded.report.decoded == 2 * len(LEVELS)
    assert decoded.table.num_rows == 2 * sum(LEVELS)
    assert not decoded.report.values_set_aside
    for number, levels in enumerate(LEVELS * 2):
        own = decoded.table.filter(pc.equal(decoded.table["profile_id"], number))
        assert set(own["station_id"].to_pylist()) == {f"10{levels:03d}"}
        np.testing.assert_allclose(own["obs_value"].to_numpy(), 300.0 - np.arange(levels))
        np.testing.assert_allclose(own["vertical"].to_numpy(), 1e5 - 1000.0 * np.arange(levels))


def test_positions_in_a_layout_with_more_levels():
    """Two replications: header, levels of two elements, shear of one, a quality word at the end."""
    template = Template((1_001, 102_000, 31_002, 7_004, 12_101, 101_000, 31_001, 11_061, 33_007))
    values = np.array([7.0, 3, 10, 11, 20, 21, 30, 31, 2, 50, 60, 99])
    layout = template.layout(values, MessageLimits())
    padding = template.padded(layout, MessageLimits())
    assert padding.layout.counts == (4, 2)
    wide = np.full(padding.layout.size, np.nan)
    wide[padding.positions] = values
    expected = [7, 3, 10, 11, 20, 21, 30, 31, np.nan, np.nan, 2, 50, 60, 99]
    np.testing.assert_array_equal(wide, expected)
    codes = [1_001, 31_002, *(7_004, 12_101) * 4, 31_001, 11_061, 11_061, 33_007]
    assert padding.layout.all_codes.tolist() == codes


def test_replications_in_replications_are_left_alone():
    template = Template((103_000, 31_001, 7_004, 101_000, 31_001, 12_101))
    layout = template.layout(np.array([3.0, 1, 1, 5, 2, 0, 3, 1, 6]), MessageLimits())
    assert template.padded(layout, MessageLimits()) is None


def test_real_ascents_are_as_those_decoded_one_by_one(realdata_dir, monkeypatch):
    path = realdata_dir / "bufr/upperair_sonde_wind/pdbufr__temp.bufr"
    context = DecodeContext("b", received_time=datetime(2026, 3, 1, tzinfo=UTC))
    together = decode_file(path, "bufr", context)
    monkeypatch.setattr(Template, "padded", lambda template, layout, limits: None)
    single = decode_file(path, "bufr", context)
    assert together.table.num_rows > 60_000
    pd.testing.assert_frame_equal(
        together.table.to_pandas(), single.table.to_pandas(), check_categorical=False
    )
    assert together.report == single.report
