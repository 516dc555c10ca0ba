"""Open a folder of recorded outputs in one precision, and compare arrays with it.

The folder's layout: `config.json` (sizes under one key, `orbits` beside it), the state dicts
`tiny_autoencoder.safetensors` and `tiny_backbone.safetensors`, `golden.safetensors` with all
inputs and the outputs of a float32 run, `golden_f64.safetensors` with those of a float64 run, and
optionally `float_noise.json`. States are flattened (time, latitude, longitude, channel) there,
and only there: everything is brought to this package's layout here.

A float64 array counts as equal relative to the largest recorded value, 1e-9 for a single call and
1e-6 for a whole sampler run; a float32 array within ten times the noise of the recorded float32
run itself, its distance from the float64 run.
"""

import json
import math
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from model.autoencoder import Autoencoder, AutoencoderConfig
from model.backbone import Backbone, BackboneConfig
from model.checkpoints.assemble import load_strictly, load_tensors
from model.denoiser import BlanketDenoiser
from model.domain.errors import CheckpointError

__all__ = ["ParityComparison", "NotRecorded", "ParityCase", "Status", "compare"]


class NotRecorded(CheckpointError):
    """A recording lacks what a comparison needs, so the comparison cannot be made."""


class ParityCase:
    """Recorded arrays of a folder, with the networks that produced them.

    Arguments:
        folder: The folder.
        dtype: float32 or float64: which run is repeated.

    Raises:
        CheckpointError: If the folder lacks a file or its configuration a section.
    """

    def __init__(self, folder: Path, dtype: torch.dtype) -> None:
        self.folder = folder
        self.dtype = dtype
        whole = _json(folder / "config.json")
        self.config: dict[str, Any] = _sizes(whole, folder / "config.json")
        self.orbits: list[dict[str, Any]] = whole.get("orbits", self.config.get("orbits", []))
        self.single = load_tensors(folder / "golden.safetensors")
        self.double = load_tensors(folder / "golden_f64.safetensors")
        self.assumed: dict[str, Any] = {}
        self.outputs = self.double if dtype == torch.float64 else self.single

    @property
    def label(self) -> str:
        """The precision of the run: `float32` or `float64`."""
        return str(self.dtype).removeprefix("torch.")

    @cached_property
    def noise(self) -> dict[str, float]:
        """Largest differences between recorded float32 and float64 outputs, by name."""
        found = {
            name: float((self.single[name].double() - value.double()).abs().max())
            for name, value in self.double.items()
            if name in self.single and self.single[name].shape == value.shape and value.numel()
        }
        path = self.folder / "float_noise.json"
        recorded = _json(path) if path.is_file() else {}
        return found | {name: float(v["max_abs_diff"]) for name, v in recorded.items()}

    def stated(self, key: str, first: Any) -> Any:
        """Return a configured value; if absent, the first recording's, which is noted as assumed."""
        if key not in self.config:
            self.assume(key, first)
        return self.config.get(key, first)

    def assume(self, key: str, value: Any) -> None:
        """Note a value that the configuration lacks, for the notes of mismatches."""
        self.assumed[key] = value

    def array(self, name: str) -> Tensor:
        """Return a recorded input, cast to the precision of the run; integers as they are.

        Raises:
            NotRecorded: If there is none of that name.
        """
        value = self.single.get(name, self.double.get(name))
        if value is None:
            raise NotRecorded(
                f"Expected an array '{name}' in {self.folder}; there is none.", array=name
            )
        return value.to(self.dtype) if value.is_floating_point() else value

    def names(self, pattern: str) -> Iterator[tuple[str, re.Match[str]]]:
        """Yield the recorded outputs whose whole name matches a regular expression, in order."""
        for name in sorted(self.outputs):
            match = re.fullmatch(pattern, name)
            if match is not None:
                yield name, match

    # networks

    def autoencoder(self, shape: tuple[int, int] | None = None) -> Autoencoder:
        """Return the recorded autoencoder, on its own grid or another."""
        config = AutoencoderConfig(**self.config["ae"])
        if shape is not None:
            config = replace(config, shape=shape)
        module = Autoencoder(config)
        path = self.folder / "tiny_autoencoder.safetensors"
        load_strictly(module, load_tensors(path), path)
        return module.to(self.dtype).eval().requires_grad_(False)

    def backbone(self, **changes: Any) -> Backbone:
        """Return the recorded backbone, with other settings where given."""
        config = replace(BackboneConfig(**self.config["backbone"]), **changes)
        module = Backbone(config)
        path = self.folder / "tiny_backbone.safetensors"
        load_strictly(module, load_tensors(path), path)
        return module.to(self.dtype).eval().requires_grad_(False)

    @cached_property
    def denoise(self) -> BlanketDenoiser:
        """The recorded denoiser of blankets, made once."""
        return BlanketDenoiser(self.backbone()).requires_grad_(False)

    @cached_property
    def decoder(self) -> Autoencoder:
        """The recorded autoencoder on its own grid, made once."""
        return self.autoencoder()

    # layout

    @property
    def latent_shape(self) -> tuple[int, int, int]:
        """Shape (c, h, w) of one latent state."""
        h, w = self.config["backbone"]["shape"]
        return self.config["backbone"]["in_channels"], h, w

    def blankets(self, flat: Tensor, shape: tuple[int, int] | None = None) -> Tensor:
        """Map flattened latents (B, T h w c) to (B, T, c, h, w)."""
        c, *own = self.latent_shape
        h, w = shape or own
        return flat.reshape(flat.shape[0], -1, h, w, c).movedim(-1, 2)

    def flat(self, blankets: Tensor) -> Tensor:
        """Map blankets or trajectories (B, T, c, h, w) to (B, T h w c)."""
        return blankets.movedim(2, -1).flatten(1)

    def images(self, flat: Tensor, shape: tuple[int, int]) -> Tensor:
        """Map flattened images (B, H W, C) to (B, C, H, W)."""
        states: Tensor = flat.unflatten(1, shape).movedim(-1, 1)
        return states

    def pixels(self, images: Tensor) -> Tensor:
        """Map images (B, C, H, W) to (B, H W, C)."""
        return images.movedim(1, -1).flatten(1, 2)

    def level(self, text: str | float) -> Tensor:
        """Return a noise level, rounded to float32 as recorded, with shape ()."""
        return torch.tensor(float(text), dtype=torch.float32).to(self.dtype)

    def noisy(self, name: str, sigma: Tensor) -> Tensor:
        """Return `<name>.x0` plus sigma times `<name>.eps`, as blankets or a trajectory."""
        x_t = self.array(f"{name}.x0") + sigma * self.array(f"{name}.eps")
        return self.blankets(x_t)

    @property
    def dates(self) -> Tensor:
        """Dates of the two blankets that single calls take, with shape (2, K, 4)."""
        return self.array("vit.date")

    @property
    def first_dates(self) -> Tensor:
        """Dates of the first blanket of the trajectory, with shape (1, K, 4)."""
        return self.array("traj.date")[:1, : self.config["trajectory"]["blanket_size"]]


