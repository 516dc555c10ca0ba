"""Groups of channels whose errors are reported together."""

from collections.abc import Sequence

from model.domain.variables import Channel

__all__ = ["GROUPS", "channel_groups"]

GROUPS: dict[str, tuple[str, ...]] = {
    "temperature": ("2m_temperature", "temperature"),
    "wind": (
        "10m_u_component_of_wind",
        "10m_v_component_of_wind",
        "u_component_of_wind",
        "v_component_of_wind",
    ),
    "geopotential, pressure": ("geopotential", "mean_sea_level_pressure"),
    "humidity": ("specific_humidity",),
    "precipitation": ("total_precipitation",),
    # Prescribed by the climate of a nature run: nothing can beat climatology there.
    "sea surface": ("sea_surface_temperature",),
}
"""Name of a group to the variables in it, at all levels."""


def channel_groups(channels: Sequence[Channel]) -> dict[str, list[int]]:
    """Name of a group to the positions of its channels; groups without a channel are left out."""
    found = {
        name: [i for i, c in enumerate(channels) if c.variable in variables]
        for name, variables in GROUPS.items()
    }
    return {name: positions for name, positions in found.items() if positions}
