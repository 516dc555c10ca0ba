"""Pictures of the pages: of the right size, with a drawn map in them."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import published
import pytest
from browser import needs_browser
from gateway_process import StartGateway
from PIL import Image
from rich.console import Console

from lab.demo.run import DemoOptions, run_demo
from lab.demo.screenshots import shoot, system_at
from model.checkpoints.bundle import save_checkpoint
from model.domain.errors import ConfigurationError, UnknownName
from tests.model.checkpoint_parts import tiny_model
from worker.contract.layout import Layout

pytestmark = needs_browser


def test_pictures_show_what_is_published(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = start_gateway()  # pages show the newest result: here no other test has one
    wanted = {"sh-an": published.Wanted(valid=published.NOON + timedelta(days=400))}
    published.publish_all(gateway.layout, tmp_path / "published", wanted)
    paths = shoot(gateway.url, tmp_path / "images", ["map", "work"])
    assert [path.name for path in paths] == ["map.png", "work.png"]
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    assert {picture.shape for picture in pictures} == {(800, 1280, 3)}
    middle = pictures[0][250:450, 150:700].reshape(-1, 3)  # the map itself: dozens of colours
    assert len(np.unique(middle // 8, axis=0)) > 60


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="map, pole, observations"):
        shoot("http://127.0.0.1:9", tmp_path, ["moon"])
    with pytest.raises(ConfigurationError, match="Is a system running"):
        shoot("http://127.0.0.1:9", tmp_path, ["work"])


def test_only_an_address_or_a_data_folder_is_shown(tmp_path: Path) -> None:
    with system_at("http://127.0.0.1:9", []) as url:
        assert url == "http://127.0.0.1:9"
    with pytest.raises(ConfigurationError, match="appa demo --stay"), system_at("nowhere", []):
        pass


def test_a_demo_does_not_mix_its_data_with_others(tmp_path: Path) -> None:
    (tmp_path / "data" / "analyses").mkdir(parents=True)
    options = DemoOptions(output=tmp_path, data=tmp_path / "data")
    with pytest.raises(ConfigurationError, match="appa up --data"):
        run_demo(options, Console(quiet=True))


@pytest.mark.slow
def test_a_data_folder_that_was_left_is_shown(tmp_path: Path) -> None:
    save_checkpoint(tiny_model(), tmp_path / "tiny")
    layout = Layout(tmp_path / "data")
    layout.create()
    published.publish_all(layout, tmp_path / "published", {"sh-an": published.Wanted()})
    with system_at(str(layout.root), [str(tmp_path / "tiny")]) as url:
        [path] = shoot(url, tmp_path / "images", ["chance"])
    with Image.open(path) as picture:
        assert picture.size == (1280, 800)
