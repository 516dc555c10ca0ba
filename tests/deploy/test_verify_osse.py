"""`appa verify osse` on a checkpoint of a few numbers: tables, JSON, picture, going on."""

import json
import re
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from deploy.commands.verify import app
from lab.osse import skill
from lab.osse.summary import SEASONS, season
from lab.skill.experiments import seasons_first
from model.checkpoints.bundle import save_checkpoint
from tests.model.osse.small_world import NETWORK, small_model, write_truth


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    model = small_model()
    save_checkpoint(model, folder / "bundle")
    write_truth(model, folder / "truth.nc", 30)
    return folder


@pytest.fixture(autouse=True)
def few_observations(monkeypatch):
    few = partial(skill.SkillSettings, network=NETWORK, anomalies=30)
    monkeypatch.setattr(skill, "SkillSettings", few)


def run(world, *options, code=0):
    command = ["osse", "--checkpoint", str(world / "bundle"), "--truth", str(world / "truth.nc")]
    small = ["--members", "2", "--window", "6", "--lead", "5", "--states", "3"]
    result = CliRunner().invoke(app, [*command, *small, "--precision", "float32", *options])
    assert result.exit_code == code, result.output
    return result


def test_everything_is_printed_drawn_and_kept(world, tmp_path):
    keep, picture = tmp_path / "skill.json", tmp_path / "skill.png"
    first = run(world, "--starts", "2", "--keep", str(keep), "--picture", str(picture))
    for words in (
        "2 starts, 2021-03-04",
        "never trained on",
        "windowed OI",
        "Analyses by group of channels",
        "Forecast, +5 h, MAM",
        "power spectra",
        "Ranks of withheld",
        "Goals",
        "not judged",
    ):
        assert words in first.stdout, words
    with Image.open(picture) as drawn:
        assert re.match(
            r"Skill · 2021-03-04 \d\d to 20.* UTC · .* · simulated", drawn.info["Title"]
        )
    assert "(kept)" not in first.stderr
    kept = json.loads(keep.read_text())
    keep.write_text(json.dumps(kept | {"starts": kept["starts"][1:]}))
    part = run(world, "--starts", "2", "--keep", str(keep), "--finished", "--json")
    assert json.loads(part.stdout)["starts"][0]["end"] == kept["starts"][1]["end"].replace(
        "Z", "+00:00"
    )
    keep.write_text(json.dumps(kept))
    again = run(world, "--starts", "2", "--keep", str(keep), "--json")
    assert again.stderr.count("(kept)") == 2
    values = json.loads(again.stdout)
    assert [s["season"] for s in values["starts"]] == ["MAM", "MAM"]
    methods = {m["method"]: m for m in values["methods"]}
    means = np.mean([s["errors"]["filtering"] for s in values["starts"]])
    assert methods["filtering"]["mean"] == pytest.approx(means)
    assert values["by_channel"]["filtering"] == pytest.approx(
        np.mean([s["errors"]["filtering"] for s in values["starts"]], axis=0)
    )
    assert values["memory"][0] > 0.1
    assert values["unseen"] is True
    assert {g["goal"] for g in values["goals"]} >= {"≤ 0.25", "0.8 to 1.2"}


def test_a_short_truth_allows_few_starts_and_a_period_is_cut_out(world):
    result = run(world, "--first", "2021-03-04T10", "--last", "2021-03-05T03", "--json")
    values = json.loads(result.stdout)
    # 18 hours less a window of 6 and 5 of forecast leave 8 analysis times: two windows.
    ends = [s["end"] for s in values["starts"]]
    assert ends == ["2021-03-04T15:00:00+00:00", "2021-03-04T22:00:00+00:00"]


def test_the_first_starts_of_many_are_of_different_seasons():
    ends = [datetime(2003, 7, 20) + timedelta(days=30 * i) for i in range(12)]
    order = seasons_first(ends)
    assert sorted(order) == ends
    assert {season(end.replace(tzinfo=UTC)) for end in order[:4]} == set(SEASONS)
    assert seasons_first(ends[:2]) == ends[:2]


def test_a_quick_run_names_the_figures_that_a_checkpoint_is_judged_by(world):
    values = json.loads(run(world, "--quick", "--json").stdout)
    methods = {m["method"]: m["mean"] for m in values["methods"]}
    assert not any("warm" in method for method in methods)
    assert not any("warm" in goal["what"] for goal in values["goals"])
    assert len(values["starts"]) == 2
    cold = values["cold"]
    assert cold["filtering"] == pytest.approx(methods["filtering"])
    assert cold["windowed_oi"] == pytest.approx(methods["windowed OI"])
    assert cold["ablation"] == pytest.approx(methods["filtering without the network"])
    assert cold["ablation"] != cold["filtering"]
    assert set(values["denoiser"]["relative_error"]) == {"0.1", "0.2", "0.5", "1.0", "2.0", "5.0"}
    # Too few hours are left for cycles between a window and a day of forecast.
    assert values["cycled"] is None


def test_cycles_are_scored_and_need_enough_truth(world, tmp_path):
    write_truth(small_model(), tmp_path / "longer.nc", 34)
    longer = ("--starts", "1", "--truth", str(tmp_path / "longer.nc"))
    values = json.loads(run(world, *longer, "--cycles", "0.25", "--json").stdout)
    names = ["filtering", "wind", "humidity", "forecast_24h", "spread_over_error", "cycle_seconds"]
    assert all(values["cycled"][name] > 0 for name in names)
    assert values["cycled"]["continued"] is False
    done = run(world, *longer, "--cycles", "5", code=1)
    assert "Expected 7 days of truth for 5 days of cycles" in str(done.exception)
    assert "at most 0.25 days" in str(done.exception)
    assert "start 1" not in done.output  # refused before anything was computed
