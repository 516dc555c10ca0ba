"""Name the settings that every process of an installation shares.

Gateway and workers read them from the same `APPA_*` environment variables; what only one of them
needs is added by `GatewaySettings` and `WorkerSettings`.
"""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from model.domain.errors import ConfigurationError
from worker.contract.layout import OBSERVATIONS_CACHE_BYTES, RESULTS_CACHE_BYTES, Layout

__all__ = ["InstallationSettings"]


class InstallationSettings(BaseSettings):
    """Where an installation keeps its things, and how its processes speak; unknown names are refused."""

    model_config = SettingsConfigDict(env_prefix="APPA_", extra="forbid", frozen=True)

    redis_url: str = Field(
        default="redis://127.0.0.1:6379/0",
        description="Redis or Valkey that holds jobs and queues.",
    )
    redis_prefix: str = Field(
        default="appa", description="Put before every key of this installation."
    )
    data_dir: Path = Field(
        default=Path("appa-data"), description="Folder of uploads, observations and analyses."
    )
    results_url: str = Field(
        default="",
        description="Results are published there, such as `s3://bucket/prefix`; in the data folder "
        "when empty. Endpoint, region and credentials come from the usual `AWS_*` variables.",
    )
    results_cache_bytes: int = Field(
        default=RESULTS_CACHE_BYTES,
        ge=0,
        description="Copies of files in that bucket which the data folder keeps to be read again.",
    )
    uploads_url: str = Field(
        default="",
        description="Uploads are kept there as they were received, such as `s3://bucket/prefix`; in "
        "the data folder when empty. Credentials as for results.",
    )
    observations_url: str = Field(
        default="",
        description="The observation store is there, such as `s3://bucket/prefix`; in the data "
        "folder when empty. Credentials as for results.",
    )
    observations_cache_bytes: int = Field(
        default=OBSERVATIONS_CACHE_BYTES,
        ge=0,
        description="Copies of files in that bucket which the data folder keeps to be read again.",
    )
    job_limit_seconds: int = Field(
        default=4 * 3600, gt=0, description="A job that takes longer is stopped at its next step."
    )
    disk_low_bytes: int = Field(
        default=2**30,
        ge=0,
        description="With less free space no new work is taken; 0: no watermark.",
    )
    disk_low_percent: float = Field(
        default=0.0, ge=0, le=100, description="The same as a share of the file system."
    )
    webhook_allow_private: bool = Field(
        default=False, description="Whether webhooks may be sent to addresses of private networks."
    )
    log_format: Literal["console", "json"] = Field(
        default="console",
        description="Log lines for people, or one JSON object a line for machines.",
    )
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field(
        default="INFO", description="Least severe level that is logged."
    )

    @property
    def layout(self) -> Layout:
        """Return the paths and bucket addresses of this installation."""
        return Layout(
            self.data_dir.resolve(),
            self.results_url,
            self.results_cache_bytes,
            self.uploads_url,
            self.observations_url,
            self.observations_cache_bytes,
        )

    def with_local_broker(self) -> Self:
        """Return these settings with the broker of a running `appa up`, unless `redis_url` was given."""
        socket = self.layout.broker_socket
        if "redis_url" in self.model_fields_set or not socket.exists():
            return self
        return self.model_copy(update={"redis_url": f"unix://{socket}"})

    @field_validator("results_url", "uploads_url", "observations_url")
    @classmethod
    def _known_scheme(cls, value: str, about: ValidationInfo) -> str:
        if value and not value.startswith("s3://"):
            raise ConfigurationError(
                f"Expected APPA_{str(about.field_name).upper()} such as s3://bucket/prefix; got "
                f"'{value}'. Leave it empty to use the data folder."
            )
        return value.rstrip("/")
