"""Compute single components for comparison: layers, networks, the solver and satellite orbits.

The recorded ground tracks were computed in float32, where the phase n t of an orbit after many
hours has lost digits; positions may differ by that, and points that close to the edge of the
field of view may fall on the other side.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal, cast

import numpy as np
import torch
from torch import Tensor, nn

from lab.osse.places import CircularOrbit, Float, seen_from
from lab.parity.case import ParityCase, ParityComparison, compare, split_numbers
from model.autoencoder import SATURATIONS
from model.backbone import Backbone
from model.denoiser import denoiser_loss
from model.guidance.solvers import gmres
from model.nn.convolution import ChannelNorm
from model.nn.embedding import SineEncoding, local_time, year_progress
from model.nn.transformer import rotate
from model.samplers.schedule import SCHEDULES

__all__ = [
    "alternative_autoencoder",
    "alternative_backbone",
    "autoencoder",
    "backbone",
    "dates",
    "denoiser",
    "fields_of_view",
    "layers",
    "loss",
    "masks",
    "saturations",
    "schedules",
    "solve",
    "tracks",
    "unnormalised_backbone",
]

Arrays = Iterator[tuple[str, Tensor]]


def layers(case: ParityCase) -> Arrays:
    """Yield `layer.*`: channel norm, rotary embedding, sinusoidal encoding."""
    yield "layer.ln.y", ChannelNorm()(case.array("layer.ln.x"))
    theta = case.array("layer.rope.theta")
    rotation = torch.cos(theta), torch.sin(theta)
    for name in ("q", "k"):
        yield f"layer.rope.{name}_out", rotate(case.array(f"layer.rope.{name}"), rotation)
    features = case.outputs["layer.sine.y"].shape[-1]
    yield "layer.sine.y", SineEncoding(features).to(case.dtype)(case.array("layer.sine.x"))


def dates(case: ParityCase) -> Arrays:
    """Yield `date.*`: position in the year, local hour of day."""
    yield "date.year_progress", year_progress(case.array("date.dates"))
    yield "date.local_time", local_time(case.array("date.dates"), case.array("date.lon"))


def schedules(case: ParityCase) -> Arrays:
    """Yield `sched.*`: the noise level against diffusion time."""
    t = case.array("sched.t")
    for name, match in case.names(r"sched\.([a-z]+)\.(.+)"):
        schedule = SCHEDULES[match[1]](*split_numbers(match[2]))
        yield name, schedule.sigma(t).reshape(case.outputs[name].shape)


def masks(case: ParityCase) -> Arrays:
    """Yield `masks.variable_<first>_<last>`: a run of channels, both ends included."""
    for name, match in case.names(r"masks\.variable_(\d+)_(\d+)"):
        index = torch.arange(len(case.outputs[name]))
        yield name, ((index >= int(match[1])) & (index <= int(match[2]))).to(torch.uint8)


def autoencoder(case: ParityCase) -> Arrays:
    """Yield `ae.*`: encode, decode, padding and every level."""
    model = case.decoder
    _, h, w = model.latent_shape
    x = case.images(case.array("ae.x"), model.config.shape)
    z = case.images(case.array("ae.z"), (h, w))
    yield "ae.pad", model.pad(x)[:1, :2]
    encoded, stages = _levels(model.encoder.levels(), lambda: model.encode(x))
    yield "ae.encode", case.pixels(encoded)
    for i, stage in enumerate(stages):
        yield f"ae.enc_stage{i}", stage[:1]
    decoded, stages = _levels(model.decoder.levels(), lambda: model.decode(z))
    yield "ae.decode", case.pixels(decoded)
    for i, stage in enumerate(stages):
        yield f"ae.dec_stage{i}", stage[:1]
    yield "ae.forward", case.pixels(model.decode(encoded))


def saturations(case: ParityCase) -> Arrays:
    """Yield `ae.saturate.*`: of four times the recorded latents."""
    _, h, w = case.decoder.latent_shape
    z = 4 * case.images(case.array("ae.z"), (h, w))
    for name, match in case.names(r"ae\.saturate\.(\w+)"):
        saturate = SATURATIONS[match[1].lower() if match[1] == "None" else match[1]]
        yield name, saturate(z, case.decoder.config.saturation_bound)


def alternative_autoencoder(case: ParityCase) -> Arrays:
    """Yield `ae_alt.*`: the same weights on another grid."""
    high, wide = case.config["ae_alt_shape"]
    model = case.autoencoder((high, wide))
    _, h, w = model.latent_shape
    yield (
        "ae_alt.encode",
        case.pixels(model.encode(case.images(case.array("ae_alt.x"), (high, wide)))),
    )
    yield "ae_alt.decode", case.pixels(model.decode(case.images(case.array("ae_alt.z"), (h, w))))


def backbone(case: ParityCase) -> Arrays:
    """Yield `vit.*`: outputs and intermediates of the backbone."""
    model = cast(Backbone, case.denoise.backbone)
    x, t, date = case.blankets(case.array("vit.x")), case.array("vit.t"), case.array("vit.date")
    grid = model.config.tokens(model.config.shape)
    y, blocks = _levels([[block] for block in model.blocks], lambda: model(x, t, date))
    yield "vit.y", case.flat(y)
    for i, block in enumerate(blocks):
        yield f"vit.block{i}", block
    yield "vit.y_scalar_t", case.flat(model(x, t[0], date))
    yield "vit.in_proj", model.embed(x, date).unflatten(1, grid)
    yield "vit.pos_emb", model.positions(grid)
    yield "vit.time_encoding", model.diffusion_time_encoder(t)
    yield "vit.date_cond", model.dates(date)


def alternative_backbone(case: ParityCase) -> Arrays:
    """Yield `vit_alt.y`: the same weights on another latent grid."""
    h, w = case.config["backbone_alt_shape"]
    model = case.backbone(shape=(h, w))
    x = case.blankets(case.array("vit_alt.x"), (h, w))
    yield "vit_alt.y", case.flat(model(x, case.array("vit.t"), case.array("vit.date")))


def unnormalised_backbone(case: ParityCase) -> Arrays:
    """Yield `vit_noqk.y`: queries and keys not normalised."""
    x = case.blankets(case.array("vit.x"))
    y = case.backbone(qk_norm=False)(x, case.array("vit.t"), case.array("vit.date"))
    yield "vit_noqk.y", case.flat(y)


def denoiser(case: ParityCase) -> Arrays:
    """Yield `den.*`: at each recorded noise level, and two levels in one batch."""
    for i, sigma in enumerate(case.array("den.sigma")):
        x_t = case.noisy("den", sigma)
        yield f"den.out.{i}", case.flat(case.denoise(x_t, sigma, case.dates[:1]))
    x = case.blankets(case.array("vit.x"))
    yield "den.out_b2", case.flat(case.denoise(x, two_levels(case), case.dates))


def loss(case: ParityCase) -> Arrays:
    """Yield `loss.denoiser`: the training loss with the recorded draw."""
    x = case.blankets(case.array("vit.x"))
    noise = case.blankets(case.array("loss.denoiser.noise")[0])
    value = denoiser_loss(case.denoise, x, two_levels(case), case.dates, noise=noise)
    yield "loss.denoiser", value.reshape(1)


def two_levels(case: ParityCase) -> Tensor:
    """Return the noise levels of a batch of two, which the recording's notes give (0.5 and 20)."""
    levels = case.stated("batch_sigma", [0.5, 20.0])
    return torch.tensor(levels, dtype=torch.float32).flatten().to(case.dtype)


