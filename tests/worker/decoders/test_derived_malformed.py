"""Torn and mutated files of the derived forms end in rows or in a counted reason."""

import random

import numpy as np
import pytest

from tests.worker.decoders.accounting import assert_accounted
from tests.worker.decoders.grib_messages import message
from worker.observations.decoders.base import DecodeContext
from worker.observations.decoders.decode import decode_many_limited
from worker.observations.export import ALL_TEMPLATES
from worker.sandbox import Limits

EACH = 15


def mutated(content: bytes, rng: random.Random) -> bytes:
    """Cut short, a part replaced by noise, or some bytes changed."""
    data, kind = bytearray(content), rng.randrange(3)
    if kind == 0:
        return bytes(data[: rng.randrange(1, len(data))])
    if kind == 1:
        at = rng.randrange(len(data))
        data[at : at + rng.randrange(1, 64)] = rng.randbytes(rng.randrange(64))
        return bytes(data)
    for _ in range(rng.randrange(1, 30)):
        data[rng.randrange(len(data))] = rng.randrange(256)
    return bytes(data)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("malformed")
    rng = random.Random(0)
    contents = {t.file_name: t.write() for t in ALL_TEMPLATES.values()}
    field = 250.0 + np.arange(19 * 36.0).reshape(19, 36) / 10.0
    contents["fields.grib"] = message(field) + message(field, short="u")
    paths = []
    for name, content in contents.items():
        for number in range(EACH):
            path = folder / f"{number:03d}-{name}"
            path.write_bytes(mutated(content, rng))
            paths.append(path)
    return paths


def test_every_file_is_accounted_for(corpus):
    limits = Limits(cpu_seconds=60, wall_seconds=60.0)
    done = list(decode_many_limited(corpus, DecodeContext(), limits))
    assert [path for path, _ in done] == corpus
    for path, decoded in done:
        assert_accounted(decoded, path.name)
    crashed = sum(d.report.rejected.get("crashed", 0) for _, d in done)
    assert crashed <= len(corpus) // 20  # libraries may die of it, and only their child does
