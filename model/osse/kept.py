"""Results of an experiment in a file, so that an interrupted one goes on where it was."""

import json
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from model.assimilation_settings import recommended_settings
from model.domain.errors import InvalidInput
from model.latent_model import LatentModel
from model.osse.autoencoder_skill import AutoencoderSkill
from model.osse.skill import SkillSettings
from model.osse.start_skill import CaseFields, StartSkill

__all__ = ["Kept", "experiment"]


class _Contents(BaseModel):
    """What the file holds."""

    experiment: dict[str, Any]
    autoencoder: AutoencoderSkill | None = None
    starts: tuple[StartSkill, ...] = ()


def experiment(model: LatentModel, settings: SkillSettings, truth: str | None) -> dict[str, Any]:
    """Everything that the figures depend on but the code: results of two of these do not mix."""
    values = {k: v for k, v in asdict(settings).items() if k not in ("settings", "network")}
    values |= {"network": asdict(settings.network), "truth": truth, "precision": model.precision}
    values["settings"] = repr(settings.settings or recommended_settings(model))
    values["checkpoint"] = model.card.name
    values["files"] = {name: file.sha256 for name, file in sorted(model.card.files.items())}
    return values


class Kept:
    """Finished parts of one experiment.

    Arguments:
        path: A JSON file, read if it exists and rewritten whenever something is added; maps of
            one case lie beside it as `.npz`. None keeps nothing.
        made_by: From `experiment`.

    Raises:
        InvalidInput: If the file is of another experiment.
    """

    def __init__(self, path: Path | None, made_by: dict[str, Any]) -> None:
        self.path = path
        # As it will be read back: JSON knows no tuples.
        wanted = json.loads(json.dumps(made_by))
        self._contents = _Contents(experiment=wanted)
        self._fields: CaseFields | None = None
        if path is None or not path.exists():
            return
        self._contents = _Contents.model_validate_json(path.read_bytes())
        found = self._contents.experiment
        names = sorted(k for k in wanted | found if wanted.get(k) != found.get(k))
        if names:
            raise InvalidInput(
                f"Expected results of the same experiment in {path}; it was made with another "
                f"{', '.join(names)}. Name another file, or remove this one.",
                file=str(path),
            )
        self._fields = _read_fields(path.with_suffix(".npz"))

    @property
    def autoencoder(self) -> AutoencoderSkill | None:
        """The autoencoder's figures, if finished."""
        return self._contents.autoencoder

    @property
    def fields(self) -> CaseFields | None:
        """Maps of one case, if one is finished."""
        return self._fields

    def start(self, end: datetime) -> StartSkill | None:
        """The figures of an analysis time, if finished."""
        return next((s for s in self._contents.starts if s.end == end), None)

    def keep_autoencoder(self, skill: AutoencoderSkill) -> None:
        """Adds the autoencoder's figures."""
        self._write({"autoencoder": skill})

    def keep_start(self, skill: StartSkill, fields: CaseFields) -> None:
        """Adds an analysis time; the first one's maps are kept."""
        if self._fields is None:
            self._fields = fields
            if self.path is not None:
                _write_fields(self.path.with_suffix(".npz"), fields)
        self._write({"starts": (*self._contents.starts, skill)})

    def _write(self, change: dict[str, Any]) -> None:
        self._contents = self._contents.model_copy(update=change)
        if self.path is None:
            return
        part = self.path.with_suffix(".part")
        part.write_text(self._contents.model_dump_json())
        part.replace(self.path)


def _write_fields(path: Path, fields: CaseFields) -> None:
    part = path.with_suffix(".part")
    with part.open("wb") as file:
        np.savez_compressed(
            file,
            end=np.array(fields.end.isoformat()),
            channels=np.array(fields.channels),
            truth=fields.truth,
            analysis=fields.analysis,
            spread=fields.spread,
        )
    part.replace(path)


def _read_fields(path: Path) -> CaseFields | None:
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as file:
        return CaseFields(
            datetime.fromisoformat(str(file["end"])).astimezone(UTC),
            tuple(map(str, file["channels"])),
            file["truth"],
            file["analysis"],
            file["spread"],
        )
