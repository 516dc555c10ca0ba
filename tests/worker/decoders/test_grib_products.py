"""Fields that are no states are refused by name, in GRIB 1 and 2; states are taken."""

import numpy as np
import pytest

from tests.worker.decoders.grib_messages import LAT, LON, message
from tests.worker.decoders.test_grib import decode

FIELD = 250.0 + LAT[:, None] / 10.0 + 0.0 * LON[None, :]
LOCAL = {"setLocalDefinition": 1, "localDefinitionNumber": 1}


def refusal(tmp_path, *messages):
    """What the only message is called; empty if it gave rows."""
    decoded = decode(tmp_path, *messages)
    assert bool(len(decoded.table)) != bool(decoded.report.rejected)
    return " ".join(q.detail for q in decoded.report.quarantined)


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"productDefinitionTemplateNumber": 2, "derivedForecast": 0}, "ensemble mean"),
        ({"productDefinitionTemplateNumber": 2, "derivedForecast": 2}, "standard deviation"),
        ({"productDefinitionTemplateNumber": 2, "derivedForecast": 4}, "ensemble spread"),
        ({"productDefinitionTemplateNumber": 2, "derivedForecast": 9}, "ensemble maximum"),
        ({"productDefinitionTemplateNumber": 3}, "of a cluster"),
        ({"productDefinitionTemplateNumber": 4}, "of a cluster"),
        ({"productDefinitionTemplateNumber": 5}, "probability"),
        ({"productDefinitionTemplateNumber": 6, "percentileValue": 50}, "percentile 50"),
        ({"productDefinitionTemplateNumber": 7}, "error of an analysis or forecast"),
        ({"productDefinitionTemplateNumber": 9}, "probability"),
        ({"productDefinitionTemplateNumber": 10}, "percentile"),
        ({"productDefinitionTemplateNumber": 12, "derivedForecast": 4}, "ensemble spread"),
        ({"productDefinitionTemplateNumber": 15}, "statistic over an area"),
        ({"productDefinitionTemplateNumber": 51}, "categories"),
        ({"productDefinitionTemplateNumber": 70}, "post-processed"),
        ({"productDefinitionTemplateNumber": 86}, "quantile"),
        ({"productDefinitionTemplateNumber": 40}, "template 4.40"),
        ({"productDefinitionTemplateNumber": 8, "typeOfStatisticalProcessing": 0}, "average"),
        ({"productDefinitionTemplateNumber": 8, "typeOfStatisticalProcessing": 2}, "maximum"),
        ({"productDefinitionTemplateNumber": 8, "typeOfStatisticalProcessing": 6}, "deviation"),
        ({"productDefinitionTemplateNumber": 8, "typeOfStatisticalProcessing": 255}, "unstated"),
        ({"typeOfGeneratingProcess": 7}, "analysis error"),
        ({"typeOfGeneratingProcess": 9}, "climatology"),
        ({"typeOfGeneratingProcess": 20}, "analysis increment"),
        ({"typeOfGeneratingProcess": 22}, "generating process 22"),
        ({"typeOfProcessedData": 8}, "event probability"),
        ({"centre": "kwbc", "typeOfGeneratingProcess": 193}, "probability-matched mean"),
        (
            {"centre": "edzw", "typeOfGeneratingProcess": 201},
            "difference of analysis and first guess",
        ),
        (
            {"centre": "edzw", "typeOfGeneratingProcess": 207},
            "analysis increment filtered in time",
        ),
        (
            {"centre": "egrr", "typeOfGeneratingProcess": 201},
            "generating process 201 of centre 'egrr'",
        ),
        ({**LOCAL, "centre": "ecmf", "dataType": "es"}, "ensemble standard deviation"),
        ({**LOCAL, "centre": "ecmf", "stream": "moda"}, "monthly mean"),
        ({"productDefinitionTemplateNumber": 1, "perturbationNumber": 3}, "ensemble member 3"),
    ],
)
def test_grib2_products_are_refused_by_name(tmp_path, keys, name):
    assert name in refusal(tmp_path, message(FIELD, **keys))


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        *(
            ({**LOCAL, "dataType": kind}, name)
            for kind, name in {
                "es": "ensemble standard deviation", "em": "ensemble mean", "ep": "probability",
                "cm": "cluster mean", "cs": "cluster standard deviation", "cl": "climatology",
                "4i": "increment", "ea": "analysis error", "pb": "probability boundary",
            }.items()
        ),
        ({**LOCAL, "dataType": "pf", "stream": "enfo", "perturbationNumber": 7}, "member 7"),
        ({**LOCAL, "dataType": "an", "stream": "moda"}, "monthly mean"),
        ({"timeRangeIndicator": 2}, "time range 2"),
        ({"timeRangeIndicator": 3}, "average over time"),
        ({"timeRangeIndicator": 4}, "time range 4"),
        ({"timeRangeIndicator": 5}, "difference"),
        ({"timeRangeIndicator": 51}, "climatological mean"),
        ({"timeRangeIndicator": 113}, "average of several"),
        ({"timeRangeIndicator": 118}, "variance"),
        ({"timeRangeIndicator": 119}, "standard deviation in time"),
    ],
)  # fmt: skip
def test_grib1_products_are_refused_by_name(tmp_path, keys, name):
    assert name in refusal(tmp_path, message(FIELD, edition=1, **keys))


