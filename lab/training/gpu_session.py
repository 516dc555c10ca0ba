"""Train the denoiser of the bundled model in minutes on one GPU, or in hours on a CPU.

``python -m lab.training.gpu_session OUTPUT --minutes 9 --device cuda`` does all of it in one process:

1. simulate many truths side by side (`NatureModel` mapped over seeds) and encode them at once; only
   float16 latents stay, on the device (a year of hours is 0.5 GB);
2. train the learned correction of the closed form on them with large batches, in bfloat16 where the
   device supports it in hardware, at one noise level for a blanket and at a level per state
   (`lab.training.denoiser_batches`), with a constant rate and a linear cool-down at the end, as good
   as a cosine and usable at every stop (arXiv 2603.25687), resuming a session that OUTPUT holds, or with
   ``--tune`` from the network of the checkpoint;
3. compare it with the closed form by noise level and as a forecast, on hours it has not seen;
4. write weights in parts of at most 16 MB, the learning curve and what was done.

An interrupted session leaves its last state; the same command resumes it. ``--latents FILE``
reads latents from disk (`save_latents`) instead of simulating. Needs jcm for step 1; no network.
"""

import argparse
import json
import math
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from lab.training.denoiser_batches import AnalysisErrors, Batches, ReusedBatches
from lab.training.denoiser_skill import evaluate, evaluate_forecast
from lab.training.latent_years import LatentYears, read_latents
from lab.training.loop import MatrixOptimiser, averaged
from lab.training.preconditioning import (
    learn_differences,
    measure_error_weights,
    restore_inputs,
)
from model.backbone import Backbone, BackboneConfig
from model.checkpoints.bundle import load_checkpoint
from model.denoiser import BlanketDenoiser, native_precision, reduced_precision
from model.domain.errors import CheckpointError, ConfigurationError
from model.domain.files import open_atomic, write_atomic
from model.domain.windows import HOUR
from model.gaussian_prior import ZonalGaussianPrior
from model.latent_model import LatentModel
from model.nn.embedding import date_rows
from model.nn.transformer import TransformerBlock
from worker.idle_memory import keep_freed_memory

__all__ = [
    "Session",
    "load_weights",
    "save_weights",
    "simulate",
    "train",
]

PART_BYTES = 16_000_000
KEEP_SECONDS = 60
OPEN_GATE = 0.5
"""Initial gate of each block, the weight of its output."""
Log = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Session:
    """Settings of one session.

    Attributes:
        minutes: Wall clock of the whole session.
        device: Of torch; jax takes its own default device.
        seeds: Truths simulated side by side; the first is held out.
        days: Length of each truth.
        spin_up_days: Simulated before, from rest, and discarded.
        simulate_share: Share of the minutes that simulation may take.
        width: Features of a token.
        depth: Blocks.
        local: Rows and columns that each block mixes by a convolution.
        batch: Blankets of a step.
        levels: Noise levels each blanket is used at.
        learning_rate: Of everything but hidden matrices, constant between the warm-up and the
            cool-down.
        matrix_rate: Of hidden matrices (`MatrixOptimiser`).
        warmup: Steps of the warm-up.
        cool_down: Share of the training time at its end during which the rate falls to zero.
        ema_decay: Of the averaged weights.
        sigma: Lowest and highest noise level, drawn log-uniformly.
        unequal: Share of a batch whose states carry different noise.
        tune: Whether a new session begins with the network of the checkpoint instead of an untrained one.
        weighted: Whether a session that begins with a trained network weights errors by the size that
            those of this network have in forecasts (`lab.training.preconditioning`).
        uses: Steps that each batch is used in; 2 halves the cost of drawing batches on a processor.
        compiled: Whether blocks are compiled.
        steps: At most, in this session; None for as many as the minutes allow.
    """

    minutes: float
    device: str = "cpu"
    seeds: int = 24
    days: int = 365
    spin_up_days: int = 150
    simulate_share: float = 0.35
    width: int = 384
    depth: int = 6
    batch: int = 64
    levels: int = 2
    local: int = 5
    learning_rate: float = 1e-3
    matrix_rate: float = 2e-3
    warmup: int = 50
    cool_down: float = 0.25
    ema_decay: float = 0.995
    sigma: tuple[float, float] = (0.08, 5.0)
    unequal: float = 0.5
    tune: bool = False
    weighted: bool = False
    uses: int = 1
    compiled: bool = False
    steps: int | None = None

    def backbone(self, model: LatentModel) -> BackboneConfig:
        """Return the sizes of the network: one token per latent column, its whole blanket inside."""
        channels, height, width = model.card.latent_shape
        return BackboneConfig(
            in_channels=channels,
            blanket_size=model.blanket_size,
            shape=(height, width),
            mod_features=128,
            hid_channels=self.width,
            hid_blocks=self.depth,
            patch_size=(model.blanket_size, 1, 1),
            attention_heads=8,
            noise_per_state=self.unequal > 0,
            local_size=self.local,
        )


