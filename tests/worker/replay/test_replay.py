"""Replays of results: identical, or every difference named."""

import json
import shutil
from dataclasses import replace
from datetime import timedelta

import netCDF4
import numpy as np
import pytest
from runs import SMALL, Installation, make_installation
from typer.testing import CliRunner

from deploy.commands.results import replay_app
from worker.arithmetic import Arithmetic, arithmetic_in
from worker.backgrounds.restarts import RESTART_NAME, Restart, read_restart, write_restart
from worker.contract.kinds import FilteringSpec
from worker.loaded_models import load_models
from worker.observations.store.compaction import compact
from worker.replay.comparison import InputComparison, ReplayOutcome, ReplayVerdict
from worker.replay.replay import replay

LARGER = {
    "entries": [
        {"report_types": ["synop"], "variable": "2m_temperature", "error": 9.0, "source": "test"}
    ]
}


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Installation:
    return make_installation(tmp_path_factory.mktemp("replay"))


@pytest.fixture
def installation(original, tmp_path) -> Installation:
    """A copy that a test may harm."""
    shutil.copytree(original.layout.root, tmp_path / "data")
    return original.at(tmp_path / "data")


def again(installation: Installation, name: str) -> ReplayVerdict:
    return replay(installation.layout, name, checkpoints=[str(installation.checkpoint)])


def finding(verdict: ReplayVerdict, name: str) -> InputComparison:
    (found,) = [f for f in verdict.findings if f.name == name]
    return found


def assert_identical(verdict: ReplayVerdict) -> None:
    differing = [a for a in verdict.arrays if not a.same]
    assert (verdict.outcome, differing) == (ReplayOutcome.IDENTICAL, []), verdict.findings
    assert verdict.exit_code == 0


@pytest.mark.parametrize("name", ["an-cold", "an-next", "fc-next"])
def test_an_untouched_result_is_identical(original, name):
    before = sorted(original.layout.root.rglob("*"))
    verdict = again(original, name)
    assert_identical(verdict)
    assert all(f.same for f in verdict.findings), verdict.findings
    arrays = {a.name: a for a in verdict.arrays}
    assert arrays["t2m"].max_difference == 0.0
    assert ("latents" in arrays) == name.startswith("an-")
    assert ("obs_error" in arrays) == name.startswith("an-")
    assert sorted(original.layout.root.rglob("*")) == before


CHOICES = {"sampler": "ddim", "steps": 2, "guidance": "sda", "precision": "bfloat16"}


def test_what_a_job_chose_is_kept_and_made_again(installation):
    job = FilteringSpec(valid_time=_time(installation), **SMALL | CHOICES)
    made = installation.run("an-chosen", job).provenance
    settings = made["configuration"]
    assert (settings["sampler"]["name"], settings["sampler"]["steps"]) == ("ddim", 2)
    assert settings["guidance"]["method"] == "sda"
    assert made["arithmetic"]["precision"] == "bfloat16"
    assert_identical(again(installation, "an-chosen"))
    verdict = again(installation, "an-cold")  # the worker's own precision is untouched
    assert_identical(verdict)
    assert finding(verdict, "arithmetic").found["precision"] == "float32"


def test_the_precision_of_the_worker_is_made_again(installation):
    bfloat16 = replace(Arithmetic(), precision="bfloat16", attention="plain")
    with arithmetic_in(bfloat16):
        models = load_models([str(installation.checkpoint)], "cpu", bfloat16)
        worker = replace(installation, models=models)
        worker.run("an-bf16", FilteringSpec(valid_time=_time(installation), **SMALL))
    assert_identical(again(installation, "an-bf16"))
    manifest = installation.layout.manifest("an-bf16")
    manifest.write_text(manifest.read_text().replace('"bfloat16"', '"float32"'))
    assert again(installation, "an-bf16").outcome is ReplayOutcome.DIFFERENT


def test_what_came_since_is_left_out(installation):
    """Also for a job without a cut-off, and for rows that a check would have preferred."""
    installation.observe("b3", 20, later=60, update_sequence=9)
    verdict = again(installation, "an-cold")
    assert_identical(verdict)
    assert "left out: 20 observations of 1 uploads" in finding(verdict, "uploads").note
    fresh = installation.run("an-fresh", FilteringSpec(valid_time=_time(installation), **SMALL))
    old = json.loads(installation.layout.manifest("an-cold").read_text())["observations"]
    assert fresh.observations != old  # without the record the replay would have seen them


def _time(installation: Installation):
    text = json.loads(installation.layout.manifest("an-cold").read_text())["valid_time"]
    return FilteringSpec(valid_time=text).valid_time


def test_a_compacted_store_gives_the_same(installation):
    time = _time(installation)
    hour, files = timedelta(hours=1), installation.store.files
    report = compact(files, time - hour, time + hour, min_files=2, grace=timedelta(0))
    assert report.files_removed == 2
    assert_identical(again(installation, "an-cold"))


