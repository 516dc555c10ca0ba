"""`appa train`: the nature run, the autoencoder and the denoiser."""

from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer
import yaml
from pydantic import BaseModel, ValidationError

from deploy.console import AsJson, counted, print_json, progress_aside
from model.domain.errors import InvalidInput
from model.domain.files import read_yaml

if TYPE_CHECKING:
    from model.card import Card

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    help="The nature run, the autoencoder and the denoiser.",
    add_completion=False,
)

Config = TypeVar("Config", bound=BaseModel)
CONFIGS = Path(__file__).parents[2] / "lab" / "training" / "configs"

ConfigOption = Annotated[
    str, typer.Option(help="A YAML file, or the name of one that ships (t31-autoencoder, ...).")
]
SetOption = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override a value: data.store=/data/nature.zarr; repeatable."),
]


def read_config(kind: type[Config], name: str, overrides: list[str]) -> Config:
    """Read a configuration, from a file or a shipped one by name, with `key.subkey=value` overrides.

    Raises:
        InvalidInput: Naming the file, the key and what is known.
    """
    path = Path(name) if Path(name).exists() else CONFIGS / f"{name}.yaml"
    if not path.exists():
        known = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.yaml")))
        raise InvalidInput(f"Expected a configuration file or one of {known}; got '{name}'.")
    values = read_yaml(path, InvalidInput)
    for override in overrides:
        key, equals, value = override.partition("=")
        if not equals:
            raise InvalidInput(f"Expected --set key=value; got '{override}'.")
        *parents, last = key.split(".")
        place = values
        for parent in parents:
            place = place.setdefault(parent, {})
        place[last] = yaml.safe_load(value)
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise InvalidInput(f"Configuration {path} does not fit: {error}") from error


def _tell(answer: dict[str, Any], sentence: str, as_json: bool) -> None:
    """Print what was created, as JSON or as a sentence."""
    if as_json:
        print_json(answer)
    else:
        typer.echo(sentence)


@app.command("autoencoder")
def autoencoder(
    config: ConfigOption, output: Path, override: SetOption = None, as_json: AsJson = False
) -> None:
    """Train the autoencoder; rerun the same command to resume."""
    # Torch is imported by the commands that need it, not by `appa --help`.
    from lab.training.train_autoencoder import AutoencoderTraining, train_autoencoder

    with progress_aside(as_json):
        made = train_autoencoder(read_config(AutoencoderTraining, config, override or []), output)
    _tell({"checkpoint": made}, str(made), as_json)


@app.command("denoiser")
def denoiser(
    config: ConfigOption, output: Path, override: SetOption = None, as_json: AsJson = False
) -> None:
    """Train the denoiser on the latents of a finished autoencoder; rerun to resume."""
    from lab.training.train_denoiser import DenoiserTraining, train_denoiser

    with progress_aside(as_json):
        made = train_denoiser(read_config(DenoiserTraining, config, override or []), output)
    _tell({"checkpoint": made}, str(made), as_json)


@app.command("unpack")
def unpack(
    checkpoint: Annotated[str, typer.Argument(help="A bundle, by name or folder.")],
    folder: Annotated[Path, typer.Argument(help="Where to write; must not exist.")],
    autoencoder: Annotated[str, typer.Option(help="As --config.")] = "era5-0p25-autoencoder",
    denoiser: Annotated[str, typer.Option(help="As --config.")] = "era5-0p25-denoiser",
    override: SetOption = None,
    as_json: AsJson = False,
) -> None:
    """Start fine-tuning from a bundle: its weights and statistics as runs, and configurations."""
    from lab.training.export import unpack_bundle
    from lab.training.train_autoencoder import AutoencoderTraining
    from lab.training.train_denoiser import DenoiserTraining

    first = read_config(AutoencoderTraining, autoencoder, override or [])
    second = read_config(DenoiserTraining, denoiser, override or [])
    made = unpack_bundle(checkpoint, folder, first, second)
    answer = dict(zip(("autoencoder", "denoiser"), made, strict=True))
    _tell(answer, "\n".join(map(str, made)), as_json)


