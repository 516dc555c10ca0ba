"""Distinguish states of the atmosphere from products derived from them, in GRIB 1 and 2.

Ensemble spread, probabilities, percentiles, errors, increments and climatologies are published
under the parameter of the state they are derived from. A field counts as a state only if every key
that describes the kind of product agrees: the product definition template, the type of generating
process and the labels of the centre in GRIB 2, the time range indicator and the centre's extension of
section 1 in GRIB 1. Codes that are not listed here are refused, because their meaning is unknown.

WMO Manual on Codes, volume I.2: FM 92 GRIB, tables 1.4, 4.0, 4.3, 4.6, 4.7, 4.9 and 4.10; FM 92-IX
GRIB 1, table 5; ECMWF's MARS types and streams; NCEP Office Note 388, extensions of the PDS.
"""

from collections.abc import Mapping
from typing import Any

import eccodes

__all__ = ["get", "not_a_state", "seconds"]


def get(handle: int, key: str, kind: type | None = None) -> Any:
    """Return a key's value, None if the message has none."""
    try:
        return eccodes.codes_get(handle, key, kind) if kind else eccodes.codes_get(handle, key)
    except eccodes.KeyValueNotFoundError:
        return None


def not_a_state(handle: int, *, accumulated: bool) -> str:
    """Return what a field is in place of an instantaneous state; empty if it is one.

    Arguments:
        handle: Handle of one field.
        accumulated: Whether the quantity is an accumulation, which must then be stated.
    """
    edition = get(handle, "edition", int)
    product = _grib1(handle) if edition == 1 else _grib2(handle)
    return product or _labelled(handle) or _member(handle) or _processed(handle, accumulated)


def seconds(handle: int, key: str) -> float | None:
    """Return a step (`startStep`, `endStep`) in seconds, whatever its unit; None without one."""
    eccodes.codes_set(handle, "stepUnits", "s")
    step = get(handle, key, int)
    return None if step is None else float(step)


# -- GRIB 2

_STATES = frozenset({0, 1, 8, 11, 60, 61})
"""Templates (table 4.0) of a deterministic field or a single member."""
_OVER_TIME = frozenset({8, 11, 61})
_TEMPLATES: Mapping[int, str] = {
    **dict.fromkeys((2, 3, 4, 12, 13, 14), "derived from an ensemble"),
    **dict.fromkeys((5, 9), "probability"),
    **dict.fromkeys((6, 10), "percentile of an ensemble"),
    **dict.fromkeys((86, 87), "quantile of an ensemble"),
    7: "error of an analysis or forecast",
    15: "statistic over an area",
    **dict.fromkeys((51, 91), "categories"),
    **dict.fromkeys((70, 71, 72, 73), "post-processed product"),
}
_DERIVED = (
    "ensemble mean", "weighted ensemble mean", "ensemble standard deviation",
    "normalised ensemble standard deviation", "ensemble spread", "large anomaly index",
    "cluster mean", "interquartile range of an ensemble", "ensemble minimum", "ensemble maximum",
)  # fmt: skip
"""Table 4.7, by code."""
_PROCESSES: Mapping[int, str] = {
    5: "probability forecast",
    6: "forecast error",
    7: "analysis error",
    9: "climatology",
    10: "probability-weighted forecast",
    18: "difference between two forecasts",
    20: "analysis increment",
    21: "initialisation increment",
}
"""Types of generating process (table 4.3) whose fields are not states."""
_LAST_PROCESS, _FIRST_OWN_PROCESS, _MISSING_PROCESS = 21, 192, 255
"""Codes between the first two are reserved, those from the second on are local to a centre."""
_NCEP_PROCESSES: Mapping[int, str] = {
    192: "forecast confidence indicator",
    193: "probability-matched mean",
    194: "neighbourhood probability",
    197: "ensemble agreement scale",
}
_DWD_PROCESSES: Mapping[int, str] = {
    193: "calibrated forecast",
    194: "calibrated ensemble forecast",
    196: "invariant data",
    197: "smoothed forecast",
    198: "smoothed and calibrated forecast",
    199: "neighbourhood probability",
    200: "difference of two analyses",
    201: "difference of analysis and first guess",
    204: "product of a statistical model",
    206: "bias filtered in time",
    207: "analysis increment filtered in time",
    208: "analysis increment filtered in time",
    220: "post-processed product",
    221: "model error",
    225: "simulated radar",
    226: "radar observations",
}
_DWD_STATES = frozenset({192, 195, 202, 203, 205})
_OWN_PROCESSES = {"kwbc": _NCEP_PROCESSES, "edzw": _DWD_PROCESSES, "lssw": _DWD_PROCESSES}
"""By centre; those of DWD and of MeteoSwiss are ecCodes' local table 4.3 for `edzw`."""
_OWN_STATES = {
    "kwbc": frozenset(range(_FIRST_OWN_PROCESS, _MISSING_PROCESS)) - _NCEP_PROCESSES.keys(),
    "edzw": _DWD_STATES,
    "lssw": _DWD_STATES,
}


