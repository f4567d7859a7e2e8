"""Several runs on one HTML page: figures with errors, the settings that differ, curves in the same axes, samples.

It reads what the runs' folders have; nothing is trained or evaluated (``fdtrain compare`` does that).
"""

import os
from pathlib import Path
from typing import Any

from fdtrain.errors import UserError
from fdtrain.evaluation import figures, pictures, training_curves
from fdtrain.evaluation.page import TEMPLATES
from fdtrain.evaluation.pictures import Picture
from fdtrain.evaluation.plotting import Plot
from fdtrain.evaluation.report import last_sheet, of_images, real_images
from fdtrain.evaluation.result import CurveResult, FrechetResult, NllResult
from fdtrain.evaluation.run_folder import ImageBits, RunFolder, RunImages, image_bits
from fdtrain.evaluation.training_curves import Runs
from fdtrain.evaluation.wording import PLUS_MINUS, duration, short, with_error

NONE = "-"
UNCOMPARED = ("name", "output")
"""Settings that differ in any two runs."""


def page(folders: list[RunFolder], data: str | None) -> str:
    """The page of several runs; the first is the reference of differences.

    Raises:
        UserError: a file of a run is damaged.
    """
    runs = named(folders)
    sheets = [(name, run, last_sheet(run.path / "samples")) for name, run in runs.items()]
    samples = [_samples(name, run, sheet[0]) for name, run, sheet in sheets if sheet]
    first = folders[0]
    return TEMPLATES.get_template("side_by_side.html.jinja").render(
        title=" and ".join(runs) if len(runs) == 2 else f"{next(iter(runs))} and {len(runs) - 1} others",
        names=list(runs),
        datasets=sorted({run.dataset.name for run in folders if run.dataset}),
        figures=_figures(runs),
        settings=_settings(runs),
        curves=[*training_curves.compared(runs), *_quality(runs)],
        samples=samples,
        real=real_images(RunImages(first, data), first.path / "samples", bool(samples)),
    )


def named(folders: list[RunFolder]) -> Runs:
    """By the name of their folder, or where two have the same by the path from the folder that all are in.

    Raises:
        UserError: a run is named twice.
    """
    if len({run.name for run in folders}) == len(folders):
        return {run.name: run for run in folders}
    paths = [run.path.resolve() for run in folders]
    if twice := next((run.path for run, path in zip(folders, paths) if paths.count(path) > 1), None):
        raise UserError(f"{twice} is named twice. Name each run once.")
    common = Path(os.path.commonpath(paths))
    return {path.relative_to(common).as_posix(): run for path, run in zip(paths, folders)}


def _figures(runs: Runs) -> list[list[str]]:
    """Rows: what it is, and its value of each run."""
    columns = list(runs.values())
    rows = [*_likelihoods(columns), *_differences(columns), *_distances(columns)]
    facts = [_facts(run) for run in columns]
    rows += [[title, *(of[title] or NONE for of in facts)] for title in facts[0]]
    return [row for row in rows if set(row[1:]) != {NONE}]


def _facts(run: RunFolder) -> dict[str, str | None]:
    """What has no error; None where it is not recorded."""
    speed, environment = run.images_per_second, run.environment
    return {
        "parameters": f"{run.parameters:,}" if run.parameters else None,
        "GFLOP to train on one image": _last(run, "train/gflop_per_image", ".3g"),
        "steps": _last(run, "step", ",.0f"),
        "images seen": _last(run, "train/images_seen", ",.0f"),
        "time of training steps": duration(run.hours) if run.hours else None,
        "images/s, median": f"{speed:,.0f}" if speed else None,
        "processes and device": environment and f"{short(environment.processes)} x {short(environment.device)}",
        "commit": environment and short(environment.commit)[:12],
    }


def _last(run: RunFolder, metric: str, form: str) -> str | None:
    values = run.series(metric)
    return f"{values[-1][1]:{form}}" if values else None