def _levels(
    levels: Sequence[Sequence[nn.Module]], call: Callable[[], Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """Return the result of a call, and the output of the last module of each level."""
    seen: list[Tensor] = []
    handles = [
        level[-1].register_forward_hook(lambda _, __, output: seen.append(output))
        for level in levels
    ]
    try:
        return call(), seen
    finally:
        for handle in handles:
            handle.remove()


def solve(case: ParityCase) -> Iterator[ParityComparison]:
    """Yield `gmres.<matrix>.it<n>`, from zero or from a recorded start, and in single precision."""
    for name, match in case.names(r"gmres\.(\w+)(\.f32)?\.it(\d+)(\.x0)?"):
        kind = torch.float32 if match[2] else torch.float64
        times = _product(case.double[f"gmres.{match[1]}"].to(kind))
        b = case.double["gmres.b"].to(kind)
        start = case.double["gmres.x0"].to(kind) if match[4] else torch.zeros_like(b)
        rest = b - times(start) if match[4] else b
        x = start + gmres(times, rest, iterations=int(match[3])).x
        double = case.double.get(f"gmres.{match[1]}.it{match[3]}")
        noise = None
        if match[2] and double is not None:
            noise = float((case.outputs[name].double() - double).abs().max())
        yield compare(case, name, x.to(case.outputs[name].dtype), noise)


def _product(matrix: Tensor) -> Callable[[Tensor], Tensor]:
    return lambda v: (matrix @ v[..., None])[..., 0]


_FULL_GRID = (721, 1440)
_RADIUS = 5.0
"""Radius in degrees where the name gives none."""


def tracks(case: ParityCase) -> Iterator[ParityComparison]:
    """Yield `orbit.<i>`: latitude and longitude below satellite i."""
    for name, match in case.names(r"orbit\.(\d+)"):
        orbit = case.orbits[int(match[1])]
        ours, theirs = _track(orbit), case.outputs[name].double().numpy()
        if ours.shape != theirs.shape:
            note = f"shape {ours.shape} instead of {theirs.shape}"
            yield ParityComparison(name, case.label, "missed", note=note)
            continue
        # The chord between corresponding points, as an angle: longitudes mean little at a pole.
        a, b = (_vectors(points.reshape(-1, 2)) for points in (ours, theirs))
        error = float(np.rad2deg(np.linalg.norm(a - b, axis=-1)).max())
        yield _outcome(case, name, error, _slack(orbit), "degrees of arc")


def fields_of_view(case: ParityCase) -> Iterator[ParityComparison]:
    """Yield `orbit.coarse.*` and `orbit.full.*`: the points that are seen each hour."""
    for name, match in case.names(r"orbit\.coarse\.(\d+)x(\d+)\.(\d+)\.(fov|dt)([\d.]+)"):
        orbit = case.orbits[int(match[3])]
        radius = float(match[5]) if match[4] == "fov" else _RADIUS
        grid = int(match[1]), int(match[2])
        hours = [_distances(hour, grid) for hour in _track(orbit)]
        if match[4] == "dt":
            step = int(match[5])
            hours = hours[step - 1 :: step]
        yield _seen(case, name, np.stack(hours), radius, orbit, case.outputs[name].numpy() != 0)
    names = list(case.names(r"orbit\.full\.(\d+)"))
    for name, match in names:
        orbit = case.orbits[0] | {"observation_time": len(names)}
        distance = _distances(_track(orbit)[int(match[1])], _FULL_GRID)
        theirs = np.zeros(distance.size, dtype=bool)
        theirs[case.outputs[name].numpy()] = True
        yield _seen(case, name, distance, _RADIUS, orbit, theirs.reshape(distance.shape))


def _track(orbit: dict[str, Any]) -> Float:
    satellite = CircularOrbit(
        orbit["orbital_altitude"], orbit["inclination"], orbit["initial_phase"]
    )
    return satellite.hourly_track(orbit["observation_time"], orbit["obs_freq"], orbit["delay"])


def _distances(track: Float, grid: tuple[int, int]) -> Float:
    rows, columns = grid
    latitude = np.linspace(90.0, -90.0, rows)
    longitude = np.arange(columns) * 360.0 / columns
    return seen_from(track, *np.meshgrid(latitude, longitude, indexing="ij"))


def _slack(orbit: dict[str, Any]) -> float:
    """Return degrees by which float32 arithmetic may move a recorded satellite."""
    satellite = CircularOrbit(orbit["orbital_altitude"], orbit["inclination"])
    seconds = 3600 * (orbit["delay"] + orbit["observation_time"])
    phase = np.rad2deg(satellite.mean_motion * seconds)
    return float(4 * torch.finfo(torch.float32).eps * max(phase, 360.0))


def _seen(
    case: ParityCase,
    name: str,
    distance: Float,
    radius: float,
    orbit: dict[str, Any],
    theirs: np.ndarray,
) -> ParityComparison:
    if distance.shape != theirs.shape:
        note = f"shape {distance.shape} instead of {theirs.shape}"
        return ParityComparison(name, case.label, "missed", note=note)
    differing = (distance <= radius) != theirs
    edge = np.abs(distance[differing] - radius)
    note = f"{int(differing.sum())} of {int(theirs.sum())} points differ, by degrees from the edge"
    return _outcome(case, name, float(edge.max()) if edge.size else 0.0, _slack(orbit), note)


def _outcome(
    case: ParityCase, name: str, error: float, allowed: float, note: str
) -> ParityComparison:
    status: Literal["matched", "missed"] = "matched" if error <= allowed else "missed"
    return ParityComparison(name, case.label, status, error, allowed, note)


def _vectors(points: Float) -> Float:
    phi, lam = np.deg2rad(points[:, 0]), np.deg2rad(points[:, 1])
    return np.stack((np.cos(phi) * np.cos(lam), np.cos(phi) * np.sin(lam), np.sin(phi)), axis=-1)
