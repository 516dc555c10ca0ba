"""Read the settings of worker processes from `APPA_*` environment variables."""

from datetime import timedelta
from typing import Annotated, Any, Literal, Self

from pydantic import Field, FilePath, field_validator, model_validator
from pydantic_settings import NoDecode

from model.domain.errors import ConfigurationError
from worker.contract.settings import InstallationSettings

__all__ = ["WorkerSettings"]


class WorkerSettings(InstallationSettings):
    """Everything a worker process needs to know."""

    models: Annotated[list[str], NoDecode] = Field(
        default=[], description="Checkpoints (names or folders) to load; the first is the default."
    )
    device: str = Field(default="auto", description="`cpu`, `cuda`, `cuda:1` or `auto`.")
    precision: Literal["auto", "float32", "bfloat16"] = Field(
        default="auto",
        description="Products of the networks, unless a job chooses; `auto`: bfloat16 on a GPU that "
        "has it, else float32.",
    )
    tf32: bool = Field(
        default=True, description="Products in float32 on a GPU round their factors to TF32."
    )
    attention: Literal["fused", "plain"] = Field(
        default="fused", description="`fused` holds no matrix of all pairs of tokens."
    )
    compile: bool = Field(
        default=False,
        description="Compile the denoiser's network at start, which takes minutes; needs a C++ "
        "compiler.",
    )
    ranks: int = Field(
        default=1,
        ge=1,
        description="Processes of a model worker that share the blankets of long windows, each with "
        "a GPU of its own where there are any.",
    )
    ingest_processes: int = Field(default=1, ge=1, description="Processes of an ingest worker.")
    stations: FilePath | None = Field(
        default=None,
        description="List of stations, CSV: where those are that text bulletins name by number.",
    )

    part_members: int = Field(
        default=4,
        ge=0,
        description="The members of a job are drawn by all model workers that are free, in parts of "
        "at least so many; 0: by one worker.",
    )

    visibility_timeout: int = Field(
        default=86_400,
        gt=0,
        description="Seconds after which an unacknowledged message comes again.",
    )
    lease_seconds: float = Field(
        default=30.0, gt=0, description="A job without a heartbeat for so long counts as abandoned."
    )
    ingest_limit_seconds: int = Field(
        default=3600, gt=0, description="An upload whose ingest takes longer is stopped and fails."
    )
    attempts: int = Field(
        default=8,
        ge=1,
        description="Starts of a job that meets faults of ours before it fails for good.",
    )
    lost_workers: int = Field(
        default=3, ge=1, description="Workers that may die over one job before it fails for good."
    )
    retry_backoff_seconds: int = Field(
        default=30,
        ge=0,
        description="Longest pause before the first retry; it doubles with each one.",
    )
    retry_backoff_max_seconds: int = Field(
        default=3600, ge=0, description="Longest pause before any retry."
    )
    sweep_seconds: float = Field(
        default=5.0, gt=0, description="Pause between sweeps for lost jobs."
    )
    resend_seconds: float = Field(
        default=60.0,
        gt=0,
        description="The message of a waiting job is sent again after so long, then after twice "
        "as long, and so on: it may have been lost.",
    )
    reconcile_seconds: float = Field(
        default=60.0,
        gt=0,
        description="Pause between comparisons of the uploads on disk with the records in Redis.",
    )
    ended_seconds: float = Field(
        default=600.0,
        ge=0,
        description="How long uploads, jobs and cycles stay in Redis after their end; they are read "
        "from disk later.",
    )
    progress_seconds: float = Field(
        default=1.0, ge=0, description="Progress is stored at most once in so many seconds."
    )
    report_seconds: float = Field(
        default=5.0, gt=0, description="Pause between a worker's reports; forgotten after three."
    )

    webhook_timeout_seconds: float = Field(
        default=10.0,
        gt=0,
        le=30,
        description="A receiver that has not answered by then has failed.",
    )
    webhook_attempts: int = Field(
        default=8, ge=1, description="Tries to deliver a message of a webhook."
    )
    webhook_backoff_seconds: float = Field(
        default=5.0,
        gt=0,
        description="Pause after the first failed try; each next one is four times longer.",
    )

    sources_max_waiting: int = Field(
        default=2_000,
        ge=1,
        description="While so many uploads wait for ingest, sources fetch nothing more.",
    )
    wis2_broker: str = Field(
        default="",
        repr=False,
        description="Published results are announced on this MQTT broker, such as "
        "`mqtts://user:password@broker.example.org`; nothing is announced when empty.",
    )
    wis2_topic: str = Field(
        default="",
        description="Topic of the announcements, such as "
        "`origin/a/wis2/CENTRE/data/core/weather/prediction/analysis`.",
    )
    wis2_url: str = Field(
        default="", description="Address of the gateway as others reach it; links begin with it."
    )
    wis2_metadata_id: str = Field(
        default="", description="Discovery metadata record of the results, `urn:wmo:md:…`."
    )
    wis2_client_id: str = Field(
        default="appa", description="Names the session with that broker; unique there."
    )
    wis2_protocol: Literal["5", "3.1.1"] = Field(
        default="5", description="Version of MQTT that broker speaks."
    )

    @property
    def lease(self) -> timedelta:
        """Return the lifetime of a lease without heartbeats."""
        return timedelta(seconds=self.lease_seconds)

    @field_validator("models", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        """Split a comma-separated list such as `APPA_MODELS=one,two`."""
        if isinstance(value, str):
            return [name.strip() for name in value.split(",") if name.strip()]
        return value

    @model_validator(mode="after")
    def _announcements_complete(self) -> Self:
        needed = ("wis2_topic", "wis2_url", "wis2_metadata_id")
        missing = [f"APPA_{name.upper()}" for name in needed if not getattr(self, name)]
        if self.wis2_broker and missing:
            raise ConfigurationError(
                f"Expected {', '.join(missing)} beside APPA_WIS2_BROKER; got none."
            )
        return self

    @model_validator(mode="after")
    def _times_in_order(self) -> Self:
        if not self.lease_seconds < self.job_limit_seconds < self.visibility_timeout:
            raise ConfigurationError(
                "Expected APPA_LEASE_SECONDS < APPA_JOB_LIMIT_SECONDS < APPA_VISIBILITY_TIMEOUT; "
                f"got {self.lease_seconds}, {self.job_limit_seconds}, {self.visibility_timeout}."
            )
        longest = max(self.ingest_limit_seconds, self.retry_backoff_max_seconds)
        if not longest < self.visibility_timeout:
            raise ConfigurationError(
                "Expected APPA_INGEST_LIMIT_SECONDS and APPA_RETRY_BACKOFF_MAX_SECONDS below "
                f"APPA_VISIBILITY_TIMEOUT ({self.visibility_timeout}); got {longest}."
            )
        return self
