"""Kinds of job: one file each, one entry in the union."""

from typing import Annotated

from pydantic import Field, TypeAdapter

from worker.jobs.kinds.base import ObservationSelection
from worker.jobs.kinds.filtering import FilteringSpec
from worker.jobs.kinds.forecast import ForecastSpec
from worker.jobs.kinds.reanalysis import ReanalysisSpec

__all__ = [
    "JOB_SPEC",
    "FilteringSpec",
    "ForecastSpec",
    "JobSpec",
    "ObservationSelection",
    "ReanalysisSpec",
]

JobSpec = Annotated[FilteringSpec | ForecastSpec | ReanalysisSpec, Field(discriminator="kind")]
JOB_SPEC: TypeAdapter[FilteringSpec | ForecastSpec | ReanalysisSpec] = TypeAdapter(JobSpec)
