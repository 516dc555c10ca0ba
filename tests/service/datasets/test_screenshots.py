"""Pictures of the pages: of the right size, with a drawn map in them."""

from datetime import timedelta
from pathlib import Path

import numpy as np
import published
import pytest
from browser import needs_browser
from gateway_process import StartGateway
from PIL import Image

from lab.demo.screenshots import shoot
from model.domain.errors import ConfigurationError, UnknownName

pytestmark = needs_browser


def test_pictures_show_what_is_published(start_gateway: StartGateway, tmp_path: Path) -> None:
    gateway = start_gateway()  # pages show the newest result: here no other test has one
    wanted = {"sh-an": published.Wanted(valid=published.NOON + timedelta(days=400))}
    published.publish_all(gateway.layout, tmp_path / "published", wanted)
    paths = shoot(gateway.url, tmp_path / "images", ["map", "work"])
    assert [path.name for path in paths] == ["map.png", "work.png"]
    pictures = [np.asarray(Image.open(path).convert("RGB")) for path in paths]
    assert {picture.shape for picture in pictures} == {(800, 1280, 3)}
    middle = pictures[0][250:450, 150:700].reshape(-1, 3)  # the map itself: hundreds of colours
    assert len(np.unique(middle // 8, axis=0)) > 200


def test_what_cannot_be_shown_is_said(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="map, pole, observations"):
        shoot("http://127.0.0.1:9", tmp_path, ["moon"])
    with pytest.raises(ConfigurationError, match="Is a system running"):
        shoot("http://127.0.0.1:9", tmp_path, ["work"])