def simulate(settings: Session, model: LatentModel, deadline: float, log: Log) -> LatentYears:
    """Run truths side by side until `settings.days` or the deadline, and encode their hours.

    Arguments:
        settings: Number and length of the truths.
        model: Whose autoencoder encodes, on the device of the session.
        deadline: Value of `time.monotonic()` after which no further day is begun.
        log: Receives progress.
    """
    # jax and jcm are needed here alone; a session that reads latents runs without them.
    import jax

    from lab.training.nature_run import NatureModel

    start = datetime(2000, 1, 1, tzinfo=UTC)
    nature = NatureModel(start - timedelta(days=settings.spin_up_days, hours=1))
    states = [nature.initial(seed) for seed in range(settings.seeds)]
    state = jax.tree.map(lambda *leaves: jax.numpy.stack(leaves), *states)
    day = jax.jit(jax.vmap(partial(nature.advance, hours=24), in_axes=(0, None)))
    parts: list[Tensor] = []
    for number in range(-settings.spin_up_days, settings.days):
        if time.monotonic() > deadline and len(parts) >= 3:
            break
        state, fields = day(state, nature.forcing)
        if number >= 0:
            parts.append(_encode(model, fields, settings.device))
        if number % 30 == 0:
            log({"simulated_day": number, "truths": settings.seeds})
    latents = torch.cat(parts, dim=1)
    if not latents.isfinite().all():
        raise FloatingPointError("A truth blew up; choose other seeds.")
    hours = [start + i * HOUR for i in range(latents.shape[1])]
    return LatentYears(latents, date_rows(hours))


@torch.no_grad()
def _encode(model: LatentModel, fields: dict[str, Any], device: str) -> Tensor:
    """Encode a day of every truth: fields (S, 24, ...) to latents (S, 24, c, h, w), float16."""
    arrays = {name: _to_torch(values, device) for name, values in fields.items()}
    rows = [
        arrays[c.variable] if c.level is None else arrays[c.variable][:, :, _level(model, c.level)]
        for c in model.channels
    ]
    states = torch.stack(rows, dim=2)
    with reduced_precision(torch.device(device)):
        latents = [model.encode(truth).half() for truth in states]
    return torch.stack(latents)


def _level(model: LatentModel, level: int) -> int:
    return model.card.levels.index(level)


def _to_torch(array: Any, device: str) -> Tensor:
    """Hand a jax array to torch, without a copy where both are on the same GPU."""
    if device.startswith("cuda") and "cuda" in str(next(iter(array.devices()))).lower():
        shared: Tensor = torch.utils.dlpack.from_dlpack(array)
        return shared
    return torch.from_numpy(np.array(array)).to(device)


def train(
    settings: Session,
    model: LatentModel,
    data: LatentYears,
    output: Path,
    deadline: float,
    log: Log,
    errors: AnalysisErrors | None = None,
) -> BlanketDenoiser:
    """Train until the deadline, resuming from `output`; return the averaged denoiser.

    The rate falls to zero over the last `cool_down` of the remaining time. Batches and noise are
    seeded by the step, so that a resumed session does not repeat earlier ones.
    """
    base = cast(ZonalGaussianPrior, model.denoise.base).float()
    first = _trained if settings.tune else _untrained
    backbone = first(settings, model).to(settings.device)
    learn_differences(backbone)
    ema = averaged(backbone, settings.ema_decay)
    optimiser = MatrixOptimiser(backbone, settings.matrix_rate, settings.learning_rate)
    step, seen = _resume(output / "state.pt", backbone, ema, optimiser)
    precision = native_precision(torch.device(settings.device))
    weights = None
    if settings.weighted and (step or settings.tune):
        network = BlanketDenoiser(ema.module, base, precision)
        weights = measure_error_weights(network, data, *_cycled_forecast(model))
    if settings.compiled:
        backbone.compile_blocks()
    drawn = Batches(
        data,
        base,
        blankets=settings.batch,
        levels=settings.levels,
        sigma=settings.sigma,
        unequal=settings.unequal,
        device=settings.device,
        errors=errors,
    )
    batches = ReusedBatches(drawn, settings.uses)
    device = torch.device(settings.device)
    began, kept, counted, total = time.monotonic(), time.monotonic(), 0, 0.0
    last = math.inf if settings.steps is None else step + settings.steps
    while (now := time.monotonic()) < deadline and step < last:
        share = (now - began) / max(deadline - began, 1e-9)
        batch = batches.draw(step)
        with reduced_precision(device, precision):
            correction = backbone(batch.seen, batch.noise_time, batch.date)
        error = correction.float() - batch.target
        if weights is not None:
            error = weights(error)
        loss = (batch.weight * error.square()).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(backbone.parameters(), 1.0)
        optimiser.step(_rate(settings, step, share))
        ema.update_parameters(backbone)
        step, seen, counted = step + 1, seen + len(batch.x), counted + 1
        total += float(loss.detach())
        if counted == 50:
            log({"step": step, "samples": seen, "loss": round(total / counted, 4)})
            counted, total = 0, 0.0
        if now - kept > KEEP_SECONDS:
            _keep(output / "state.pt", step, seen, backbone, ema, optimiser)
            kept = now
    _keep(output / "state.pt", step, seen, backbone, ema, optimiser)
    restore_inputs(ema.module)
    return BlanketDenoiser(ema.module, base, precision)


