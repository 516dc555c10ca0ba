"""All families of observation operators, by name; a new one is one file and one line here."""

from model.domain.registry import Registry
from model.operators.base import OperatorFamily
from model.operators.brightness import BrightnessFamily
from model.operators.column import ColumnFamily
from model.operators.height_level import HeightLevelFamily
from model.operators.pressure_level import PressureLevelFamily
from model.operators.relative_humidity import RelativeHumidityFamily
from model.operators.surface import SurfaceFamily
from model.operators.surface_pressure import SurfacePressureFamily
from model.operators.thickness import ThicknessFamily
from model.operators.wind_speed import WindSpeedFamily

__all__ = ["OPERATORS", "family_of"]

OPERATORS: Registry[OperatorFamily] = Registry(
    "observation operator",
    brightness=BrightnessFamily(),
    column=ColumnFamily(),
    height_level=HeightLevelFamily(),
    pressure_level=PressureLevelFamily(),
    relative_humidity=RelativeHumidityFamily(),
    surface=SurfaceFamily(),
    surface_pressure=SurfacePressureFamily(),
    thickness=ThicknessFamily(),
    wind_speed=WindSpeedFamily(),
)


def family_of(variable: str, vertical_kind: str) -> str | None:
    """Name of the family that observes a variable at that kind of height, None if there is none."""
    for name, family in OPERATORS.items():
        if family.accepts(variable, vertical_kind):
            return name
    return None
