"""Try parameters of quality control on made-up rows, before data are checked with them.

`load_parameters` knows names and sorts of parameters. What a check makes of an entry, such as the limits
of a variable or a period of the blocklist, shows only when it runs.
"""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa

from model.domain.observations import REPORT_TYPES
from model.domain.variables import VARIABLES, Variable
from worker.observations.columns import build_table
from worker.observations.decoders.base import DecodeContext
from worker.observations.qc.base import EXTRA_CHECKS, QCContext, load_parameters
from worker.observations.qc.run import CHECKS

__all__ = ["try_parameters"]

_NOON = datetime(2025, 1, 1, 12, tzinfo=UTC)
_VERTICAL = {"level": ("pressure", 5e4), "layer": ("layer", 5e4), "channel": ("channel", 5.0)}
"""Kind and value of the vertical coordinate of variables that are not at the surface."""


def try_parameters(parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, Exception]:
    """Run all checks over one row for each network and variable; return the errors of those that fail.

    A check that fails with the default parameters as well is left out: it needs more than these rows.

    Arguments:
        parameters: Effective parameters, from `load_parameters`.

    Returns:
        Errors by name of the check.
    """
    table = _rows()
    found = _errors(table, parameters)
    return {k: v for k, v in found.items() if k not in _errors(table, load_parameters())}


def _errors(table: pa.Table, parameters: Mapping[str, Mapping[str, Any]]) -> dict[str, Exception]:
    context, found = QCContext(parameters=parameters), dict[str, Exception]()
    for check in (*CHECKS, *EXTRA_CHECKS.values()):
        if not context.of(check.name)["enabled"]:
            continue
        try:
            check.reject(table, context)
            if check.prepare is not None:
                check.prepare(table, context)
        except Exception as error:  # a check may stumble over a wrong value in any way
            found.setdefault(check.name, error)
    return found


def _rows() -> pa.Table:
    """Return one row for each network and variable, with a background that equals it."""
    pairs = [(r, v) for r in REPORT_TYPES.values() for v in VARIABLES.values()]
    places = [_vertical(variable) for _, variable in pairs]
    count = len(pairs)
    table = build_table(
        DecodeContext(batch_id="trial", received_time=_NOON),
        count,
        report_type=[network.name for network, _ in pairs],
        station_id=[f"{10_000 + row}" for row in range(count)],
        time=np.datetime64(_NOON.replace(tzinfo=None), "ns"),
        lat=np.linspace(-60.0, 60.0, count),
        lon=np.linspace(-170.0, 170.0, count),
        elevation=0.0,
        vertical_kind=[kind for kind, _ in places],
        vertical=np.array([value for _, value in places]),
        vertical_top=np.array([3e4 if kind == "layer" else np.nan for kind, _ in places]),
        variable=[variable.id for _, variable in pairs],
        obs_value=np.full(count, 280.0),
        obs_error=np.ones(count),
    )
    for name, value in (("hofx_background", 280.0), ("background_spread", 1.0)):
        table = table.append_column(name, pa.array(np.full(count, value)))
    return table


def _vertical(variable: Variable) -> tuple[str, float]:
    """Return kind and value of the vertical coordinate of a variable; NaN at the surface."""
    level = "level" if variable.kind == "atmospheric" else variable.vertical
    return _VERTICAL.get(level, ("column" if level == "column" else "surface", np.nan))
