"""Name the settings that every process of an installation shares.

Gateway and workers read them from the same `APPA_*` environment variables; what only one of them
needs is added by `GatewaySettings` and `WorkerSettings`.
"""

from pathlib import Path
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict

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
