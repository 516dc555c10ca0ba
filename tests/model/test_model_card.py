"""The model card that ships says what a model card must, and nothing is left to fill in."""

import re

from model.checkpoints.bundle import resolve

FILL_IN = re.compile(r"\b(TODO|TBD|XXX|FIXME)\b|\?\?|\bN/A\b")


def test_a_model_card_ships_with_data_training_compute_skill_and_limits():
    text = (resolve("appa-t31") / "README.md").read_text()
    headings = [line.lower() for line in text.splitlines() if line.startswith("## ")]
    for topic in ("data", "training", "compute", "skill", "limits"):
        assert any(topic in heading for heading in headings), topic
    for part in text.split("\n## ")[1:]:
        assert len(part.split()) > 5, part
    assert not FILL_IN.search(text)
    assert "simulated" in text
    assert "not for real decisions" in text.lower()