def _likelihoods(columns: list[RunFolder]) -> list[list[str]]:
    """Each estimate on each set of images, with its standard error over images."""
    rows: dict[str, dict[int, str]] = {}
    for column, run in enumerate(columns):
        for found in run.of_kind(NllResult).values():
            for title, value in found.estimates():
                # Bounds of different intervals are not the same quantity.
                kind = title if value is found.elbo_closed else f"{title}, {short(found.bound)}"
                on = f"{of_images(found)} of {short(found.dataset)}/{short(found.split)}"
                text = with_error(value.bits_per_dim, value.error_images, 4)
                rows.setdefault(f"bits/dim, {kind}, {on}", {})[column] = text
    return _table(rows, len(columns))


def _differences(columns: list[RunFolder]) -> list[list[str]]:
    """Bits/dim less those of the first run, image by image, where both have the same bound of the same images."""
    first, *others = (image_bits(run) for run in columns)
    if first is None:
        return []
    cells = [_difference(other, first) for other in others]
    title = f"difference of {first.title} to the first run, image by image"
    return [[title, "the reference", *cells]] if set(cells) != {NONE} else []


def _difference(own: ImageBits | None, first: ImageBits) -> str:
    if own is None or _quantity(own) != _quantity(first):
        return NONE
    difference = own.values - first.values
    if len(difference) < 2:
        return f"{difference.mean():+.4f}"
    return f"{difference.mean():+.4f} {PLUS_MINUS} {difference.std() / len(difference) ** 0.5:.4f}"


def _quantity(bits: ImageBits) -> tuple[Any, ...]:
    """What must be equal for two values of an image to be compared."""
    found = bits.result
    return bits.title, found.bound, found.dequantisation, found.fingerprint, found.images


def _distances(columns: list[RunFolder]) -> list[list[str]]:
    """Distances of equal definition, each with its spread over sets."""
    rows: dict[str, dict[int, str]] = {}
    for column, run in enumerate(columns):
        for found in run.of_kind(FrechetResult).values():
            drawn = f"{found.images:,} samples, {short(found.solver)}, NFE {short(found.nfe)}"
            title = f"{short(found.name)} to {found.reference.text}, {drawn}"
            rows.setdefault(title, {})[column] = with_error(found.value, found.spread, 3)
    return _table(rows, len(columns))


def _table(rows: dict[str, dict[int, str]], columns: int) -> list[list[str]]:
    return [[title, *(cells.get(column, NONE) for column in range(columns))] for title, cells in rows.items()]


def _settings(runs: Runs) -> list[list[str]]:
    """Rows: the keys in which the configurations differ, and each run's value."""
    keys = dict.fromkeys(key for run in runs.values() for key in run.settings if key not in UNCOMPARED)
    rows = []
    for key in keys:
        values = [_value(run.settings, key) for run in runs.values()]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return rows


def _value(settings: dict[str, Any], key: str) -> str:
    if key not in settings:
        return NONE
    value = settings[key]
    return "null" if value is None else str(value)[:200]


def _quality(runs: Runs) -> list[Plot]:
    """Distance against evaluations, where at least two runs have measured the same one."""
    by_distance: dict[str, dict[str, CurveResult]] = {}
    for name, run in runs.items():
        for found in run.of_kind(CurveResult).values():
            title = f"{found.distance} to {found.split}, {found.images:,} samples"
            by_distance.setdefault(title, {})[name] = found
    return [
        figures.quality(
            {name: result.points for name, result in found.items()},
            "distance",
            title,
            "Distance of samples to the data, against evaluations of the network.",
        )
        for title, found in by_distance.items()
        if len(found) > 1
    ]


def _samples(name: str, run: RunFolder, sheet: Path) -> Picture:
    return pictures.of_file(sheet, f"{name}: {sheet.relative_to(run.path).as_posix()}, from the averaged weights")
