"""Checks on real reports: few are rejected, and known bad ones are."""

import pytest

from worker.observations.columns import float_column, is_one_of
from worker.observations.decoders.decode import decode_file
from worker.observations.errors import assign_errors
from worker.observations.qc.run import run_checks


def checked(path):
    return run_checks(assign_errors(decode_file(path).table), "pre")


def test_soundings_of_one_morning(realdata_dir):
    table, report = checked(realdata_dir / "bufr/upperair_sonde_wind/pdbufr__temp.bufr")
    assert report.rows > 60_000
    assert sum(report.rejected.values()) < 0.01 * report.rows
    # New Delhi, 2008-12-08, by hand: 271.35 K between 700 and 500 hPa make R T ln(p1/p2) / g =
    # 2672 gpm of air, but 3031 and 6200 gpm are reported; 283.8 K between 850 and 700 hPa make
    # 1612 gpm, but 1518 and 3031 gpm are reported (3130 with two digits swapped).
    delhi = table.filter(is_one_of(table, "station_id", ["42182"]))
    height = delhi.filter(is_one_of(delhi, "variable", ["geopotential"]))
    outcome = dict(
        zip(float_column(height, "vertical"), height["rejected_by"].to_pylist(), strict=True)
    )
    assert outcome[50000.0] == "profile"
    assert outcome[70000.0] == "profile"
    assert outcome[85000.0] is None


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("aircraft/pdbufr__perf_aircraft.bufr", 0.05),
        ("aircraft/wreport__mode-s.bufr", 0.02),
        ("surface_land/pdbufr__obs_3day.bufr", 0.05),
    ],
)
def test_most_reports_pass(realdata_dir, name, share):
    path = realdata_dir / "bufr" / name
    if not path.exists():
        pytest.skip(f"outside data absent: {name}")
    table, report = checked(path)
    ours = sum(n for check, n in report.rejected.items() if check != "duplicates")
    assert ours <= share * report.rows