def test_changed_tables_of_the_installation_do_not_matter_and_are_named(installation):
    """Errors are kept with the rows since their arrival, parameters of checks in the manifest."""
    root = installation.layout.root
    (root / "errors.yaml").write_text(json.dumps(LARGER))  # JSON is YAML
    (root / "checks.yaml").write_text("withholding: {share: 0.5}\n")
    verdict = again(installation, "an-cold")
    assert_identical(verdict)
    assert finding(verdict, "quality control").same is False
    assert "withholding.share" in finding(verdict, "quality control").note


def test_an_upload_taken_in_again_with_other_errors_is_found(installation):
    files = installation.store.files
    files.place.remove([*(f.path for f in files.manifest("b1").files), files.batch_path("b1")])
    installation.observe("b1", 20, errors=LARGER)
    verdict = again(installation, "an-cold")
    assert (verdict.outcome, verdict.exit_code) == (ReplayOutcome.DIFFERENT, 1)
    assert finding(verdict, "uploads").note == "content changed: b1"
    assert finding(verdict, "observations").same is False
    assert "20 errors changed" in finding(verdict, "observations").note
    arrays = {a.name: a for a in verdict.arrays}
    assert arrays["latents"].max_difference > 0


def test_missing_observations_make_it_impossible(installation):
    files = installation.store.files
    files.place.remove([stored.path for stored in files.manifest("b2").files])
    verdict = again(installation, "an-cold")
    assert (verdict.outcome, verdict.exit_code) == (ReplayOutcome.IMPOSSIBLE, 2)
    assert verdict.missing == ("10 of 10 observations of the upload 'b2'",)
    assert again(installation, "fc-next").outcome is ReplayOutcome.IDENTICAL  # it needs none


def test_a_pruned_background_makes_it_impossible(installation):
    shutil.rmtree(installation.layout.analysis("an-cold"))
    verdict = again(installation, "an-next")
    assert verdict.exit_code == 2
    assert verdict.missing == ("the background: result 'an-cold' and its restart.safetensors",)
    assert finding(verdict, "background").note == "deleted since"


def test_another_background_is_named(installation):
    path = installation.layout.analysis_file("an-cold", RESTART_NAME)
    restart = read_restart(path)
    write_restart(Restart(restart.times, restart.latents + 0.5, restart.model), path)
    verdict = again(installation, "an-next")
    assert verdict.exit_code == 1
    assert finding(verdict, "background").same is False


def test_other_weights_make_it_impossible(original, tmp_path):
    verdict = replay(original.layout, "an-cold", checkpoints=[str(tmp_path / "nowhere")])
    assert verdict.exit_code == 2
    assert "checkpoint 'tiny' with the SHA-256" in verdict.missing[0]


def test_a_file_changed_after_publication_is_found_with_its_difference(installation):
    folder = installation.layout.analysis("an-cold")
    (path,) = [p for p in folder.glob("*.nc") if "_an_" in p.name]
    path.chmod(0o644)
    with netCDF4.Dataset(path, "a") as dataset:
        dataset["t2m"][0, 1, 2, 3] += np.float32(4.0)
    verdict = again(installation, "an-cold")
    assert verdict.exit_code == 1
    note = finding(verdict, "published files").note
    assert note == f"{path.name} was changed after it was published"
    (changed,) = [a for a in verdict.arrays if not a.same]
    assert (changed.file, changed.name, changed.differing) == (path.name, "t2m", 1)
    assert changed.max_difference == pytest.approx(4.0, abs=1e-4)


@pytest.mark.parametrize("with_feedback", [True, False])
def test_manifests_that_recorded_less_are_replayed_all_the_same(installation, with_feedback):
    path = installation.layout.manifest("an-cold")
    manifest = json.loads(path.read_text())
    for name in ("batches", "environment", "code_sha256", "gathered"):
        del manifest["provenance"][name]
    if not with_feedback:
        for file in manifest["files"]:
            if file["role"] == "feedback":
                (installation.layout.analysis("an-cold") / file["name"]).unlink()
    path.write_text(json.dumps(manifest))
    installation.observe("b3", 20, later=60)
    verdict = again(installation, "an-cold")
    assert_identical(verdict)
    assert finding(verdict, "code").same is None
    how = "taken from the feedback" if with_feedback else "by the time of their publication"
    assert how in finding(verdict, "uploads").note


def test_the_command_says_so_by_its_exit_status(installation):
    options = ["--data-dir", str(installation.layout.root), "--model", str(installation.checkpoint)]
    runner = CliRunner()
    done = runner.invoke(replay_app, ["an-cold", "--json", *options])
    assert done.exit_code == 0, done.output
    shown = json.loads(done.stdout)
    assert (shown["outcome"], shown["missing"]) == ("identical", [])
    table = runner.invoke(replay_app, ["an-cold", *options])
    assert "an-cold: identical" in table.stdout
    gone = runner.invoke(replay_app, ["an-none", "--json", *options])
    assert gone.exit_code == 2
    assert "there is none" in json.loads(gone.stdout)["missing"][0]
    assert runner.invoke(replay_app, ["../up", *options]).exit_code == 2
    assert runner.invoke(replay_app, ["an-cold", "--data-dir", "/nowhere"]).exit_code == 2
