"""Hold an extracted field and how to display it: colour map and its range, units, metadata."""

from dataclasses import dataclass
from functools import cached_property

import matplotlib
import numpy as np
from numpy.typing import NDArray

from model.domain.grids import Grid
from service.maps.answers import DisplayUnits, FieldInfo, GridInfo
from service.maps.fields import FIELDS, MapField
from service.maps.requests import FieldRequest
from worker.results.manifest import AnalysisManifest

__all__ = ["Extracted", "colour_maps"]

DIFFERENCES = "RdBu_r"
SPREADS = "YlOrBr"
PROBABILITIES = "BuPu"
"""Colour map that starts near white, so that coastlines stay visible where probabilities are low."""
VECTORS = ("u", "v", "u10", "v10")


@dataclass(frozen=True, eq=False)
class Extracted:
    """A field on the grid of its result.

    Attributes:
        request: The request, with result, time and levels resolved.
        field: The quantity.
        values: float32 (Y, X), NaN where undefined.
        grid: Grid of the result.
        manifest: Manifest of the result.
    """

    request: FieldRequest
    field: MapField
    values: NDArray[np.float32]
    grid: Grid
    manifest: AnalysisManifest

    @cached_property
    def bounds(self) -> tuple[float | None, float | None]:
        """Return the least and the greatest value; None for a field without any."""
        defined = self.values[np.isfinite(self.values)]
        return (float(defined.min()), float(defined.max())) if defined.size else (None, None)

    @property
    def vector(self) -> bool:
        """Return whether it is a component of a vector, which turns at a pole."""
        return self.field.name in VECTORS and self.request.statistic.kind not in (
            "spread",
            "probability",
        )

    @property
    def colours(self) -> tuple[str, tuple[float, float]]:
        """Return the suggested colour map and the values of its ends."""
        kind, span = self.request.statistic.kind, self.field.span
        low, high = (0.0 if x is None else x for x in self.bounds)
        if kind == "probability":
            return PROBABILITIES, (0.0, 1.0)
        if kind == "spread":
            return SPREADS, (0.0, span or high or 1.0)
        if self.request.statistic.signed:
            limit = span or max(abs(low), abs(high)) or 1.0
            return DIFFERENCES, (-limit, limit)
        if self.field.range is None:
            return self.field.colours, (low, high if high > low else low + 1.0)
        return self.field.colours, self.field.range((self.request.level or np.nan) * 100.0)

    @property
    def contour(self) -> float:
        """Return the contour interval; for a difference or spread, a fifth of the field's `span`."""
        statistic = self.request.statistic
        if statistic.kind == "probability":
            return 0.0
        small = statistic.signed or statistic.kind == "spread"
        return self.field.span / 5.0 if small and self.field.contour else self.field.contour

    @property
    def display(self) -> DisplayUnits:
        """Return the display units; differences and spreads take no offset."""
        if self.request.statistic.kind == "probability":
            return DisplayUnits(units="%", scale=100.0, offset=0.0)
        shown = self.field.shown
        plain = self.request.statistic.signed or self.request.statistic.kind == "spread"
        units = "K" if plain and shown.units == "°C" else shown.units
        return DisplayUnits(units=units, scale=shown.scale, offset=0.0 if plain else shown.offset)

    def describe(self, grid: GridInfo) -> FieldInfo:
        """Return the metadata of the field as it is placed on `grid`."""
        request, manifest, statistic = self.request, self.manifest, self.request.statistic
        colours, ends = self.colours
        chance = statistic.kind == "probability"
        low, high = self.bounds
        assert request.time is not None  # noqa: S101 (found when extracted)
        return FieldInfo(
            result=manifest.id,
            kind=manifest.kind,
            flavour=manifest.flavour,
            revision=manifest.revision,
            field=self.field.name,
            long_name=self.field.long_name,
            units="1" if chance else self.field.units,
            display=self.display,
            level=request.level,
            base=request.base,
            statistic=str(statistic),
            threshold=statistic.threshold if chance else None,
            direction=("above" if statistic.above else "below") if chance else None,
            other=statistic.other or None,
            members=manifest.members,
            valid_time=request.time,
            reference_time=manifest.valid_time,
            lead_hours=(request.time - manifest.valid_time).total_seconds() / 3600.0,
            checkpoint=str(manifest.provenance.get("checkpoint", "")),
            simulated="simulated" in manifest.flags,
            minimum=low,
            maximum=high,
            colours=colours,
            range=list(ends),
            contour=self.contour,
            grid=grid,
        )


def colour_maps() -> dict[str, list[str]]:
    """Return the colour maps that fields suggest: 256 colours `#rrggbb` each, from low to high."""
    names = {field.colours for field in FIELDS.values()}
    found = {}
    for name in sorted(names | {DIFFERENCES, SPREADS, PROBABILITIES}):
        table = matplotlib.colormaps[name](np.arange(256), bytes=True)
        found[name] = [f"#{r:02x}{g:02x}{b:02x}" for r, g, b, _ in table]
    return found
