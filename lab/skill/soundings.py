"""Verify against real soundings of which some are withheld: how close is the analysis to them?"""

from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc
from rich.table import Table

from model.assimilate import assimilate
from model.diagnostics.equivalents import model_equivalents, observation_set
from model.domain.errors import InvalidInput
from model.domain.windows import HOUR, WindowPlan
from model.execution import OnStep, no_progress
from model.gaussian_prior import ZonalGaussianPrior
from model.latent_model import LatentModel
from model.nn.embedding import date_rows
from worker.observations.decoders.decode import decode_file
from worker.observations.errors import assign_errors
from worker.observations.qc.base import QCContext, load_parameters
from worker.observations.qc.run import run_checks
from worker.pipeline.departures import monitored_set

__all__ = ["WithheldSkill", "verify_withheld", "withheld_table"]

LAYERS = ((0, 15_000), (15_000, 40_000), (40_000, 75_000), (75_000, 110_000))
"""Pressure layers of the table, Pa."""


@dataclass(frozen=True)
class WithheldSkill:
    """Errors at withheld stations.

    Attributes:
        time: Analysis time.
        used: Values assimilated.
        withheld: Values at withheld stations.
        outcomes: Values by outcome of quality control.
        rows: Per variable and pressure layer: count, RMSE of climatology and of the analysis.
    """

    time: datetime
    used: int
    withheld: int
    outcomes: dict[str, int]
    rows: pd.DataFrame


def verify_withheld(
    model: LatentModel,
    paths: list[Path],
    *,
    share: float = 0.2,
    members: int = 8,
    seed: int = 0,
    on_step: OnStep = no_progress,
) -> WithheldSkill:
    """Assimilates files with a share of the stations withheld, and scores against those.

    Raises:
        InvalidInput: If the files hold no usable report.
    """
    tables = [decode_file(path).table for path in paths]
    table = assign_errors(pa.concat_tables(tables).unify_dictionaries())
    if not table.num_rows:
        raise InvalidInput(f"Expected reports in {', '.join(map(str, paths))}; none was decoded.")
    seconds = np.median(table["time"].to_numpy().astype("datetime64[s]").astype(np.int64))
    time = datetime.fromtimestamp(round(seconds / 3600) * 3600, UTC)
    half = model.blanket_size // 2
    plan = WindowPlan.reanalysis(time - half * HOUR, model.blanket_size)
    table = _checked(table, model, share)
    observations, table = observation_set(table, model, plan.times)
    withheld = pc.fill_null(pc.equal(table["rejected_by"].cast(pa.string()), "withheld"), False)
    seen, _ = monitored_set(table, model, plan.times)
    seen = seen.select(withheld.to_numpy()[seen.rows])
    analysis = assimilate(model, observations, plan, members, seed, on_step=on_step)
    hofx = model_equivalents(analysis.latents, model, seen).mean(0)
    prior = model.denoise.base
    if not isinstance(prior, ZonalGaussianPrior):
        raise InvalidInput("Expected a checkpoint that knows its climatology; this one does not.")
    climate = prior.climatology(date_rows(plan.times)[None])
    reference = model_equivalents(climate, model, seen)[0]
    outcomes = Counter(o or "used" for o in table["rejected_by"].to_pylist())
    rows = _by_layer(table, seen.rows, seen.obs_values, reference, hofx)
    return WithheldSkill(time, len(observations), len(seen), dict(outcomes), rows)


def withheld_table(skill: WithheldSkill) -> Table:
    """The skill as a table for people."""
    table = Table(
        title=f"Real soundings of {skill.time:%Y-%m-%d %H UTC}: RMS departures at withheld stations "
        f"({skill.used} values used, {skill.withheld} withheld)"
    )
    for name in ("variable", "pressure (Pa)", "values", "climatology", "analysis", "ratio"):
        table.add_column(name, justify="left" if name == "variable" else "right")
    for row in skill.rows.itertuples():
        ratio = row.analysis / row.climatology
        numbers = f"{row.climatology:.4g}", f"{row.analysis:.4g}", f"{ratio:.2f}"
        table.add_row(row.variable, str(row.layer), str(row.number), *numbers)
    return table


def _checked(table: pa.Table, model: LatentModel, share: float) -> pa.Table:
    context = QCContext(
        parameters=load_parameters({"withholding": {"share": share}}),
        grid=model.grid,
        levels=model.card.levels,
        orography=model.statics.orography,
    )
    for stage in ("pre", "window", "select"):
        table, _ = run_checks(table, stage, context)
    return table


def _by_layer(
    table: pa.Table, rows: np.ndarray, values: np.ndarray, climate: np.ndarray, analysis: np.ndarray
) -> pd.DataFrame:
    frame = pd.DataFrame(
        {
            "variable": table["variable"].cast(pa.string()).take(pa.array(rows)).to_pylist(),
            "pressure": table["vertical"].take(pa.array(rows)).to_numpy(),
            "climatology": (values - climate) ** 2,
            "analysis": (values - analysis) ** 2,
        }
    )
    edges = [low for low, _ in LAYERS] + [LAYERS[-1][1]]
    frame["layer"] = pd.cut(frame["pressure"], edges)
    grouped = frame.groupby(["variable", "layer"], observed=True)[["climatology", "analysis"]]
    result = np.sqrt(grouped.mean())
    result.insert(0, "number", grouped.size())
    return result.reset_index()
