"""`appa checkpoint`: import, show, verify and compare weights."""

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from deploy.console import AsJson
from model.domain.errors import AppaError

if TYPE_CHECKING:
    from lab.parity.case import Comparison
    from model.card import Card

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True, help="Import, show, verify and compare weights.")

SourceFile = Annotated[Path | None, typer.Option(exists=True, help="Instead of looking for it.")]


@app.command("import")
def import_(
    source: Annotated[Path, typer.Argument(help="Run folders.", exists=True, file_okay=False)],
    target: Annotated[Path, typer.Argument(help="Folder of the new bundle.")],
    name: Annotated[str | None, typer.Option(help="Name in the card.")] = None,
    licence: Annotated[str, typer.Option(help="SPDX identifier.")] = "unspecified",
    weights: Annotated[str, typer.Option(help="best or last.")] = "best",
    stored: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    autoencoder: SourceFile = None,
    denoiser: SourceFile = None,
    latent_statistics: SourceFile = None,
    state_statistics: SourceFile = None,
    ignore: Annotated[
        list[str] | None, typer.Option("--ignore-key", help="A setting without effect.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert run folders of the public implementation to a bundle: card and safetensors."""
    # Torch is imported by the commands that need it, not by `appa --help`.
    from model.checkpoints.bundle import save_checkpoint
    from model.checkpoints.released import find_released, load_released

    with _explained():
        run = find_released(
            source,
            autoencoder=autoencoder,
            denoiser=denoiser,
            latent_statistics=latent_statistics,
            state_statistics=state_statistics,
        )
        model = load_released(
            run, weights=weights, name=name, licence=licence, ignore=frozenset(ignore or ())
        )
        card = save_checkpoint(model, target, stored=_storage(stored))
    _show(card, target, as_json)


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
        document = {"folder": str(folder), "valid": True, "parameters": parameters}
        typer.echo(json.dumps(document))
    else:
        typer.echo(f"{folder}: valid, {parameters / 1e6:.1f} million parameters")


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
        typer.echo(json.dumps(document, indent=1))
    else:
        for outcome in outcomes:
            typer.echo(_line(outcome))
        typer.echo(_totals(outcomes, counts))
    if counts["missed"] or counts["not compared"] or not counts["matched"]:
        raise typer.Exit(1)


def _totals(outcomes: "list[Comparison]", counts: Counter[str]) -> str:
    words = [f"{counts[word]} {word}" for word in ("matched", "missed", "not carried")]
    names = sorted({o.name for o in outcomes if o.status == "not compared"})
    if names:
        words.append(f"{counts['not compared']} not compared ({', '.join(names)})")
    return ", ".join(words)


def _line(outcome: "Comparison") -> str:
    numbers = ""
    if outcome.error is not None and outcome.tolerance is not None:
        numbers = f"error {outcome.error:.2e}  allowed {outcome.tolerance:.2e}"
    text = f"{outcome.name:<36} {outcome.run}  {outcome.status:<12}  {numbers}  {outcome.note}"
    return text.rstrip()


def _show(card: "Card", folder: Path, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(card.model_dump(mode="json") | {"folder": str(folder)}, indent=1))
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
        "written by version": card.code_version,
    }
    for role, file in card.files.items():
        rows[f"file: {role}"] = f"{file.path} ({file.stored}) sha256 {file.sha256[:16]}…"
    for key, value in card.provenance.items():
        rows[f"provenance: {key}"] = value
    for key, value in rows.items():
        table.add_row(key, str(value))
    Console().print(table)


def _storage(name: str) -> Any:
    if name not in ("float32", "bfloat16", "float16"):
        raise typer.BadParameter("expected float32, bfloat16 or float16", param_hint="--stored")
    return name


@contextmanager
def _explained(as_json: bool = False) -> Iterator[None]:
    """Prints an error meant for people instead of a traceback, and exits with 1."""
    try:
        yield
    except AppaError as error:
        if as_json:
            document = {"error": error.message, "code": error.code, **error.context}
            typer.echo(json.dumps(document, default=str))
        typer.echo(f"{error.code}: {error.message}", err=True)
        raise typer.Exit(1) from error
