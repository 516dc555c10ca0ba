"""Which statistics are watched and how far they may go: `verification.yaml` in the data folder."""

from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.domain.errors import ConfigurationError
from worker.jobs.verification_series import ALL

__all__ = ["ControlPolicy", "ControlRule", "read_control_policy"]


class ControlRule(BaseModel):
    """One statistic that is watched, for every network, variable and layer it matches."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    statistic: str = Field(description="Name in the time series.")
    networks: list[str] = Field(default=[], description="Only these; empty for every network.")
    variables: list[str] = Field(default=[], description="Only these; empty for every variable.")
    layers: list[str] = Field(default=[ALL], description="Only these; empty for every layer.")
    side: Literal["both", "high", "low"] = Field(
        default="both", description="Which direction is alarming."
    )
    sigmas: float | None = Field(default=None, gt=0, description="Null for the policy's own.")
    same_hour: bool = Field(
        default=False, description="Compare with the same hour of other days only."
    )
    absent_is_zero: bool = Field(
        default=False, description="An analysis without this number counts as 0: for counts."
    )


_DEFAULT_RULES = [
    ControlRule(statistic="chi2", networks=[ALL]),
    ControlRule(statistic="withheld_rmse_analysis", side="high"),
    ControlRule(statistic="bias_background"),
    ControlRule(statistic="spread_skill"),
    ControlRule(statistic="used_new", same_hour=True, absent_is_zero=True),
]


class ControlPolicy(BaseModel):
    """Control limits: median of the cycles before, plus and minus so many robust sigmas."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    enabled: bool = Field(default=True, description="Whether limits are looked at.")
    flavours: list[str] = Field(
        default=["early", "final"], description="Analyses watched, each against its own kind."
    )
    cycles: int = Field(default=360, ge=8, le=5000, description="Cycles looked back on.")
    minimum: int = Field(default=20, ge=5, description="Cycles needed before limits apply.")
    minimum_same_hour: int = Field(
        default=7, ge=5, description="The same for statistics compared by the hour of the day."
    )
    sigmas: float = Field(default=5.0, gt=0, description="Half width, in robust sigmas.")
    least_sigma: float = Field(
        default=0.03,
        ge=0,
        description="A sigma is at least this share of the median: steady numbers may move a bit.",
    )
    least_count: int = Field(
        default=10, ge=1, description="Means of fewer values are not looked at."
    )
    rules: list[ControlRule] = Field(default=_DEFAULT_RULES, description="What is watched.")


def read_control_policy(path: Path) -> ControlPolicy:
    """The policy in the file, or the default one where there is none.

    Raises:
        ConfigurationError: If it is not a policy; says where.
    """
    try:
        raw = yaml.safe_load(path.read_text()) or {}
    except FileNotFoundError:
        return ControlPolicy()
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigurationError(f"Expected a readable {path.name}; {error}.") from error
    try:
        return ControlPolicy.model_validate(raw)
    except ValidationError as error:
        lines = [f"{'.'.join(map(str, e['loc'])) or 'file'}: {e['msg']}" for e in error.errors()]
        raise ConfigurationError(
            f"Expected control limits in {path.name}; {'; '.join(lines)}. See docs/verification.md."
        ) from None
