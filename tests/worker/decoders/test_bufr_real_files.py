"""Every real file ends in rows or in a named reason."""

import pyarrow.compute as pc
import pytest

from tests.worker.decoders.accounting import assert_accounted
from worker.observations.decoders.decode import decode_many_limited
from worker.sandbox import Limits


@pytest.fixture(scope="module")
def outcomes(realdata_dir):
    files = sorted(p for p in (realdata_dir / "bufr").rglob("*") if p.is_file())
    limits = Limits(cpu_seconds=60, wall_seconds=120)
    return dict(decode_many_limited(files, limits=limits))


def test_every_file_gives_rows_or_a_reason(outcomes):
    assert len(outcomes) > 200
    for path, decoded in outcomes.items():
        assert_accounted(decoded, path.name)


def test_no_message_is_lost(outcomes):
    """Whole messages set aside, plus those unpacked, are all there were."""
    for path, decoded in outcomes.items():
        report = decoded.report
        if report.format != "bufr" or sum(report.rejected.values()) > 100:
            continue
        whole = [q for q in report.quarantined if q.report is None]
        silent = {q.offset for q in report.quarantined if q.report is not None}
        assert report.messages <= report.decoded + len(whole) + len(silent), path.name


def test_values_of_every_variable_are_in_its_units(outcomes):
    """Bounds no real report exceeds: a slip of units or a missing value leaves them at once."""
    bounds = {
        "2m_temperature": (180, 340),
        "2m_dewpoint_temperature": (180, 340),
        "2m_relative_humidity": (0, 1.1),
        "temperature": (150, 340),
        "brightness_temperature": (120, 345),
        "specific_humidity": (0, 0.1),
        "relative_humidity": (0, 1.5),
        "surface_pressure": (4e4, 1.1e5),
        "mean_sea_level_pressure": (8.5e4, 1.1e5),
        "sea_surface_temperature": (268, 320),
        "total_precipitation": (0, 0.5),
        "geopotential": (-1e4, 5e5),
        "total_column_water_vapour": (0, 100),
        "10m_u_component_of_wind": (-100, 100),
        "10m_v_component_of_wind": (-100, 100),
        "10m_wind_speed": (0, 100),
        "u_component_of_wind": (-200, 200),
        "v_component_of_wind": (-200, 200),
    }
    # Written with such values by their project, to test its own range checks.
    odd = {"dballe__dbapi-emptymsg.bufr", "dballe__crex-has-few-digits.bufr",
           "dballe__interpreted-range.bufr"}  # fmt: skip
    outside = {}
    for path, decoded in outcomes.items():
        if path.name in odd:
            continue
        given = pc.is_finite(decoded.table["obs_value"])  # a withdrawal has no value
        kept = decoded.table.filter(pc.and_(pc.is_null(decoded.table["rejected_by"]), given))
        table = kept.select(["variable", "obs_value"]).to_pydict()
        for variable, value in zip(table["variable"], table["obs_value"], strict=True):
            low, high = bounds[variable]
            if not low <= value <= high:
                outside.setdefault((path.name, variable), []).append(value)
    assert not outside


def test_networks_found(outcomes):
    """Numbers of reports declared in the headers of the files, read with another tool."""
    expected = {
        # name: (messages, report type)
        "pdbufr__perf_aircraft.bufr": (6_698, "aircraft"),
        "pdbufr__temp.bufr": (420, "temp"),
        "pdbufr__obs_3day.bufr": (50, "synop"),
        "pybufrkit__cmwi_87.bufr": (46, "amv"),
        "pybufrkit__pilo_91.bufr": (17, "pilot"),
        "libecbufr__iobx12_kars_131338.bufr": (1, "drifter"),
        "e-soh__SurfaceSee_subset_12.buf": (1, "ship"),
        "pybufr-ecmwf__ascat_l2_example.bufr": (1, "scatterometer"),
        "wreport__GPSR_work.bufr": (1, "gnss"),
        "dballe__temp-windprof1.bufr": (1, "profiler"),
    }
    by_name = {path.name: decoded.report for path, decoded in outcomes.items()}
    for name, (messages, report_type) in expected.items():
        assert by_name[name].messages == messages, name
        assert set(by_name[name].rows_by_report_type) == {report_type}, name


def test_messages_that_need_local_tables_are_named(outcomes):
    local = [d.report for p, d in outcomes.items() if p.parent.name == "needs_local_tables"]
    named = [r for r in local if set(r.rejected) & {"needs_local_tables", "undecodable"}]
    assert len(named) >= 0.9 * len(local)
    assert not any(r.rows for r in named if not r.decoded)


def test_text_and_crex_give_rows_or_a_reason_a_person_understands(realdata_dir, monkeypatch):
    monkeypatch.setenv("APPA_STATIONS", str(realdata_dir / "stations/wis2box__romania.csv"))
    files = sorted((realdata_dir / "crex").glob("*")) + sorted(
        (realdata_dir / "gts_text").glob("*")
    )
    with_rows = 0
    for path, decoded in decode_many_limited(files):
        report = decoded.report
        assert report.format in ("crex", "text"), path
        assert report.rows or report.rejected, path
        assert all(q.detail for q in report.quarantined), path
        with_rows += bool(report.rows)
    assert with_rows >= 22


def test_messages_without_a_variable_of_ours_say_what_they_hold(outcomes):
    told = {
        "pdbufr__wave_uncompressed.bufr": "waves alone",
        "pybufrkit__wavb_134.bufr": "waves alone",
        "wreport__ascat1.bufr": "no wind was selected",
        "pybufrkit__ahws_139.bufr": "no wind was selected",
        "pybufrkit__crit_202.bufr": "radiances",
        "pybufrkit__smin_49.bufr": "no brightness temperature of a channel of hirs",
        "pybufrkit__prepbufr.bufr": "NCEP's 'GFSCLS1'",
    }
    by_name = {path.name: decoded.report for path, decoded in outcomes.items()}
    for name, words in told.items():
        assert words in by_name[name].quarantined[0].detail, name