def _untrained(settings: Session, model: LatentModel) -> Backbone:
    """Return an untrained backbone with zero output and gates at `OPEN_GATE`.

    As released, gates start at about 0.05, where the output of the blocks is too weak for the last
    layer to learn from. At 0.5 the loss falls twice as far in the first thousand samples.
    """
    backbone = Backbone(settings.backbone(model))
    nn.init.zeros_(backbone.out_proj.weight)
    nn.init.zeros_(backbone.out_proj.bias)
    with torch.no_grad():
        for block in backbone.blocks:
            last = cast(nn.Linear, cast(TransformerBlock, block).ada_zero[-1])
            last.bias.chunk(4)[2].fill_(OPEN_GATE)
    return backbone


def _trained(settings: Session, model: LatentModel) -> Backbone:
    """Return the backbone of the checkpoint, to train on from its weights.

    Raises:
        ConfigurationError: If it has not the size of the session's.
    """
    own, config = cast(Backbone, model.denoise.backbone), settings.backbone(model)
    if own.config != config:
        differ = [n for n, value in asdict(config).items() if asdict(own.config)[n] != value]
        raise ConfigurationError(
            f"Expected a checkpoint with the network of the session; {', '.join(differ)} differ. Set "
            "--width, --depth and --local as in its card, or train without --tune."
        )
    backbone = Backbone(config)
    backbone.load_state_dict(own.state_dict())
    return backbone


def _cycled_forecast(model: LatentModel) -> tuple[int, float]:
    """Return the number of known states, and their noise level, in the forecasts of its cycles."""
    cycled = model.card.background
    if cycled is None:
        return model.blanket_size // 2, 0.3
    return model.blanket_size - cycled.hours, cycled.sigma


def _rate(settings: Session, step: int, share: float) -> float:
    """Return the learning rate over its peak after `share` of the training time."""
    cooling = min((1 - share) / max(settings.cool_down, 1e-9), 1.0)
    return min((step + 1) / settings.warmup, 1.0) * max(cooling, 0.0)


def _keep(path: Path, step: int, seen: int, *parts: Any) -> None:
    with open_atomic(path) as file:
        torch.save({"step": step, "seen": seen, "parts": [p.state_dict() for p in parts]}, file)


def _resume(path: Path, *parts: Any) -> tuple[int, int]:
    if not path.exists():
        return 0, 0
    state = torch.load(path, weights_only=True, map_location="cpu")
    for part, values in zip(parts, state["parts"], strict=True):
        part.load_state_dict(values)
    return int(state["step"]), int(state["seen"])


def save_weights(folder: Path, weights: dict[str, Tensor], about: dict[str, Any]) -> None:
    """Write weights in float16 as safetensors of at most 16 MB each, described by `session.json`."""
    for number, part in enumerate(_parts(weights)):
        save_file(part, folder / f"weights-{number:02d}.safetensors")
    write_atomic(folder / "session.json", json.dumps(about, indent=1))


def _parts(weights: dict[str, Tensor]) -> Iterator[dict[str, Tensor]]:
    part: dict[str, Tensor] = {}
    size = 0
    for name, tensor in weights.items():
        stored = tensor.detach().cpu().half().contiguous()
        if part and size + stored.nbytes > PART_BYTES:
            yield part
            part, size = {}, 0
        part[name] = stored
        size += stored.nbytes
    yield part