def ncep(kind, number, product, probability=0):
    """A GRIB 1 message with NCEP's extension of section 1 (Office Note 388), octets 41 to 46."""
    plain = message(FIELD, edition=1, setLocalDefinition=0, centre="kwbc")
    length = int.from_bytes(plain[8:11], "big")
    extension = bytes(12) + bytes([1, kind, number, product, 1]) + bytes([probability])
    section = (28 + 12 + 6 + 14).to_bytes(3, "big") + plain[11:36] + extension + bytes(14)
    whole = plain[:8] + section + plain[8 + length :]
    return whole[:4] + len(whole).to_bytes(3, "big") + whole[7:]


@pytest.mark.parametrize(
    ("octets", "name"),
    [
        ((5, 0, 2), "weighted ensemble mean"),
        ((5, 0, 11), "ensemble standard deviation"),
        ((5, 0, 1, 191), "probability"),
        ((4, 1, 1), "cluster"),
        ((3, 2, 1), "ensemble member 2"),
        ((1, 1, 1), ""),
    ],
)
def test_ensemble_products_of_ncep_in_grib1(tmp_path, octets, name):
    assert name in (found := refusal(tmp_path, ncep(*octets)))
    assert bool(found) == bool(name)


@pytest.mark.parametrize(
    "keys",
    [
        {},
        {"productDefinitionTemplateNumber": 1, "perturbationNumber": 0},
        {"productDefinitionTemplateNumber": 60, "perturbationNumber": 0},
        {"typeOfGeneratingProcess": 2, "stepRange": 6},
        {"typeOfGeneratingProcess": 13},
        {"typeOfGeneratingProcess": 255},
        {"centre": "edzw", "typeOfGeneratingProcess": 203},
        {"centre": "kwbc", "typeOfGeneratingProcess": 195},
        {**LOCAL, "centre": "ecmf", "dataType": "fc"},
        {"edition": 1, "timeRangeIndicator": 1},
        {"edition": 1, "timeRangeIndicator": 10},
        {"edition": 1, **LOCAL, "dataType": "4v"},
        {"edition": 1, **LOCAL, "dataType": "cf", "stream": "enfo"},
    ],
)
def test_states_are_taken(tmp_path, keys):
    assert refusal(tmp_path, message(FIELD, **keys)) == ""


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ({"stepRange": "0-1"}, ""),
        ({"stepRange": "0-1", "indicatorOfUnitForTimeRange": 0, "lengthOfTimeRange": 60}, ""),
        ({"stepRange": "0-1", "indicatorOfUnitForTimeRange": 2}, "over 24 h"),
        ({"stepRange": "0-1", "indicatorOfUnitForTimeRange": 0}, "over 0.0166667 h"),
        ({"stepRange": "0-1", "typeOfStatisticalProcessing": 0}, "average"),
        ({"productDefinitionTemplateNumber": 0}, "on surface"),
        ({"edition": 1, "timeRangeIndicator": 4, "P1": 5, "P2": 6}, ""),
        ({"edition": 1, "timeRangeIndicator": 4, "P1": 0, "P2": 6}, "over 6 h"),
        ({"edition": 1, "timeRangeIndicator": 3, "P1": 5, "P2": 6}, "average"),
    ],
)
def test_precipitation_needs_a_stated_hour(tmp_path, keys, name):
    rain = message(np.full(FIELD.shape, 1.0), short="tp", kind="surface", **keys)
    assert name in (found := refusal(tmp_path, rain))
    assert bool(found) == bool(name)


@pytest.mark.parametrize(
    ("unit", "step", "label", "clock"),
    [(0, 90, "step 1.5 h", "13:30:00"), (13, 900, "step 0.25 h", "12:15:00"),
     (13, 30, "step 0.00833333 h", "12:00:30"), (10, 2, "step 6 h", "18:00:00")],
)  # fmt: skip
def test_steps_in_other_units_than_hours(tmp_path, unit, step, label, clock):
    short = message(FIELD, indicatorOfUnitOfTimeRange=unit, forecastTime=step)
    first = decode(tmp_path, short).table.slice(0, 1).to_pylist()[0]
    assert first["platform"] == label
    assert f"{first['time']:%H:%M:%S}" == clock
