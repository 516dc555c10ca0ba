"""Hold the states of a finished job with their metadata, as input of output formats.

Fields are provided by quantity, as views, clipped where negative values are unphysical; the global
attributes describe the result, its inputs and how to reproduce it.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from model.domain.ensembles import AntitheticPairs
from model.domain.errors import InvalidInput
from model.domain.grids import Grid
from model.domain.variables import VARIABLES, Channel, Variable
from model.domain.windows import AssimilationWindow
from worker.contract.jobs import JobRecord
from worker.contract.kinds import KINDS, JobKind
from worker.contract.records import utc_now
from worker.results.outputs.states import States

__all__ = [
    "Field",
    "Product",
    "channels_of",
    "clip",
    "field_of",
    "fields",
    "global_attributes",
    "mean_and_spread",
    "title",
]

Float = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Product:
    """A finished job whose files are not yet written.

    Attributes:
        job: The job with its specification.
        times: Valid times of the states (UTC); T of them.
        states: Analysis or forecast, SI units, NaN where undefined, with shape (M, T, C, Y, X).
        background: First guess at the same times, with shape (B, T, C, Y, X); None when the job
            has none (a forecast).
        grid: Rows north to south, columns eastward from 0.
        channels: C channels, in order.
        window: The observations' window; None without observations.
        feedback: Every observation of the window, a table of `FEEDBACK_SCHEMA`.
        counts: Values by outcome: `used` and the names of the checks.
        background_info: Source, age and members of the background.
        provenance: `checkpoint` (name), `checkpoint_sha256`, `code_version`, `seeds` (one for each
            member), `configuration`, `observations_sha256`; other entries are written as well.
        flags: `zero_observations`, `cold_start` and the like; `simulated` if the checkpoint was
            trained on a simulation, which every file then states.
        scores: Scores for the manifest; see `docs/verification.md`.
        series: The same and more statistics in long form, for the time series; None for a job that is
            not verified, such as a forecast.
        mirrored: Whether members 0 and 1, 2 and 3 … have opposite perturbations.
    """

    job: JobRecord
    times: tuple[datetime, ...]
    states: States
    background: States | None
    grid: Grid
    channels: tuple[Channel, ...]
    window: AssimilationWindow | None
    feedback: pa.Table
    counts: dict[str, int] = field(default_factory=dict)
    background_info: dict[str, Any] = field(default_factory=dict)
    provenance: dict[str, Any] = field(default_factory=dict)
    flags: tuple[str, ...] = ()
    scores: dict[str, Any] = field(default_factory=dict)
    series: pa.Table | None = None
    mirrored: bool = False

    @property
    def reference_time(self) -> datetime:
        """Return the analysis time, the start of a forecast or the first time of a reanalysis."""
        return self.job.spec.reference_time

    @property
    def kind(self) -> JobKind:
        """Return the kind of the job: its file tag, title, and whether it is a forecast."""
        return KINDS[self.job.kind]

    @property
    def simulated(self) -> bool:
        """Return whether the model was trained on the weather of a simulation."""
        return "simulated" in self.flags

    @property
    def members(self) -> int:
        """Return M, the size of the ensemble."""
        return int(self.states.shape[0])

    @property
    def pairs(self) -> AntitheticPairs:
        """Return the dependence of the members: independent, or in antithetic pairs."""
        return AntitheticPairs.of(range(self.members), self.mirrored)

    @property
    def variables(self) -> tuple[Variable, ...]:
        """Return the quantities of the states, in the order of the channels."""
        return tuple(VARIABLES[name] for name in dict.fromkeys(c.variable for c in self.channels))

    @property
    def levels(self) -> tuple[int, ...]:
        """Return the pressure levels in hPa from the top down; empty without upper-air channels."""
        return tuple(dict.fromkeys(c.level for c in self.channels if c.level is not None))

    def hours(self) -> Iterator["Product"]:
        """Yield the product of each time, with its states in memory."""
        for t in range(len(self.times)):
            yield self.hour(t)

    def hour(self, t: int) -> "Product":
        """Return the product of one of its times, with its states in memory."""
        return replace(self, times=(self.times[t],), states=self.states[:, t : t + 1])


Written = list[tuple[Path, str]]
"""Files that a format wrote, each with its role: `data`, `feedback`, `quicklook`."""


@dataclass(frozen=True, eq=False)
class Field:
    """The values of one quantity for all members and times.

    Attributes:
        variable: The variable.
        values: SI units, NaN where undefined, with shape (M, T, L, Y, X), or (M, T, Y, X) at the
            surface.
        clipped: Number of negative values that were set to zero.
    """

    variable: Variable
    values: Float
    clipped: int = 0


def fields(product: Product) -> Iterator[Field]:
    """Yield the quantities of the product in the order of its channels."""
    for variable in product.variables:
        yield field_of(product, variable)


def field_of(product: Product, variable: Variable, hours: slice = slice(None)) -> Field:
    """Return a quantity of the product at a slice of its times."""
    first, last = channels_of(product, variable)
    chosen = first if variable.kind == "surface" else slice(first, last + 1)
    values, clipped = clip(variable, product.states[:, hours, chosen])
    return Field(variable, values, clipped)


def clip(variable: Variable, values: Float) -> tuple[Float, int]:
    """Set unphysical negative values to zero; return the values and the number of changes."""
    if not variable.nonnegative:
        return values, 0
    with np.errstate(invalid="ignore"):
        negative = values < 0
    return np.where(negative, np.float32(0), values), int(negative.sum())


def channels_of(product: Product, variable: Variable) -> tuple[int, int]:
    """Return the first and the last channel of a quantity.

    Raises:
        InvalidInput: If the channels are not those of a state.
    """
    chosen = [i for i, c in enumerate(product.channels) if c.variable == variable.id]
    if variable.kind == "surface":
        return chosen[0], chosen[0]
    levels = tuple(product.channels[i].level for i in chosen)
    if levels != product.levels or chosen[-1] - chosen[0] != len(chosen) - 1:
        raise InvalidInput(
            f"Expected neighbouring channels of '{variable.id}' on the levels {product.levels}; "
            f"got {levels}."
        )
    return chosen[0], chosen[-1]


def mean_and_spread(values: Float, pairs: AntitheticPairs) -> tuple[Float, Float | None]:
    """Return the ensemble mean and standard deviation (None for one member).

    Arguments:
        values: With shape (M, *).
        pairs: Dependence of the members, which determines the divisor.
    """
    mean = values.mean(axis=0, dtype=np.float64)
    spread = pairs.std(values)
    return mean.astype(np.float32), None if spread is None else spread.astype(np.float32)


CONVENTIONS = "CF-1.11"
_MANIFEST_ONLY = ("seeds", "batches", "batches_beside")
"""Not among the attributes: seeds are a variable, and the list of uploads may be long."""
SIMULATED = (
    "simulated: the model was trained on the weather of a simulation and must not be used for "
    "real decisions"
)


def title(product: Product) -> str:
    """Return a title such as `Ensemble analysis of 2025-01-01 06 UTC`; simulations say so."""
    kind = product.kind
    what = f"nsemble {kind.noun} {'from' if kind.forecast else 'of'}"
    start = f"{product.reference_time:%Y-%m-%d %H} UTC"
    return f"{'Simulated e' if product.simulated else 'E'}{what} {start}"


def _plain(value: Any) -> str | int | float:
    """Return numbers and text unchanged and anything else as JSON."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str | int | float):
        return value
    return json.dumps(value, sort_keys=True, default=str)


