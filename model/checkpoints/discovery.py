"""Find the parts of a run under the folder that the authors' scripts leave.

The layout, at any depth below one root:

    <statistics>.zarr                                  mean and std along a dimension `statistic`
    <masks>.zarr                                       other stores, left alone
    autoencoders/<run>/config.yaml                     section `ae`; with or without weights
    autoencoders/<run>/latents/<dump>/stats.pth        mean and std of each latent channel
    autoencoders/<run>/latents/<dump>/ae/              config.yaml and model.pth
    autoencoders/<run>/latents/<dump>/denoisers/<run>/ config.yaml, model_best.pth, model_last.pth

A folder counts only with weights, a store only with statistics. The denoiser belongs to the dump
above it, and was trained on the latents of that dump's `ae`: so the denoiser decides, unless a part
is given. Where several candidates remain, nothing is guessed.
"""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import xarray as xr

from model.domain.errors import CheckpointError
from model.domain.files import read_yaml

__all__ = ["Candidate", "ReleasedRun", "find_released", "open_statistics", "survey", "weights_file"]

PARTS = ("autoencoder", "denoiser", "latent_statistics", "state_statistics")
_STORE_MARKS = {".zgroup", ".zmetadata", "zarr.json"}


@dataclass(frozen=True)
class Candidate:
    """Something that was found under the root.

    Attributes:
        part: Which part of a run it may be: an attribute of `ReleasedRun`.
        path: Folder or file.
        left: Why it cannot be that part or was not taken; empty if it may be or was.
    """

    part: str
    path: Path
    left: str = ""

    def as_dict(self) -> dict[str, str | bool]:
        """Return it as JSON can hold it."""
        return {"part": self.part, "path": str(self.path), "taken": not self.left, "why": self.left}


@dataclass(frozen=True)
class ReleasedRun:
    """Where the parts of a run are.

    Attributes:
        autoencoder: Folder with `config.yaml` and the autoencoder's weights.
        denoiser: Folder with `config.yaml` and the backbone's weights.
        latent_statistics: The latents' `stats.pth`.
        state_statistics: The zarr store of ERA5 statistics.
        found: All that was looked at, and why what was not taken was left.
    """

    autoencoder: Path
    denoiser: Path
    latent_statistics: Path
    state_statistics: Path
    found: tuple[Candidate, ...] = ()


def find_released(root: Path, **chosen: Path | None) -> ReleasedRun:
    """Find the parts of a run under `root`.

    Arguments:
        root: A folder that holds the run's folders at any depth.
        chosen: Parts (attributes of `ReleasedRun`) that are given instead of looked for.

    Raises:
        CheckpointError: If a part is not there, or there are several candidates.
    """
    found = tuple(survey(root))
    usable = {part: [c.path for c in found if c.part == part and not c.left] for part in PARTS}
    parts = {part: path for part, path in chosen.items() if path is not None}
    for part in PARTS:
        if part not in parts and not usable[part]:
            raise _undecided(root, part, found)
    for part in ("denoiser", "latent_statistics", "autoencoder", "state_statistics"):
        if part not in parts:
            candidates = _belonging(part, usable[part], parts)
            if len(candidates) != 1:
                raise _undecided(root, part, found)
            parts[part] = candidates[0]
    return ReleasedRun(**parts, found=tuple(_taken(c, parts) for c in found))


def _belonging(part: str, candidates: list[Path], parts: Mapping[str, Path]) -> list[Path]:
    """Return the candidates that belong to what is chosen already; all of them if none does."""
    if part == "latent_statistics":
        above = [c for c in candidates if c.parent in parts["denoiser"].parents]
        return _deepest(above) or candidates
    if part == "autoencoder":
        dump = parts["latent_statistics"].parent
        if dump / "ae" in candidates:
            return [dump / "ae"]
        return _deepest([c for c in candidates if c in dump.parents]) or candidates
    return candidates


def _deepest(paths: list[Path]) -> list[Path]:
    return sorted(paths, key=lambda p: len(p.parts))[-1:]