def _grib2(handle: int) -> str:
    template = get(handle, "productDefinitionTemplateNumber", int)
    derived = get(handle, "derivedForecast", int)
    if derived is not None:
        cluster = "of a cluster: " if template in (3, 4, 13, 14) else ""
        name = _DERIVED[derived] if derived < len(_DERIVED) else f"derived forecast {derived}"
        return cluster + name
    if template == 6 or template == 10:
        return f"percentile {get(handle, 'percentileValue', int)} of an ensemble"
    if template not in _STATES:
        return _TEMPLATES.get(template, f"product definition template 4.{template}")
    generated = _generated(handle)
    probability = get(handle, "typeOfProcessedData", int) == 8
    return generated or ("event probability" if probability else "")


def _generated(handle: int) -> str:
    """Return what a field is by its generating process; empty for processes that give states."""
    process = get(handle, "typeOfGeneratingProcess", int)
    if process is None or process <= _LAST_PROCESS or process == _MISSING_PROCESS:
        return _PROCESSES.get(process, "") if process is not None else ""
    centre = get(handle, "centre", str)
    if process in _OWN_STATES.get(centre, ()):
        return ""
    unknown = f"generating process {process}"
    if process < _FIRST_OWN_PROCESS:
        return unknown
    return _OWN_PROCESSES.get(centre, {}).get(process, f"{unknown} of centre '{centre}'")


# -- GRIB 1

_INSTANTS = frozenset({0, 1, 10})
"""Time range indicators (table 5) of a field at one time."""
_RANGES: Mapping[int, str] = {
    3: "average over time",
    5: "difference of two times",
    6: "average over time",
    7: "average over time",
    51: "climatological mean",
    **dict.fromkeys((113, 115, 117, 123), "average of several forecasts or analyses"),
    **dict.fromkeys((114, 116, 124), "accumulation of several forecasts or analyses"),
    118: "variance or covariance in time",
    **dict.fromkeys((119, 125), "standard deviation in time"),
}
_LOCAL_98: Mapping[int, str] = {
    2: "cluster mean or standard deviation",
    5: "forecast probability",
    7: "sensitivity",
    9: "singular vector or perturbation",
    10: "tubes of an ensemble",
    19: "extreme forecast index",
    20: "analysis increment",
    25: "model error",
    29: "cluster",
    32: "cluster scenario",
    38: "analysis increment",
    39: "model error",
    49: "model error",
}
"""Extensions of section 1 by ECMWF (`localDefinitionNumber`) whose fields are not states."""
_LOCAL_7: Mapping[int, str] = {
    2: "weighted ensemble mean",
    11: "ensemble standard deviation",
    12: "normalised ensemble standard deviation",
}


def _grib1(handle: int) -> str:
    indicator = get(handle, "timeRangeIndicator", int)
    if indicator in _RANGES:
        return _RANGES[indicator]
    centre, local = get(handle, "centre", str), get(handle, "localDefinitionNumber", int)
    if centre == "kwbc" and local == 1:
        return _ncep(handle)
    if get(handle, "marsType", int) is not None and local in _LOCAL_98:
        return _LOCAL_98[local]
    derived = get(handle, "productDefinitionTemplateNumber", int) in _TEMPLATES
    return "" if not derived else _labelled(handle) or "derived from an ensemble"


def _ncep(handle: int) -> str:
    """Return what an ensemble product of NCEP is, by octets 41 to 47 of section 1."""
    kind, product = get(handle, "type", int), get(handle, "productIdentifier", int)
    if get(handle, "probProductDefinition", int):
        return "probability"
    if kind == 4:
        return "cluster of an ensemble"
    if product not in (0, 1, None):
        return _LOCAL_7.get(product, f"ensemble product {product}")
    if kind == 5:
        return "derived from an ensemble"
    number = get(handle, "identificationNumber", int)
    return f"ensemble member {number}" if kind in (2, 3) else ""


# -- labels of both editions