def _json(path: Path) -> dict[str, Any]:
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"Expected JSON in {path}; {error}.", file=str(path)) from error
    if not isinstance(values, dict):
        raise CheckpointError(f"Expected an object in {path}.", file=str(path))
    return values


def _sizes(whole: dict[str, Any], path: Path) -> dict[str, Any]:
    for part in (whole, *whole.values()):
        if isinstance(part, dict) and {"ae", "backbone"} <= part.keys():
            return part
    raise CheckpointError(
        f"Expected sections 'ae' and 'backbone' in {path}; got {', '.join(whole)}.",
        file=str(path),
    )


def split_numbers(text: str) -> tuple[float, float]:
    """Return two numbers joined by a point, such as `0.001.1000.0`, as Python prints them."""
    points = [i for i, c in enumerate(text) if c == "."]
    for i in points:
        left, right = text[:i], text[i + 1 :]
        try:
            pair = float(left), float(right)
        except ValueError:
            continue
        printed = {repr(x) for x in pair} | {f"{x:g}" for x in pair}
        if left in printed and right in printed and all(map(math.isfinite, pair)):
            return pair
    raise CheckpointError(f"Expected two numbers joined by a point; got '{text}'.")


Status = Literal["matched", "missed", "not carried", "not compared", "input"]


@dataclass(frozen=True)
class ParityComparison:
    """Comparison of one recorded array with what this package computes.

    Attributes:
        name: Its name.
        run: `float32` or `float64`.
        status: Whether it was matched; `not carried` for what this package leaves out on purpose,
            `not compared` where the recording lacks what the comparison needs, `input` for what
            is given to the computations.
        error: Largest absolute difference; None where nothing was compared.
        tolerance: Largest that counts as equal.
        note: Why it was missed, or what was not compared.
    """

    name: str
    run: str
    status: Status
    error: float | None = None
    tolerance: float | None = None
    note: str = ""

    def as_dict(self) -> dict[str, str | float | None]:
        """Return a JSON-serialisable dictionary."""
        return asdict(self)


def compare(
    case: ParityCase, name: str, ours: Tensor, noise: float | None = None
) -> ParityComparison:
    """Compare one array with the recorded one.

    Arguments:
        case: The recording.
        name: Name of the array.
        ours: What was computed for it.
        noise: Noise of the recorded float32 value, where the recording has no float64 twin.
    """
    theirs = case.outputs[name]
    if ours.shape != theirs.shape:
        note = f"shape {tuple(ours.shape)} instead of {tuple(theirs.shape)}"
        return ParityComparison(name, case.label, "missed", note=note)
    allowed = _tolerance(case, name, theirs, noise)
    if not theirs.is_floating_point():
        error = float((ours.long() - theirs.long()).abs().max()) if theirs.numel() else 0.0
    else:
        error = float((ours.double() - theirs.double()).abs().max()) if theirs.numel() else 0.0
    status: Status = "matched" if error <= allowed else "missed"  # a NaN is missed
    return ParityComparison(name, case.label, status, error, allowed)


def _tolerance(case: ParityCase, name: str, theirs: Tensor, noise: float | None) -> float:
    if not theirs.is_floating_point() or not theirs.numel():
        return 0.0
    scale = float(theirs.abs().max())
    if case.dtype == torch.float64:
        return (1e-6 if name.startswith("samp.") else 1e-9) * scale
    known = case.noise.get(name, noise)
    # Where the recorded run has no noise at all, or none is known, the rounding of single
    # elementary functions, which differ between vectorised and plain code, still counts.
    floor = (4 if known == 0 else 16) * torch.finfo(torch.float32).eps * scale
    return 10 * known if known else floor