def _taken(candidate: Candidate, parts: Mapping[str, Path]) -> Candidate:
    chosen = parts[candidate.part]
    if candidate.left or candidate.path == chosen:
        return candidate
    return replace(candidate, left=f"{chosen} was taken")


def _undecided(root: Path, part: str, found: tuple[Candidate, ...]) -> CheckpointError:
    mine = [c for c in found if c.part == part]
    listed = ", ".join(str(c.path) for c in mine if not c.left) or "none"
    unusable = ", ".join(f"{c.path} ({c.left})" for c in mine if c.left)
    passed = f"; left out: {unusable}" if unusable else ""
    return CheckpointError(
        f"Expected one {part.replace('_', ' ')} under {root} (or a card.yaml in it); found "
        f"{listed}{passed}. Name the one to use with --{part.replace('_', '-')}.",
        file=str(root),
        part=part,
        option=f"--{part.replace('_', '-')}",
        found=[str(c.path) for c in mine if not c.left],
    )


def survey(root: Path) -> Iterator[Candidate]:
    """Yield all that may be a part of a run under `root`, in the order of paths."""
    for folder, names in _folders(root):
        if folder.suffix == ".zarr" or _STORE_MARKS & set(names):
            yield Candidate("state_statistics", folder, _why_no_statistics(folder))
            continue
        if "stats.pth" in names:
            yield Candidate("latent_statistics", folder / "stats.pth")
        if "config.yaml" not in names:
            continue
        weighted = any(n.startswith("model") and n.endswith(".pth") for n in names)
        part = _part(folder / "config.yaml", strict=weighted)
        if part is not None:
            yield Candidate(part, folder, "" if weighted else "no weights (model*.pth)")


def _part(config: Path, *, strict: bool) -> str | None:
    try:
        sections = read_yaml(config, CheckpointError)
    except CheckpointError:
        if strict:
            raise
        return None
    return "denoiser" if "backbone" in sections else "autoencoder" if "ae" in sections else None


def _folders(root: Path) -> Iterator[tuple[Path, list[str]]]:
    for folder, below, names in os.walk(root):
        path = Path(folder)
        if path.suffix == ".zarr" or _STORE_MARKS & set(names):
            below.clear()
        below.sort()
        yield path, names


def _why_no_statistics(store: Path) -> str:
    try:
        with open_statistics(store) as dataset:
            return "" if "statistic" in dataset.dims else "no dimension 'statistic'"
    except CheckpointError as error:
        return f"unreadable: {error.message}"


def open_statistics(path: Path) -> xr.Dataset:
    """Open a zarr store without reading its arrays.

    Raises:
        CheckpointError: If it is none.
    """
    try:
        dataset: xr.Dataset = xr.open_zarr(path, consolidated=None, chunks=None)
        return dataset
    except (OSError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"Expected a zarr store of statistics at {path}; {error}.", file=str(path)
        ) from error


def weights_file(folder: Path, weights: str | None, *, option: str) -> Path:
    """Return the file of weights in a run's folder.

    Arguments:
        folder: Of the autoencoder or the denoiser.
        weights: `best`, `last` or `model`; None takes the first that is there of `model.pth`,
            `model_best.pth` and `model_last.pth`.
        option: Option of the command that chooses, for the error.

    Raises:
        CheckpointError: If there is none, or not the one that was asked for.
    """
    names = {"model": "model.pth", "best": "model_best.pth", "last": "model_last.pth"}
    there = {key: folder / name for key, name in names.items() if (folder / name).is_file()}
    if not there:
        raise CheckpointError(
            f"Expected weights in {folder}: one of {', '.join(names.values())}; there are none.",
            file=str(folder),
        )
    if weights is None:
        return next(iter(there.values()))
    if weights not in there:
        raise CheckpointError(
            f"Expected the weights '{weights}' in {folder}; got {', '.join(there)}. Choose one of "
            f"these with {option}.",
            file=str(folder),
            option=option,
            found=list(there),
        )
    return there[weights]
