"""Autoencoder, backbone and denoiser against their recorded outputs."""

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from model.checkpoints.parity.case import ParityCase
from model.denoiser import denoiser_loss
from model.nn.saturation import SATURATIONS

__all__ = [
    "alternative_autoencoder",
    "alternative_backbone",
    "autoencoder",
    "backbone",
    "denoiser",
    "loss",
    "saturations",
    "unnormalised_backbone",
]

Arrays = Iterator[tuple[str, Tensor]]


def autoencoder(case: ParityCase) -> Arrays:
    """`ae.*`: encode, decode, padding and every level."""
    model = case.decoder
    _, h, w = model.latent_shape
    x = case.images(case.array("ae.x"), model.config.shape)
    z = case.images(case.array("ae.z"), (h, w))
    yield "ae.pad", model.pad(x)[:1, :2]
    encoded, stages = _levels(model.encoder.descent, lambda: model.encode(x))
    yield "ae.encode", case.pixels(encoded)
    for i, stage in enumerate(stages):
        yield f"ae.enc_stage{i}", stage[:1]
    decoded, stages = _levels(model.decoder.ascent, lambda: model.decode(z))
    yield "ae.decode", case.pixels(decoded)
    for i, stage in enumerate(stages):
        yield f"ae.dec_stage{i}", stage[:1]
    yield "ae.forward", case.pixels(model.decode(encoded))


def saturations(case: ParityCase) -> Arrays:
    """`ae.saturate.*`: of four times the recorded latents."""
    _, h, w = case.decoder.latent_shape
    z = 4 * case.images(case.array("ae.z"), (h, w))
    for name, match in case.names(r"ae\.saturate\.(\w+)"):
        saturate = SATURATIONS[match[1].lower() if match[1] == "None" else match[1]]
        yield name, saturate(z, case.decoder.config.saturation_bound)


def alternative_autoencoder(case: ParityCase) -> Arrays:
    """`ae_alt.*`: the same weights on another grid."""
    high, wide = case.config["ae_alt_shape"]
    model = case.autoencoder((high, wide))
    _, h, w = model.latent_shape
    yield (
        "ae_alt.encode",
        case.pixels(model.encode(case.images(case.array("ae_alt.x"), (high, wide)))),
    )
    yield "ae_alt.decode", case.pixels(model.decode(case.images(case.array("ae_alt.z"), (h, w))))


def backbone(case: ParityCase) -> Arrays:
    """`vit.*`: outputs and intermediates."""
    model = case.denoise.backbone
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
    """`vit_alt.y`: the same weights on another latent grid."""
    h, w = case.config["backbone_alt_shape"]
    model = case.backbone(shape=(h, w))
    x = case.blankets(case.array("vit_alt.x"), (h, w))
    yield "vit_alt.y", case.flat(model(x, case.array("vit.t"), case.array("vit.date")))


def unnormalised_backbone(case: ParityCase) -> Arrays:
    """`vit_noqk.y`: queries and keys not normalised."""
    x = case.blankets(case.array("vit.x"))
    y = case.backbone(qk_norm=False)(x, case.array("vit.t"), case.array("vit.date"))
    yield "vit_noqk.y", case.flat(y)


def denoiser(case: ParityCase) -> Arrays:
    """`den.*`: at each recorded noise level, and two levels in one batch."""
    for i, sigma in enumerate(case.array("den.sigma")):
        x_t = case.noisy("den", sigma)
        yield f"den.out.{i}", case.flat(case.denoise(x_t, sigma, case.dates[:1]))
    x = case.blankets(case.array("vit.x"))
    yield "den.out_b2", case.flat(case.denoise(x, two_levels(case), case.dates))


def loss(case: ParityCase) -> Arrays:
    """`loss.denoiser`: with the recorded draw."""
    x = case.blankets(case.array("vit.x"))
    noise = case.blankets(case.array("loss.denoiser.noise")[0])
    value = denoiser_loss(case.denoise, x, two_levels(case), case.dates, noise=noise)
    yield "loss.denoiser", value.reshape(1)


def two_levels(case: ParityCase) -> Tensor:
    """The noise levels of a batch of two, which the recording's notes give (0.5 and 20)."""
    levels = case.config.get("batch_sigma", [0.5, 20.0])
    return torch.tensor(levels, dtype=torch.float32).flatten().to(case.dtype)


def _levels(
    levels: nn.ModuleList | list[list[nn.Module]], call: Callable[[], Tensor]
) -> tuple[Tensor, list[Tensor]]:
    """A call's result, and what the last module of each level gave meanwhile."""
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
