"""Compare trajectories, samplers and whole folders of recorded outputs of the public code, array by array."""

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from azula.noise import Schedule
from torch import Tensor

from lab.parity import components, guidance
from lab.parity.case import NotRecorded, ParityCase, ParityComparison, Status, compare
from lab.parity.guidance import RecordedObservations, masked
from lab.parity.runs import GRIDS, clock, grids, recorded_runs, trajectory_dates
from model.domain.errors import ConfigurationError
from model.guidance.base import Guidance
from model.guidance.jacobian import MMPS, MMPSSettings
from model.samplers.control import RecordedNoise
from model.samplers.sampling import SamplerSettings, sample, time_grid
from model.trajectory import Blankets, TrajectoryDenoiser, fold, unfold

__all__ = [
    "FAMILIES",
    "GivenLevel",
    "OutputFamily",
    "blankets_of",
    "compare_folder",
    "folds",
    "guided",
    "guided_samplers",
    "guided_trajectory",
    "samplers",
    "trajectory_denoisers",
    "trajectory_sampler",
]

Arrays = Iterator[tuple[str, Tensor]]


class GivenLevel(Schedule):  # type: ignore[misc]  # azula has no types
    """Take the noise level itself as the time."""

    def __call__(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Return alpha = 1 and sigma = t."""
        return torch.ones_like(t), t


def blankets_of(case: ParityCase) -> Blankets:
    """Return how the recorded trajectory is covered."""
    recorded = case.config["trajectory"]
    size, stride = recorded["blanket_size"], recorded["blanket_stride"]
    return Blankets((recorded["T"] - size) // stride + 1, size, stride)


def folds(case: ParityCase) -> Arrays:
    """Yield `traj.unfold*` and `traj.fold.*`: of toy states."""
    length = case.config["trajectory"]["T"]
    toy = case.array("traj.fold_x")
    toy = toy.reshape(len(toy), length, -1)
    for name, match in case.names(r"traj\.unfold\.(\d+)\.(\d+)"):
        yield name, unfold(toy, int(match[1]), int(match[2])).flatten(0, 1).flatten(1)
    for name, match in case.names(r"traj\.unfold_date\.(\d+)\.(\d+)"):
        repeated = case.array("traj.date").expand(len(toy), -1, -1)
        yield name, unfold(repeated, int(match[1]), int(match[2])).flatten(0, 1)
    for name, match in case.names(r"traj\.fold\.(\w+)\.(\d+)\.(\d+)"):
        parts = unfold(toy, int(match[2]), int(match[3]))
        rows = torch.arange(1, parts.shape[0] * parts.shape[1] + 1).reshape(*parts.shape[:2], 1, 1)
        folded = _fold(parts * rows.to(parts), int(match[3]), match[1])
        yield name, folded.flatten(1)


def trajectory_denoisers(case: ParityCase) -> Arrays:
    """Yield `traj.den.<mode>.*`: all blankets denoised and composed."""
    layout, date = blankets_of(case), case.array("traj.date")
    for name, match in case.names(r"traj\.den\.(\w+)\.s(.+)"):
        sigma = case.level(match[2])
        x_t = case.noisy("traj", sigma)
        if match[1] == "average":
            parts = unfold(x_t, layout.size, layout.stride)[0]
            done = case.denoise(parts, sigma, unfold(date, layout.size, layout.stride)[0])
            yield name, case.flat(_fold(done[None], layout.stride, "average"))
            continue
        denoiser = TrajectoryDenoiser(case.denoise, GivenLevel(), date[0], layout, mode=match[1])
        yield name, case.flat(denoiser(x_t, sigma).mean)


def guided(case: ParityCase) -> Arrays:
    """Yield `traj.mmps.*`: blankets with observation vectors of different lengths."""
    layout = blankets_of(case)
    guide = trajectory_guidance(case)
    for name, match in case.names(r"traj\.mmps\.s(.+)"):
        sigma = case.level(match[1])
        denoiser = TrajectoryDenoiser(
            case.denoise, GivenLevel(), case.array("traj.date")[0], layout, guidance=guide
        )
        yield name, case.flat(denoiser(case.noisy("traj", sigma), sigma).mean)


def trajectory_guidance(case: ParityCase) -> Guidance:
    """Return the guidance by the recorded observations of all blankets."""
    observed = RecordedObservations(case).decoded(blankets_of(case).count)
    return MMPS(
        observed,
        MMPSSettings(iterations=case.stated("guidance_iterations", 2), whiten=False, recycle=False),
    )


def _fold(parts: Tensor, stride: int, mode: str) -> Tensor:
    if mode != "average":
        return fold(parts, stride, mode)
    # The recorded averages are sums and counts in float32, divided, whatever the type of the run.
    layout = Blankets(parts.shape[1], parts.shape[2], stride)
    total = torch.zeros(len(parts), layout.length, *parts.shape[3:], dtype=torch.float32)
    count = torch.zeros_like(total)
    for n, start in enumerate(layout.starts):
        total[:, start : start + layout.size] += parts[:, n]
        count[:, start : start + layout.size] += 1
    return (total / count).to(parts)


def samplers(case: ParityCase) -> Arrays:
    """Yield runs of one blanket under the prior."""
    for name, settings in recorded_runs(case, r"samp\.(ddim|ddpm|lms|lms1|pc|rewind)"):
        yield name, _run(case, name, settings, None)


def guided_samplers(case: ParityCase) -> Arrays:
    """Yield runs of one blanket with masked observations."""
    for name, settings in recorded_runs(case, r"samp\.(ddim|ddpm|lms|pc)_mmps"):
        guide = MMPS(
            masked(case, "vector"),
            MMPSSettings(
                iterations=case.stated("guidance_iterations", 2), whiten=False, recycle=False
            ),
        )
        yield name, _run(case, name, settings, guide)


def trajectory_sampler(case: ParityCase) -> Arrays:
    """Yield runs of the whole trajectory under the prior."""
    for name, settings in recorded_runs(case, r"samp\.traj_(ddim|ddpm|lms|pc)"):
        yield name, _run(case, name, settings, None, blankets_of(case))


def guided_trajectory(case: ParityCase) -> Arrays:
    """Yield runs of the whole trajectory with observations of the decoded states."""
    for name, settings in recorded_runs(case, r"samp\.traj_(ddim|ddpm|lms|pc)_mmps"):
        yield name, _run(case, name, settings, trajectory_guidance(case), blankets_of(case))


def _run(
    case: ParityCase,
    name: str,
    settings: SamplerSettings,
    guidance: Guidance | None,
    layout: Blankets | None = None,
) -> Tensor:
    schedule = clock(case)
    if layout is not None:
        start, dates = "traj.x1_unit", case.array("traj.date")[0]
    else:
        start, dates = "samp.x1_unit", case.dates[0]
        layout = Blankets(1, len(dates), len(dates))
    denoiser = TrajectoryDenoiser(case.denoise, schedule, dates, layout, guidance=guidance)
    _, sigma = schedule(torch.tensor(settings.start))
    draws = case.single.get(f"{name}.noise", torch.empty(0)).to(case.dtype)
    x = sample(
        denoiser,
        sigma * case.blankets(case.array(start)),
        settings,
        RecordedNoise([case.blankets(draw) for draw in draws]),
        times=time_grid(settings, torch.float32),
    )
    return case.flat(x)


Produce = Callable[[ParityCase], Iterator[tuple[str, Tensor] | ParityComparison]]


@dataclass(frozen=True)
class OutputFamily:
    """Arrays that one function computes.

    Attributes:
        pattern: Regular expression of their names.
        produce: Gives names and values, or finished outcomes.
    """

    pattern: str
    produce: Produce


FAMILIES = (
    OutputFamily(r"layer\..*", components.layers),
    OutputFamily(r"date\..*", components.dates),
    OutputFamily(r"sched\..*", components.schedules),
    OutputFamily(r"masks\..*", components.masks),
    OutputFamily(r"ae\.saturate\..*", components.saturations),
    OutputFamily(r"ae\..*", components.autoencoder),
    OutputFamily(r"ae_alt\..*", components.alternative_autoencoder),
    OutputFamily(r"vit\..*", components.backbone),
    OutputFamily(r"vit_alt\..*", components.alternative_backbone),
    OutputFamily(r"vit_noqk\..*", components.unnormalised_backbone),
    OutputFamily(r"den\..*", components.denoiser),
    OutputFamily(r"loss\..*", components.loss),
    OutputFamily(r"gmres\..*", components.solve),
    OutputFamily(r"obs\.A_clean\..*", guidance.observations),
    OutputFamily(r"(obs\.(y|cov)\..*|lin\.y(\..*|_b2))", guidance.derived_inputs),
    OutputFamily(r"piece\..*", guidance.pieces),
    OutputFamily(r"mmps\.lin\..*", guidance.linear_mmps),
    OutputFamily(r"mmps\.dec\..*", guidance.decoded_mmps),
    OutputFamily(r"sda\..*", guidance.sda),
    OutputFamily(r"traj\.date", trajectory_dates),
    OutputFamily(r"traj\.(un)?fold.*", folds),
    OutputFamily(r"traj\.den\..*", trajectory_denoisers),
    OutputFamily(r"traj\.mmps\..*", guided),
    OutputFamily(GRIDS, grids),
    OutputFamily(r"samp\.traj_\w+_mmps", guided_trajectory),
    OutputFamily(r"samp\.traj_\w+", trajectory_sampler),
    OutputFamily(r"samp\.\w+_mmps", guided_samplers),
    OutputFamily(r"samp\..*", samplers),
    OutputFamily(r"orbit\.\d+", components.tracks),
    OutputFamily(r"orbit\..*", components.fields_of_view),
)

NOT_CARRIED = {
    r"vit_window\..*": "local attention",
    r"w2c\..*": "W2C guidance",
    r"ae_periodic\..*": "convolutions periodic across the poles",
}

INPUTS = re.compile(
    r"ae(_alt)?\.[xz]|vit(_alt)?\.(x|t|date)|den\.(x0|eps|sigma)|date\.(dates|lon)"
    r"|layer\.(ln\.x|rope\.(q|k|theta)|sine\.x)|sched\.t|gmres\.(b|x0|spd|nonsym)"
    r"|lin\.(idx|var_vec|y_noise|yn_b2|x0_b2|eps_b2)|probe\.v_x"
    r"|obs\.(latent_(mean|std)|sat_(cov_value|idx\.\d+|vars)|stations_(cov|idx|vars))"
    r"|traj\.(x0|eps|x1_unit|yn|fold_x)|samp\.x1_unit|.*\.noise"
)
"""What is given to the computations; anything else in a folder must be matched."""


def compare_folder(
    folder: Path, runs: Iterable[str] = ("float32", "float64")
) -> list[ParityComparison]:
    """Compare everything recorded in a folder.

    Arguments:
        folder: See `lab.parity.case`.
        runs: Which of the recorded runs.

    Returns:
        One outcome for each array of each run, in the order of names.

    Raises:
        CheckpointError: If the folder cannot be read.
    """
    outcomes: list[ParityComparison] = []
    for run in runs:
        case = ParityCase(folder, getattr(torch, run))
        found = {o.name: o for o in _known_in_advance(case)}
        with torch.no_grad():
            for family in FAMILIES:
                left = [
                    n for n in case.outputs if n not in found and re.fullmatch(family.pattern, n)
                ]
                found |= {o.name: o for o in _attempt(case, family, left)}
        for name in case.outputs.keys() - found.keys():
            found[name] = ParityComparison(name, case.label, "missed", note="unknown name")
        outcomes += [found[name] for name in sorted(found)]
    return outcomes


def _known_in_advance(case: ParityCase) -> Iterator[ParityComparison]:
    for name in case.outputs:
        for pattern, what in NOT_CARRIED.items():
            if re.fullmatch(pattern, name):
                yield ParityComparison(name, case.label, "not carried", note=what)
        if INPUTS.fullmatch(name):
            yield ParityComparison(name, case.label, "input")


def _attempt(
    case: ParityCase, family: OutputFamily, names: list[str]
) -> Iterator[ParityComparison]:
    """Yield outcomes of the recorded arrays `names`; after an error the remaining ones are missed."""
    if not names:
        return
    open_names, why = set(names), "nothing was computed for it"
    status: Status = "missed"
    case.assumed.clear()
    try:
        for produced in family.produce(case):
            name = produced.name if isinstance(produced, ParityComparison) else produced[0]
            if name not in open_names:
                continue
            open_names.remove(name)
            outcome = (
                produced if isinstance(produced, ParityComparison) else compare(case, *produced)
            )
            yield _with_assumptions(case, outcome)
    except ConfigurationError as error:
        why = error.message
        status = "not carried" if "not carried" in why else "missed"
    except NotRecorded as error:
        why, status = error.message, "not compared"
    except KeyError as error:
        why, status = f"config.json or the arrays lack {error}", "not compared"
    except Exception as error:  # a comparison reports whatever goes wrong and goes on
        why = f"{type(error).__name__}: {error}"
    for name in sorted(open_names):
        yield _with_assumptions(case, ParityComparison(name, case.label, status, note=why))


def _with_assumptions(case: ParityCase, outcome: ParityComparison) -> ParityComparison:
    """Add to the note of a mismatch the values assumed because the configuration lacks them."""
    if outcome.status != "missed" or not case.assumed:
        return outcome
    taken = ", ".join(f"{key} ({value})" for key, value in case.assumed.items())
    note = f"{outcome.note}; " if outcome.note else ""
    return replace(outcome, note=f"{note}config.json does not say {taken}, which were taken")
