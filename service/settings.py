"""Read the settings of the gateway once at start, from `APPA_*` environment variables."""

import ipaddress
from importlib.util import find_spec
from typing import Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from model.domain.errors import ConfigurationError
from worker.contract.settings import InstallationSettings

MIB = 2**20


def data_sets_installed() -> bool:
    """Return whether the extra `data` is installed, which `/v1/data` needs."""
    return find_spec("xpublish") is not None


def is_loopback(host: str) -> bool:
    """Return whether only this machine can reach `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_fetchable(url: str) -> bool:
    """Return whether an issuer's URL may be fetched: by https, or by http on this machine only."""
    try:
        parts = urlsplit(url)
        host = parts.hostname or ""
    except ValueError:
        return False
    return bool(host) and (
        parts.scheme == "https" or (parts.scheme == "http" and is_loopback(host))
    )


class GatewaySettings(InstallationSettings):
    """Everything a gateway process needs to know; unknown names are refused."""

    host: str = Field(
        default="127.0.0.1", description="Address to listen on; others need API keys."
    )
    port: int = Field(
        default=8000, ge=0, le=65535, description="Port to listen on; 0 takes a free one."
    )
    require_keys: bool | None = Field(
        default=None, description="Whether requests need an API key; unset: only off on loopback."
    )
    root_path: str = Field(default="", description="Path prefix that a reverse proxy strips.")

    max_upload_bytes: int = Field(
        default=4 * 1024 * MIB,
        gt=0,
        description="Largest accepted upload; more is refused with 413.",
    )
    max_json_bytes: int = Field(
        default=MIB, gt=0, description="Largest accepted body of any other request; more is a 413."
    )
    min_free_bytes: int = Field(
        default=64 * MIB,
        ge=0,
        description="Free space kept on the disk; uploads that would use it: 507.",
    )
    upload_idle_seconds: float = Field(
        default=60.0,
        gt=0,
        description="An upload that sends nothing for so long is dropped; so is any other body that "
        "has not arrived whole by then.",
    )
    upload_min_rate: float = Field(
        default=256.0,
        ge=0,
        description="Bytes a second an upload must send, over the idle seconds; 0: no limit.",
    )
    reader_idle_seconds: float = Field(
        default=60.0,
        gt=0,
        description="A client that takes nothing of its answer for so long is dropped.",
    )
    max_header_bytes: int = Field(
        default=128 * 1024, ge=4096, description="Most bytes of a request line and headers."
    )
    header_seconds: float = Field(
        default=15.0, gt=0, description="Time for the request line and headers to arrive."
    )
    connections_per_address: int = Field(
        default=512, ge=0, description="Open connections of one address; 0: no limit."
    )
    trusted_proxies: str = Field(
        default="127.0.0.1,::1",
        description="Addresses of reverse proxies: their connections are not counted, and they are "
        "believed whose requests they pass on.",
    )

    allow_origins: str = Field(
        default="",
        description="Origins of other web pages that may read answers, comma-separated; `*`: all.",
    )

    oidc_issuer: str = Field(
        default="",
        description="Issuer whose tokens are taken besides keys, as its tokens name it (`iss`).",
    )
    oidc_audience: str = Field(
        default="", description="What its tokens for this service have as audience (`aud`)."
    )
    oidc_scope_claim: str = Field(
        default="scope",
        min_length=1,
        description="Claim that says what a caller may do; dots lead into objects.",
    )
    oidc_scopes: dict[str, list[str]] = Field(
        default={}, description="Scopes that each value of the claim gives; JSON."
    )
    oidc_skew_seconds: int = Field(
        default=30, ge=0, le=600, description="How far the issuer's clock may be off."
    )
    oidc_timeout_seconds: float = Field(
        default=5.0, gt=0, description="Time in which the issuer has to send its keys."
    )
    oidc_refresh_seconds: float = Field(
        default=3600.0, gt=0, description="Its keys are fetched anew after so long."
    )
    oidc_refetch_seconds: float = Field(
        default=30.0, gt=0, description="Its keys are asked for no more often than this."
    )

    requests_per_minute: int = Field(
        default=1200,
        ge=0,
        description="Requests one key may make a minute; 0: no limit.",
    )
    queued_jobs_per_key: int = Field(
        default=64, ge=0, description="Unfinished jobs one key may have; 0: no limit."
    )
    bytes_per_day_per_key: int = Field(
        default=0, ge=0, description="Bytes of uploads of one key a day (UTC); 0: no limit."
    )
    rows_per_day_per_key: int = Field(
        default=0, ge=0, description="Values decoded from them a day; 0: no limit."
    )
    jobs_per_day_per_key: int = Field(
        default=0, ge=0, description="Jobs of one key a day; 0: no limit."
    )
    max_listeners: int = Field(
        default=2000, gt=0, description="Event streams one gateway process holds open at once."
    )
    query_max_rows: int = Field(
        default=1_000_000, gt=0, description="Most rows one page of an observation query has."
    )
    query_held_bytes: int = Field(
        default=512 * MIB,
        gt=0,
        description="Most bytes of rows that all answers to queries hold at once; more: 503.",
    )
    edr_max_values: int = Field(
        default=2_000_000, gt=0, description="Most values of one EDR answer; more is refused: 413."
    )
    ping_seconds: float = Field(
        default=15.0, gt=0, description="Seconds between keep-alive comments on event streams."
    )

    @property
    def keys_required(self) -> bool:
        """Return whether requests need an API key."""
        return not is_loopback(self.host) if self.require_keys is None else self.require_keys

    @property
    def origins(self) -> tuple[str, ...]:
        """Return the origins listed in `allow_origins`, without spaces and empty entries."""
        return tuple(part for text in self.allow_origins.split(",") if (part := text.strip()))

    @property
    def proxies(self) -> tuple[str, ...]:
        """Return the addresses listed in `trusted_proxies`, without spaces and empty entries."""
        return tuple(part for text in self.trusted_proxies.split(",") if (part := text.strip()))

    @model_validator(mode="after")
    def _refuse_half_an_issuer(self) -> Self:
        if not self.oidc_issuer and not self.oidc_audience and not self.oidc_scopes:
            return self
        if not (self.oidc_audience and self.oidc_scopes and is_fetchable(self.oidc_issuer)):
            raise ConfigurationError(
                "Expected all of APPA_OIDC_ISSUER (https://…), APPA_OIDC_AUDIENCE and "
                'APPA_OIDC_SCOPES ({"value of the claim": ["analyses:read"]}), or none; got '
                f"issuer '{self.oidc_issuer}', audience '{self.oidc_audience}' and "
                f"{len(self.oidc_scopes)} values.",
                issuer=self.oidc_issuer,
            )
        return self

    @model_validator(mode="after")
    def _refuse_open_gateway(self) -> Self:
        if not self.keys_required and not is_loopback(self.host):
            raise ConfigurationError(
                f"Expected API keys on an address that others can reach; got host {self.host} with "
                "APPA_REQUIRE_KEYS=false. Unset it and create a key with `appa keys create NAME "
                "--scope SCOPE`, or listen on 127.0.0.1.",
                host=self.host,
            )
        return self