def load_weights(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `save_weights` wrote.

    Raises:
        CheckpointError: If the folder holds no session.
    """
    if not (folder / "session.json").exists():
        raise CheckpointError(f"Expected a finished training session in {folder}.")
    weights: dict[str, Tensor] = {}
    for path in sorted(folder.glob("weights-*.safetensors")):
        weights |= load_file(path)
    return weights, json.loads((folder / "session.json").read_text())


def read_errors(paths: list[Path], model: LatentModel, data: LatentYears) -> AnalysisErrors | None:
    """Read background errors from files of `lab.training.background_errors`; None without any.

    Arguments:
        paths: The files.
        model: A checkpoint with background errors.
        data: The truth of those backgrounds.

    Raises:
        CheckpointError: If the model has no background errors.
    """
    if not paths:
        return None
    if model.background_errors is None:
        raise CheckpointError(
            f"Expected a checkpoint that knows the errors of its backgrounds; {model.card.name} does "
            "not. Give the one that lab.training.background_errors wrote beside them."
        )
    states = [torch.load(path, weights_only=True) for path in paths]
    date = torch.cat([state["date"] for state in states])
    hours = {tuple(row): hour for hour, row in enumerate(data.dates.tolist())}
    first = torch.tensor([hours[tuple(row)] for row in date[:, 0].tolist()])
    x, _ = data.blankets(torch.zeros_like(first), first, date.shape[1])
    missed = torch.cat([state["values"] for state in states]).float()
    prior = cast(ZonalGaussianPrior, model.denoise.base).float()
    device = prior.variance.device
    x, missed, date = (values.to(device) for values in (x, missed, date))
    return AnalysisErrors(prior, model.background_errors, x, missed, date, states[0]["sigma"])


def run(
    settings: Session,
    output: Path,
    checkpoint: str,
    latents: Path | None,
    errors: list[Path],
) -> dict[str, Any]:
    """Do a whole session; return what `session.json` holds."""
    began = time.monotonic()
    end = began + 60 * settings.minutes
    output.mkdir(parents=True, exist_ok=True)

    def log(record: dict[str, Any]) -> None:
        line = json.dumps({"seconds": round(time.monotonic() - began, 1), **record})
        print(line, flush=True)
        with (output / "curve.jsonl").open("a") as file:
            file.write(line + "\n")

    model = load_checkpoint(checkpoint).to(settings.device)
    keep_freed_memory(model.window_bytes)
    if latents is None:
        until = began + 60 * settings.minutes * settings.simulate_share
        data = simulate(settings, model, until, log)
    else:
        data = read_latents(latents)
    reserve = min(60.0, 0.1 * 60 * settings.minutes)
    denoiser = train(
        settings, model, data, output, end - reserve, log, read_errors(errors, model, data)
    )
    held_out = torch.linspace(0, data.latents.shape[1] - model.blanket_size, 16).long()
    if data.held_out:
        last = min(data.held_out[0].stop, data.latents.shape[1]) - model.blanket_size
        held_out = torch.arange(data.held_out[0].start, last, 48)
    relative = evaluate(denoiser, data, held_out, model.blanket_size)
    forecast = {}
    if settings.unequal:
        found = evaluate_forecast(denoiser, data, held_out, known=model.blanket_size // 2)
        forecast = {lead: [round(e, 4) for e in pair] for lead, pair in found.items()}
    state = torch.load(output / "state.pt", weights_only=True, mmap=True)
    about = {
        "settings": asdict(settings),
        "steps": int(state["step"]),
        "samples": int(state["seen"]),
        "backbone": asdict(settings.backbone(model)),
        "hours": data.latents.shape[0] * data.latents.shape[1],
        "relative_error": {str(k): round(v, 4) for k, v in relative.items()},
        "forecast_error": forecast,
    }
    log(about)
    save_weights(output, denoiser.backbone.state_dict(), about)
    return about


def main() -> None:
    """Run a session with the settings of the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("output", type=Path, help="folder of the session; rerun to go on")
    parser.add_argument("--minutes", type=float, required=True, help="wall clock of it all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--checkpoint", default="appa-t31", help="autoencoder and closed form")
    parser.add_argument("--latents", type=Path, help="read latents instead of simulating")
    parser.add_argument(
        "--errors", type=Path, nargs="*", default=[], help="errors of backgrounds, to learn from"
    )
    for name, kind in (("seeds", int), ("days", int), ("spin-up-days", int), ("width", int)):
        parser.add_argument(f"--{name}", type=kind)
    for name in ("depth", "local", "batch", "levels", "warmup", "steps", "uses"):
        parser.add_argument(f"--{name}", type=int)
    for name in ("learning-rate", "matrix-rate", "cool-down", "simulate-share", "ema-decay"):
        parser.add_argument(f"--{name}", type=float)
    parser.add_argument("--unequal", type=float)
    parser.add_argument("--compiled", action="store_true", help="compile the blocks")
    parser.add_argument("--tune", action="store_true", help="begin with the checkpoint's network")
    parser.add_argument("--weighted", action="store_true", help="weight errors by their size")
    options = vars(parser.parse_args())
    # By default jax would take all of the memory, which torch needs as well.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    torch.backends.cuda.matmul.allow_tf32 = True
    names = ("output", "checkpoint", "latents", "errors")
    output, checkpoint, latents, errors = (options.pop(name) for name in names)
    settings = Session(**{k: v for k, v in options.items() if v is not None})
    run(settings, output, checkpoint, latents, errors)


if __name__ == "__main__":
    main()