def _observations(product: Product) -> dict[str, Any]:
    if product.window is None:
        return {}
    return {
        "ranked_members": len(product.pairs.ranked),
        "observations_used": product.counts.get("used", 0),
        "observations_by_outcome": json.dumps(product.counts, sort_keys=True),
    }


def global_attributes(product: Product) -> dict[str, Any]:
    """Return the global attributes of a file, in the order in which they are written."""
    created = utc_now().replace(microsecond=0).isoformat().replace("+00:00", "Z")
    background = product.background_info
    provenance = {
        k: v for k, v in product.provenance.items() if k not in _MANIFEST_ONLY and v is not None
    }
    comment = [SIMULATED] if product.simulated else []
    if "zero_observations" in product.flags:
        comment.append("no observation was used: the analysis is the background")
    return {
        "Conventions": CONVENTIONS,
        "title": title(product),
        "institution": "appa-service",
        "source": "latent diffusion data assimilation (Appa, arXiv:2504.18720)",
        "history": f"{created} written by appa-service {provenance.get('code_version', '')}".strip(),
        "references": "https://arxiv.org/abs/2504.18720",
        **({"comment": "; ".join(comment)} if comment else {}),
        "forecast_type": product.kind.noun,
        "job_id": product.job.id,
        "analysis_id": product.job.analysis_id,
        **({"flavour": product.job.flavour} if product.job.flavour else {}),
        "revision": product.job.revision,
        **({"cycle": _plain(product.job.cycle)} if product.job.cycle else {}),
        "members": product.members,
        "mirrored_members": _plain(product.mirrored),
        "grid": product.grid.name,
        "flags": " ".join(product.flags),
        **_observations(product),
        **(
            {"background": json.dumps(background, sort_keys=True, default=str)}
            if background
            else {}
        ),
        **{k: _plain(v) for k, v in provenance.items()},
    }
