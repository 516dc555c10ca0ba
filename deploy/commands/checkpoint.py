"""`appa checkpoint`: import, show, verify and compare weights, and fit weighting functions."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deploy.console import AsJson, print_json
from model.domain.errors import AppaError, InvalidInput

if TYPE_CHECKING:
    from lab.parity.case import ParityComparison
    from lab.training.weighting import ChannelWeights
    from model.card import Card
    from model.checkpoints.discovery import Candidate
    from model.latent_model import LatentModel

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="Import, show, verify and compare weights, and fit weighting functions.",
    add_completion=False,
)

SourceFile = Annotated[Path | None, typer.Option(exists=True, help="Instead of looking for it.")]
AsStored = Annotated[str, typer.Option(help="float32, bfloat16 or float16.")]
Weights = Annotated[str | None, typer.Option(help="Of the denoiser: best (if there) or last.")]
AutoencoderWeights = Annotated[
    str | None, typer.Option(help="Of the autoencoder: best, model or last; the first there is.")
]
Ignored = Annotated[
    list[str] | None, typer.Option("--ignore-key", help="A setting without effect.")
]
StaticFiles = Annotated[
    list[Path] | None,
    typer.Option(
        exists=True,
        help="Orography and land-sea mask: NetCDF, GRIB or zarr of ERA5, any grid; may be repeated.",
    ),
]
States = Annotated[
    Path | None,
    typer.Option(
        exists=True,
        help="States (NetCDF or zarr, WeatherBench2 names) to measure what the autoencoder loses.",
    ),
]
Samples = Annotated[int, typer.Option(min=1, help="How many of these states, evenly spaced.")]


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="Run folders.", exists=True, file_okay=False)],
    target: Annotated[Path, typer.Argument(help="Folder of the new bundle.")],
    name: Annotated[str | None, typer.Option(help="Name in the card.")] = None,
    licence: Annotated[str, typer.Option(help="SPDX identifier.")] = "unspecified",
    weights: Weights = None,
    autoencoder_weights: AutoencoderWeights = None,
    stored: AsStored = "float32",
    autoencoder: SourceFile = None,
    denoiser: SourceFile = None,
    latent_statistics: SourceFile = None,
    state_statistics: SourceFile = None,
    static: StaticFiles = None,
    states: States = None,
    samples: Samples = 24,
    ignore: Ignored = None,
    as_json: AsJson = False,
) -> None:
    """Convert run folders of the public implementation to a bundle: card and safetensors."""
    # Torch is imported by the commands that need it, not by `appa --help`.
    from model.checkpoints.bundle import save_checkpoint
    from model.checkpoints.released import find_released, load_released

    parts = {
        "autoencoder": autoencoder,
        "denoiser": denoiser,
        "latent_statistics": latent_statistics,
        "state_statistics": state_statistics,
    }
    with _explained(as_json):
        run = find_released(source, **parts)
        if not as_json:
            _show_found(run.found)
        model = load_released(
            run,
            weights=weights,
            autoencoder_weights=autoencoder_weights,
            name=name,
            licence=licence,
            ignore=frozenset(ignore or ()),
            static=static or (),
        )
        if states is not None:
            _measure_residual(model, states, samples)
        card = save_checkpoint(model, target, stored=_storage(stored))
    _show(card, target, as_json, found=[c.as_dict() for c in run.found])


def _show_found(found: "tuple[Candidate, ...]") -> None:
    """List the candidates found, those imported, and why the others were not."""
    for candidate in found:
        word = f"left: {candidate.reason}" if candidate.reason else "taken"
        typer.echo(f"{candidate.part.replace('_', ' '):<18} {candidate.path}  {word}")


def _measure_residual(model: "LatentModel", states: Path, samples: int) -> None:
    """Store the reconstruction error of the autoencoder in the model; observation errors include it."""
    import numpy as np
    import torch

    from lab.training.datasets import StateStore
    from model.operators.composite import residual_of_pairs

    store = StateStore(str(states), model.channels)
    store.check_grid(model.grid)
    chosen = np.unique(np.linspace(0, len(store) - 1, min(samples, len(store))).astype(int))
    # One state at a time: at a quarter of a degree each takes 0.3 GB, and as much again decoded.
    each = (torch.from_numpy(np.ascontiguousarray(store.read([i]))) for i in chosen)
    with torch.no_grad():
        pairs = ((state, model.decode(model.encode(state)).cpu()) for state in each)
        model.static["reconstruction_residual"] = residual_of_pairs(pairs)
    model.card.provenance["representativeness"] = {"states": len(chosen), "file": states.name}


@app.command()
def show(
    checkpoint: Annotated[str, typer.Argument(help="Folder, card or bundled name.")],
    as_json: AsJson = False,
) -> None:
    """Print the card of a checkpoint: grid, channels, sizes, files, hashes."""
    from model.card import CARD_NAME, read_card
    from model.checkpoints.bundle import resolve

    with _explained():
        folder = resolve(checkpoint)
        card = read_card(folder / CARD_NAME)
    _show(card, folder, as_json)


@app.command()
def verify(
    checkpoint: Annotated[str, typer.Argument(help="Folder, card or bundled name.")],
    as_json: AsJson = False,
) -> None:
    """Check hashes, names, shapes and statistics by loading the whole model."""
    from model.checkpoints.bundle import load_checkpoint, resolve

    with _explained(as_json):
        folder = resolve(checkpoint)
        model = load_checkpoint(folder)
    parameters = sum(p.numel() for p in model.parameters())
    if as_json:
        document = {
            "folder": str(folder),
            "valid": True,
            "parameters": parameters,
            "inert": list(model.inactive_features),
        }
        print_json(document)
    else:
        typer.echo(f"{folder}: valid, {parameters / 1e6:.1f} million parameters")
        for what in model.inactive_features:
            typer.echo(f"without effect, for want of unchanging fields: {what}")


@app.command()
def weigh(
    checkpoint: Annotated[str, typer.Argument(help="Folder, card or bundled name.")],
    target: Annotated[Path, typer.Argument(help="Folder of the new bundle.")],
    observations: Annotated[
        list[Path] | None,
        typer.Option(exists=True, help="Files of radiances to fit to; may be repeated."),
    ] = None,
    states: Annotated[
        str | None,
        typer.Option(help="States at their times (NetCDF or zarr, WeatherBench2 names)."),
    ] = None,
    sensor: Annotated[
        list[str] | None,
        typer.Option(help="Only this sensor (amsu-a, atms, ...); may be repeated."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Fit the weighting functions of sounders and write the bundle with them.

    Without --observations and --states the peaks of the sensors' descriptions are taken.
    """
    from lab.training.datasets import StateStore
    from lab.training.weighting import add_weights, fit_weights, known_weights, soundings
    from model.checkpoints.bundle import load_checkpoint, save_checkpoint

    if bool(observations) != bool(states):
        raise typer.BadParameter("expected both of --observations and --states, or neither")
    with _explained(as_json):
        model = load_checkpoint(checkpoint)
        levels = model.card.levels
        if observations and states:
            found = soundings(model, StateStore(states, model.channels), observations)
            channels = fit_weights(levels, found, sensor or ())
        else:
            channels = known_weights(levels, sensor or ())
        used = add_weights(model, channels)
        if not used:
            raise InvalidInput(
                "Expected a channel that the levels of the model can stand for; got none."
            )
        stored = {file.stored for role, file in model.card.files.items() if role == "backbone"}
        save_checkpoint(model, target, stored=stored.pop() if stored else "float32")
    _show_channels(channels, target, as_json)