_STATE_TYPES = frozenset(
    {
        "fg", "an", "ia", "oi", "3v", "4v", "fc", "cf", "pf", "cp", "af", "pa", "if", "cv", "bf",
        "ssd", "si", "sfo", "unknown", "missing",
    }
)  # fmt: skip
"""MARS types and types of table 1.4 that are states, or say nothing."""
_TYPES: Mapping[str, str] = {
    "3g": "gradient of an analysis", "4g": "gradient of an analysis",
    "ef": "error of the first guess", "ea": "analysis error",
    "cm": "cluster mean", "cs": "cluster standard deviation", "cr": "cluster representative",
    "ci": "cluster information", "fp": "forecast probability", "em": "ensemble mean",
    "es": "ensemble standard deviation", "fa": "forecast accumulation", "cl": "climatology",
    "s3": "climate simulation of 30 days", "ed": "empirical distribution",
    "tu": "tubes of an ensemble", "efi": "extreme forecast index",
    "efic": "extreme forecast index of the control", "pb": "probability boundary",
    "ep": "event probability", "cd": "distribution of the climate", "4i": "analysis increment",
    "me": "model error", "eme": "model error", "pd": "probability distribution",
    "sot": "shift of tails", "wem": "weighted ensemble mean",
    "wes": "weighted ensemble standard deviation", "ses": "scaled ensemble standard deviation",
    "taem": "ensemble mean over time", "taes": "ensemble standard deviation over time",
    "sg": "gradient of sensitivity", "icp": "perturbation of the initial state",
    "sv": "singular vector", "as": "singular vector", "svar": "variance of a signal",
    "tpa": "analysis processed over time", "fcmean": "forecast mean over time",
    "fcmax": "forecast maximum over time", "fcmin": "forecast minimum over time",
    "fcstdev": "forecast standard deviation over time", "hcmean": "mean of hindcasts",
    "sa": "satellite observations", "ra": "radar observations",
}  # fmt: skip
_STREAMS: Mapping[str, str] = {
    **dict.fromkeys(
        ("mnth", "moda", "monr", "edmm", "edmo", "esmm", "ehmm", "wamo", "wamd", "ewmm", "ewmo",
         "mdfa", "sfmm", "swmm", "mofm", "wmfm", "mnfm", "mfhm", "mfwm", "mhwm", "msmm", "mswm",
         "mmam", "mmwm"),
        "monthly mean",
    ),
    **dict.fromkeys(("msdc", "msda", "mnvr"), "monthly standard deviation or covariance"),
    **dict.fromkeys(("smma", "mmsa", "mfam", "mawm", "mnfa", "mfaw"), "anomaly of monthly means"),
    **dict.fromkeys(("dacl", "dacw"), "daily climatology"),
    **dict.fromkeys(("efhs", "wehs", "eehs", "wees"), "statistic of hindcasts"),
}  # fmt: skip


def _labelled(handle: int) -> str:
    """Return what a field is by its archive labels; empty for states."""
    kind, stream = get(handle, "dataType", str), get(handle, "stream", str)
    # A local code of the centre comes as a number: the other keys decide.
    if kind and not kind.isdigit() and kind.lower() not in _STATE_TYPES:
        return _TYPES.get(kind, f"type '{kind}'")
    return _STREAMS.get(stream or "", "")


def _member(handle: int) -> str:
    number = get(handle, "perturbationNumber", int)
    return f"ensemble member {number}" if number else ""


# -- processing in time

_STATISTICS = (
    "average", "accumulation", "maximum", "minimum", "difference", "root mean square",
    "standard deviation", "covariance", "difference", "ratio", "anomaly", "summation",
)  # fmt: skip
"""Table 4.10, by code."""


def _processed(handle: int, accumulated: bool) -> str:
    """Return how a field was processed in time; for accumulations, in what other way."""
    step = get(handle, "stepType", str) or "instant"
    if get(handle, "edition", int) == 1:
        indicator = get(handle, "timeRangeIndicator", int)
        known = indicator in _INSTANTS or (accumulated and indicator in (2, 4))
        if not known:
            return f"time range {indicator} ({step})"
    elif get(handle, "productDefinitionTemplateNumber", int) in _OVER_TIME:
        code = get(handle, "typeOfStatisticalProcessing", int)
        if code != 1:
            return f"{_statistic(code)} over time"
        if (ranges := get(handle, "numberOfTimeRanges", int) or 1) != 1:
            return f"accumulation over {ranges} time ranges"
    wanted = "accum" if accumulated else "instant"
    if step == wanted:
        return ""
    return "no accumulation over a stated time" if accumulated else f"step type {step}"


def _statistic(code: int | None) -> str:
    if code is None or code == 255:
        return "unstated statistic"
    return _STATISTICS[code] if code < len(_STATISTICS) else f"statistic {code}"
