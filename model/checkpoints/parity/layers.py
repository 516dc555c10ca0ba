"""Single layers, date encodings, noise schedules and channel masks against their recordings."""

from collections.abc import Iterator

import torch
from torch import Tensor

from model.checkpoints.parity.case import ParityCase, split_numbers
from model.nn.attention import rotate
from model.nn.embedding import SineEncoding, local_time, year_progress
from model.nn.norm import ChannelNorm
from model.schedule import SCHEDULES

__all__ = ["dates", "layers", "masks", "schedules"]

Arrays = Iterator[tuple[str, Tensor]]


def layers(case: ParityCase) -> Arrays:
    """`layer.*`: channel norm, rotary embedding, sinusoidal encoding."""
    yield "layer.ln.y", ChannelNorm()(case.array("layer.ln.x"))
    theta = case.array("layer.rope.theta")
    rotation = torch.cos(theta), torch.sin(theta)
    for name in ("q", "k"):
        yield f"layer.rope.{name}_out", rotate(case.array(f"layer.rope.{name}"), rotation)
    features = case.outputs["layer.sine.y"].shape[-1]
    yield "layer.sine.y", SineEncoding(features).to(case.dtype)(case.array("layer.sine.x"))


def dates(case: ParityCase) -> Arrays:
    """`date.*`: position in the year, local hour of day."""
    yield "date.year_progress", year_progress(case.array("date.dates"))
    yield "date.local_time", local_time(case.array("date.dates"), case.array("date.lon"))


def schedules(case: ParityCase) -> Arrays:
    """`sched.*`: noise level against time."""
    t = case.array("sched.t")
    for name, match in case.names(r"sched\.([a-z]+)\.(.+)"):
        schedule = SCHEDULES[match[1]](*split_numbers(match[2]))
        yield name, schedule.sigma(t).reshape(case.outputs[name].shape)


def masks(case: ParityCase) -> Arrays:
    """`masks.variable_<first>_<last>`: a run of channels, both ends included."""
    for name, match in case.names(r"masks\.variable_(\d+)_(\d+)"):
        index = torch.arange(len(case.outputs[name]))
        yield name, ((index >= int(match[1])) & (index <= int(match[2]))).to(torch.uint8)