def _show_channels(channels: "list[ChannelWeights]", target: Path, as_json: bool) -> None:
    if as_json:
        rows = [{"sensor": c.sensor, "channel": c.channel, **c.as_dict()} for c in channels]
        print_json({"folder": str(target), "channels": rows})
        return
    for one in channels:
        fit = "" if one.fit is None else f"  error {one.fit.error:.2f} K of {one.fit.count}"
        left = f"  left out: {one.why}" if one.why else ""
        name = f"{one.sensor} {one.channel}"
        typer.echo(f"{name:<12} peak {one.peak:7.1f} hPa  within {one.inside:4.0%}{fit}{left}")
    typer.echo(f"written: {target}")


@app.command()
def parity(
    folder: Annotated[Path, typer.Argument(help="Recorded outputs.", exists=True)],
    only: Annotated[str | None, typer.Option(help="float32 or float64 only.")] = None,
    as_json: AsJson = False,
) -> None:
    """Compare with recorded outputs of the public implementation, array by array."""
    from lab.parity.trajectories import compare_folder

    if only not in (None, "float32", "float64"):
        raise typer.BadParameter("expected float32 or float64", param_hint="--only")
    with _explained(as_json):
        outcomes = compare_folder(folder, [only] if only else ("float32", "float64"))
    counts = Counter[str](o.status for o in outcomes)
    if as_json:
        document = {
            "matched": counts["matched"],
            "missed": counts["missed"],
            "not_carried": counts["not carried"],
            "not_compared": [o.name for o in outcomes if o.status == "not compared"],
            "inputs": counts["input"],
            "arrays": [o.as_dict() for o in outcomes],
        }
        print_json(document)
    else:
        for outcome in outcomes:
            typer.echo(_line(outcome))
        typer.echo(_totals(outcomes, counts))
    if counts["missed"] or counts["not compared"] or not counts["matched"]:
        raise typer.Exit(1)


