"""What a sender may say about an upload besides its bytes."""

import json
from typing import Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.domain.errors import InvalidInput
from model.domain.observations import REPORT_TYPES
from model.domain.variables import VARIABLES
from service.names import check_known

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class ErrorOverride(BaseModel):
    """Another observation error for one variable of some networks."""

    model_config = ConfigDict(extra="forbid")

    report_types: list[str] = Field(min_length=1, description="Networks it holds for.")
    variable: str = Field(description="Id of the vocabulary.")
    error: Positive | list[Positive] = Field(description="1 standard deviation, SI.")
    pressure: list[Positive] | None = Field(default=None, description="Levels of `error` in hPa.")
    relative: bool = Field(default=False, description="Whether `error` is a share of the value.")
    minimum: float | None = Field(default=None, ge=0, description="Lower bound, SI.")
    maximum: float | None = Field(default=None, gt=0, description="Upper bound, SI.")

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.report_types:
            check_known("report_types", name, REPORT_TYPES)
        check_known("variable", self.variable, VARIABLES)
        given = len(self.error) if isinstance(self.error, list) else 1
        if given != len(self.pressure or [0]):
            raise ValueError("expected one error, or as many as levels in 'pressure'")
        return self


class Representativeness(BaseModel):
    """Inflation: sigma² = (factor · sigma)² + addend²."""

    model_config = ConfigDict(extra="forbid")

    factor: Positive | None = Field(
        default=None, description="Multiplies the error of every variable."
    )
    addend: dict[str, Positive] = Field(
        default={}, description="Added in quadrature, SI, by variable."
    )


class ErrorOverrides(BaseModel):
    """Observation errors of this upload; what is not named keeps the deployment's."""

    model_config = ConfigDict(extra="forbid")

    representativeness: Representativeness | None = None
    entries: list[ErrorOverride] = Field(default=[], max_length=500)


def _object(field: str, text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise InvalidInput(f"Expected JSON in '{field}'; {error}.", field=field) from error
    if not isinstance(value, dict):
        raise InvalidInput(f"Expected a JSON object in '{field}'; got {text[:40]}.", field=field)
    return value


def upload_options(
    report_type: str | None, errors: str | None, decoder: str | None
) -> dict[str, Any]:
    """The options kept with the batch; only those given.

    Raises:
        InvalidInput: Naming the option and what is possible.
    """
    options: dict[str, Any] = {}
    if report_type:
        check_known("report_type", report_type, REPORT_TYPES)
        options["report_type"] = report_type
    if errors:
        try:
            overrides = ErrorOverrides.model_validate(_object("errors", errors))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(["errors", *map(str, first["loc"])])
            raise InvalidInput(f"{place}: {first['msg']}.", field=place) from error
        options["errors"] = overrides.model_dump(exclude_none=True, exclude_defaults=True)
    if decoder:
        options["decoder"] = _object("decoder", decoder)
    return options