@app.command("export")
def export(
    run: Annotated[Path, typer.Argument(help="Folder of the denoiser run.")],
    output: Annotated[Path, typer.Argument(help="Folder of the bundle; must not exist.")],
    name: Annotated[str, typer.Option(help="Name of the checkpoint.")],
    description: Annotated[str, typer.Option(help="One sentence for people.")],
    licence: Annotated[str, typer.Option(help="SPDX identifier of the weights.")] = "Apache-2.0",
    simulated: Annotated[bool, typer.Option(help="Trained on a simulated atmosphere.")] = True,
    as_json: AsJson = False,
) -> None:
    """Write the bundle of a training run: card, weights, statistics, prior."""
    from lab.training.export import export_bundle

    card = export_bundle(
        run, output, name=name, description=description, simulated=simulated, licence=licence
    )
    _tell_bundle(card, output, as_json)


@app.command("adopt")
def adopt(
    session: Annotated[Path, typer.Argument(help="Folder of a training session.")],
    output: Annotated[Path, typer.Argument(help="Folder of the bundle; must not exist.")],
    checkpoint: Annotated[
        str, typer.Option(help="Whose autoencoder and closed form were trained on.")
    ] = "appa-t31",
    share: Annotated[
        float,
        typer.Option(
            min=0.0, max=1.0, help="Of the session, averaged with the checkpoint's weights."
        ),
    ] = 1.0,
    as_json: AsJson = False,
) -> None:
    """Write a bundle again with the denoiser of `python -m lab.training.gpu_session`."""
    from lab.training.export import adopt_session

    card = adopt_session(checkpoint, session, output, share)
    _tell_bundle(card, output, as_json)


def _tell_bundle(card: "Card", folder: Path, as_json: bool) -> None:
    files = {role: file.path for role, file in card.files.items()}
    answer = {"name": card.name, "folder": folder, "files": files}
    _tell(answer, f"{card.name}: {', '.join(sorted(files))} in {folder}", as_json)


@app.command("osse-case")
def osse_case(
    store: Annotated[str, typer.Argument(help="A store of states.")],
    output: Annotated[Path, typer.Argument(help="Folder of a bundle.")],
    start: Annotated[datetime, typer.Option(help="First hour, UTC.")],
    days: Annotated[int, typer.Option(min=1)] = 5,
    as_json: AsJson = False,
) -> None:
    """Put a few days of simulated truth beside the weights, for the demo and the skill test."""
    from lab.osse.cases import CASE_NAME, write_case
    from lab.training.datasets import StateStore
    from model.card import CARD_NAME, read_card

    card = read_card(output / CARD_NAME)
    source = StateStore(store, card.parsed_channels())
    chosen = source.between(start.isoformat(), (start + timedelta(days=days)).isoformat())
    if len(chosen) != 24 * days:
        raise InvalidInput(
            f"Expected {24 * days} hourly states from {start} in {store}; got {len(chosen)}."
        )
    names = list(dict.fromkeys(c.variable for c in card.parsed_channels()))
    cut = source.dataset.isel(time=slice(chosen.start, chosen.stop))
    case = output / CASE_NAME
    write_case(cut, names, card.levels, case)
    size = case.stat().st_size
    _tell({"file": case, "bytes": size}, f"{case}: {size / 1e6:.1f} MB", as_json)


@app.command("nature-run")
def nature_run(
    output: Path,
    years: int = 7,
    start: datetime = datetime(2000, 1, 1),
    seed: int = 0,
    as_json: AsJson = False,
) -> None:
    """Simulate a truth with jcm (extra `lab`); rerun the same command to resume."""
    from lab.training.nature_run import NatureRunConfig, NatureRunProgress, days_in, run

    days = days_in(start, years)
    with progress_aside(as_json):
        run(NatureRunConfig(output, start, days, seed), NatureRunProgress(start))
    _tell({"store": output, "days": days}, f"{output}: {counted(days, 'day')}", as_json)