def _totals(outcomes: "list[ParityComparison]", counts: Counter[str]) -> str:
    words = [f"{counts[word]} {word}" for word in ("matched", "missed", "not carried")]
    names = sorted({o.name for o in outcomes if o.status == "not compared"})
    if names:
        words.append(f"{counts['not compared']} not compared ({', '.join(names)})")
    return ", ".join(words)


def _line(outcome: "ParityComparison") -> str:
    numbers = ""
    if outcome.error is not None and outcome.tolerance is not None:
        numbers = f"error {outcome.error:.2e}  allowed {outcome.tolerance:.2e}"
    text = f"{outcome.name:<36} {outcome.run}  {outcome.status:<12}  {numbers}  {outcome.note}"
    return text.rstrip()


def _show(
    card: "Card", folder: Path, as_json: bool, found: list[dict[str, Any]] | None = None
) -> None:
    if as_json:
        document = card.model_dump(mode="json") | {"folder": str(folder)}
        document |= {} if found is None else {"found": found}
        print_json(document)
        return
    table = Table(title=card.name, caption=card.description, show_header=False)
    rows: dict[str, Any] = {
        "folder": folder,
        "licence": card.licence,
        "training data": "simulated" if card.simulated else "observed",
        "grid": f"{card.grid.name}: {card.grid.kind}, {card.grid.nlat} x {card.grid.nlon}",
        "channels": f"{len(card.channels)} on levels {', '.join(map(str, card.levels))} hPa",
        "latent (c, h, w)": " x ".join(map(str, card.latent_shape)),
        "blanket": f"{card.blanket.size} states of {card.time_step_hours} h, "
        f"stride {card.blanket.stride}",
        "schedule": f"{card.schedule.name}, sigma {card.schedule.sigma_min:g} to "
        f"{card.schedule.sigma_max:g}",
        "autoencoder": f"widths {', '.join(map(str, card.autoencoder.hid_channels))}",
        "backbone": f"{card.backbone.hid_blocks} blocks of {card.backbone.hid_channels} features, "
        f"patch {card.backbone.patch_size}",
        "base": card.base.kind if card.base else "standard normal",
        "recommended": _recommended(card),
        "written by version": card.code_version,
    }
    for role, file in card.files.items():
        rows[f"file: {role}"] = f"{file.path} ({file.stored}) sha256 {file.sha256[:16]}…"
    for key, value in card.provenance.items():
        rows[f"provenance: {key}"] = value
    for key, value in rows.items():
        table.add_row(key, str(value))
    Console().print(table)


def _recommended(card: "Card") -> str:
    """Return the recommended sampling settings, which are the defaults of jobs, in one line."""
    made = card.recommended
    enters = f"{made.sampler.steps} steps of {made.sampler.name}"
    if made.start == "prior":
        enters = f"from the prior, {made.entry.steps} steps from sigma {made.entry.sigma:g}"
    settings = ", ".join(f"{k} {v}" for k, v in made.guidance.items() if k != "method")
    guidance = f"{made.guidance['method']} ({settings or 'its defaults'})"
    return f"{enters}; guidance {guidance}; tie error {made.tie_error_std:g}"


def _storage(name: str) -> Any:
    if name not in ("float32", "bfloat16", "float16"):
        raise typer.BadParameter("expected float32, bfloat16 or float16", param_hint="--stored")
    return name


@contextmanager
def _explained(as_json: bool = False) -> Iterator[None]:
    """Print the message of an expected error instead of a traceback, and exit with 1."""
    try:
        yield
    except AppaError as error:
        if as_json:
            document = {"error": error.message, "code": error.code, **error.context}
            print_json(document)
        typer.echo(f"{error.code}: {error.message}", err=True)
        raise typer.Exit(1) from error
