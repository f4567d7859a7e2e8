"""The page of one run: what was trained, on what, for how long, and what it is worth (docs/evaluation.md)."""

import csv
import shlex
from pathlib import Path

import torch

from fdtrain.credentials import masked
from fdtrain.data.dataset import DatasetDescription
from fdtrain.errors import UserError
from fdtrain.evaluation import figures, page, pictures
from fdtrain.evaluation.compared import bits_of
from fdtrain.evaluation.page import NONE, Card, Figures, File, Link, Missing, Section, Table
from fdtrain.evaluation.result import (
    BoundEstimate,
    CurveResult,
    EmaResult,
    FrechetResult,
    NllResult,
    OdeEstimate,
    Result,
)
from fdtrain.evaluation.run_folder import RunFolder, evaluated_pixels, held_out_pixels
from fdtrain.evaluation.wording import counted, duration, short, with_error

REAL_IMAGES = 64
"""Beside a sheet that does not say how many it has."""
EXTREMES = 8
"""Images shown of the easiest, and of the hardest."""
VALUE = "value \u00b1 spread of sets"
PUBLISHED = Path(__file__).with_name("published.csv")
"""By the name that ``fdtrain pack`` gives a data set: rows of a table, numbers as the source prints them."""
COLOUR = (3, 32, 32), 256
IMAGES = {"cifar10": COLOUR, "imagenet32-old": COLOUR, "imagenet32-new": COLOUR, "digits": ((1, 8, 8), 17)}
"""Shape and levels of their images, for another data set may bear the same name: the two ImageNet-32, *old* (van den
Oord's, withdrawn) and *new* (box-resized), differ. Figures of the digits are our own comparison's, by own bounds."""


def known_figures(data: DatasetDescription) -> list[dict[str, str]]:
    """One model's figures on this very data set each, as its source gives them: a row of the table."""
    if IMAGES.get(data.name) != (data.shape, data.levels):
        return []
    with PUBLISHED.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row.pop("dataset") == data.name]


def of_run(run: RunFolder, data: str | None = None) -> str:
    """The page of a run.

    Args:
        data: the present place of the run's data; None: where it has recorded them.

    Raises:
        UserError: a file of the run is damaged.
    """
    recorded = [{"": title, "value": value or "not recorded in the run"} for title, value in facts(run).items()]
    sections = [
        samples({"": run}, data),
        _bits(run),
        _extremes(run, data),
        _distances(run),
        _known(run),
        _curves(run),
        _training(run),
        Section("Run", [Table(recorded)]),
        Section("Configuration", [File("config.yaml", masked(run.config))]),
    ]
    return page.html(run.name, sections, cards=_cards(run))


def _command(run: RunFolder, words: str) -> str:
    return f"fdtrain {words.replace('RUN', shlex.quote(str(run.path)))}"


def _cards(run: RunFolder) -> list[Card]:
    """What a reader looks for first, as far as there is any."""
    cards = []
    if evaluated := [result for result in run.of_kind(NllResult).values() if result.estimates()]:
        result = max(evaluated, key=run.worth)
        title, value = result.estimates()[0]
        error = with_error(value.bits_per_dim, value.error_images, 4)
        cards.append(Card("bits/dim", error, f"{title}, {result.coverage}, standard error over images"))
    for result in run.of_kind(FrechetResult).values():
        sets = counted(max(1, len(result.values)), "set")
        note = f"{sets} of {counted(result.images, 'sample')}, NFE {short(result.nfe)}"
        cards.append(Card(short(result.name), with_error(result.value, result.spread, 3), note))
    return cards


def facts(run: RunFolder) -> dict[str, str | None]:
    """What a run was, by title; None where it is not recorded."""
    data, environment, spec = run.dataset, run.environment, run.spec
    found: dict[str, str | None] = dict.fromkeys(("data set", "images", "network"))
    if data:
        counts = ", ".join(f"{split}: {counted(data.images(split), 'image')}" for split in data.splits)
        kind = f"{data.size}x{data.size}, {counted(data.channels, 'channel')}, {counted(data.levels, 'level')}"
        found |= {"data set": f"{short(data.name)} ({short(data.source)})", "images": f"{kind}; {counts}"}
    if spec:
        options = ", ".join(f"{key} {short(value)}" for key, value in spec.network_options.items())
        found["network"] = f"{spec.network}: {options}"
    speed = run.images_per_second
    found |= {
        "parameters": f"{run.parameters:,}" if run.parameters else None,
        "GFLOP to train on one image": run.last("train/gflop_per_image", ".3g"),
        "TFLOP/s of a device": run.last("train/tflops_per_device", ".3g"),
        "steps": run.last("step", ",.0f"),
        "images seen": run.last("train/images_seen", ",.0f"),
        # Evaluation, samples and checkpoints come on top.
        "time of training steps": duration(run.hours) if run.hours else None,
        "images/s": f"{speed:,.0f}" if speed else None,
        **dict.fromkeys(("processes and device", "versions", "commit")),
    }
    if environment:
        packages = ("fdtrain", "torch", "deepspeed", "python")
        found["processes and device"] = f"{short(environment.get('processes'))} x {short(environment.get('device'))}"
        found["versions"] = ", ".join(f"{name} {short(environment.get(name))}" for name in packages)
        found["commit"] = short(environment.get("commit"))
    return found


def samples(runs: dict[str, RunFolder], data: str | None) -> Section:
    """The last sheet of each run, by name, beside real images of the first that has one; of one run alone its last
    denoising path too."""
    drawn = {name: sheet for name, run in runs.items() if (sheet := last_sheet(run))}
    if not drawn:
        command = _command(next(iter(runs.values())), "sample RUN --out RUN/samples/final.png")
        return Section("Samples", [Missing("No sheet of samples.", command)])
    named = "from the averaged weights"
    sheets = [pictures.of_file(path, f"{n and f'{n}: '}samples/{path.name}, {named}") for n, path in drawn.items()]
    real, parts = [], []
    try:
        pixels, split = held_out_pixels(runs[next(iter(drawn))], data, sheets[0].images or REAL_IMAGES)
        real = [pictures.of_pixels(pictures.sheet(pixels), f"Real images of the split '{split}'.")]
    except UserError as error:
        parts = [Missing(f"No real images to stand beside them: {error}")]
    title = "from left to right the predicted image on the way from noise to the image, which is the last"
    last = sorted((runs[""].path / "samples").glob("step_*_path.png"))[-1:] if "" in runs else []
    paths = [pictures.of_file(path, f"samples/{path.name}, {title}") for path in last]
    return Section("Samples", [Figures([*real, *sheets], "figures sheets"), *parts, Figures(paths, "path")])


def last_sheet(run: RunFolder) -> Path | None:
    """What ``fdtrain sample`` has drawn for the report, else the last sheet of training, if there is one."""
    folder = run.path / "samples"
    sheets = sorted(path for path in folder.glob("step_*.png") if not path.stem.endswith("_path"))
    final = folder / "final.png"
    return final if final.is_file() else sheets[-1] if sheets else None


def _bits(run: RunFolder) -> Section:
    rows = []
    for result in run.of_kind(NllResult).values():
        for title, value in result.estimates():
            errors = " / ".join(NONE if e is None else f"{e:.4f}" for e in (value.error_draws, value.error_images))
            row = {"method": title, "bits/dim": f"{value.bits_per_dim:.4f}"}
            row |= {"standard error over draws / images": errors, "how": _method(result, value)}
            rows.append(row | {"on": f"{result.coverage}; {_weights(result)}"})
    if not rows:
        return Section("Bits/dim", [Missing("Not evaluated yet.", _command(run, "evaluate nll RUN --ode"))])
    note = (
        "Of the discrete images, on the closed time interval unless the row says otherwise; upper bounds of the "
        "negative log-likelihood."
    )
    return Section("Bits/dim", [Table(rows, ("bits/dim",))], note)


def _method(result: NllResult, value: BoundEstimate | OdeEstimate) -> str:
    bound = "closed interval" if value is result.elbo_closed else short(result.bound)
    own = [] if isinstance(value, OdeEstimate) else [f"{short(result.dequantisation)} dequantisation"]
    return "; ".join([bound, short(result.dtype), *own, *value.how])


def _weights(result: Result) -> str:
    chosen = "" if result.ema_length is None else f", average of length {result.ema_length:g}"
    return f"step {short(result.step)}{chosen}"


def _extremes(run: RunFolder, data: str | None) -> Section:
    """The easiest and the hardest images with their bits/dim."""
    title = "Easy and hard images"
    bits, values = next(((b, b.values) for b in bits_of(run).values() if b.values is not None), (None, torch.empty(0)))
    if bits is None or len(values) < 2 * EXTREMES:
        missing = Missing("Bits/dim of single images are not there, or of too few.", _command(run, "evaluate nll RUN"))
        return Section(title, [missing])
    order = values.argsort().tolist()
    shown = []
    try:
        for name, numbers in {"Easiest": order[:EXTREMES], "Hardest": order[: -EXTREMES - 1 : -1]}.items():
            images = zip(numbers, evaluated_pixels(run, data, bits.result, numbers))
            drawn = [pictures.of_pixels(pixels, f"{values[i]:.3f}") for i, pixels in images]
            shown.append(Figures([*drawn], "images", name))
    except UserError as error:
        shown = [Missing(f"The images cannot be shown: {error}")]
    note = f"Those with the least and the most bits/dim: {NllResult.TITLES[bits.kind]} of {bits.result.coverage}"
    if isinstance(found := getattr(bits.result, bits.kind), BoundEstimate):
        note += f", {counted(found.draws, 'draw')} of each, whose noise is part of who is easy or hard"
    if below := int((values < 0).sum()):
        note += f". No image has less than zero: the {below:,} that seem to are noise, which --draws reduces"
    return Section(title, shown, f"{note}.")


def _distances(run: RunFolder) -> Section:
    rows = [distance(result) for result in run.of_kind(FrechetResult).values()]
    missing = Missing("Not evaluated yet.", _command(run, "evaluate fid RUN"))
    return Section("Distance of samples to data", [Table(rows, (VALUE,)) if rows else missing])


def distance(result: FrechetResult) -> dict[str, str]:
    """A row of the table of distances."""
    features, sets = result.features, max(1, len(result.values))
    # Another network's classes give another score than the one known by Inception's name.
    score = "Inception Score" if result.name == "FID" else "class score"
    others = {"KID": result.kid, "precision": result.precision, "recall": result.recall, score: result.inception_score}
    drawn = (
        f"{counted(result.images, 'image')} in {'each of ' if sets > 1 else ''}{counted(sets, 'set')}, "
        f"{short(result.solver)} on {short(result.grid)}, NFE {short(result.nfe)}, guidance {short(result.guidance)}; "
        f"{_weights(result)}"
    )
    return {
        "what": short(result.name),
        VALUE: with_error(result.value, result.spread, 3),
        "others": "; ".join(f"{label} {value:.4f}" for label, value in others.items() if value is not None),
        "samples": f"unfinished: {drawn}" if result.unfinished else drawn,
        "definition": f"features {short(features.name)} ({counted(features.dims, 'dimension')}, sha256 "
        f"{short(features.sha256)[:12]}); reference: {result.reference.text}",
    }


def _known(run: RunFolder) -> Section:
    """This run's figures above the published ones. Only Inception's distance is a FID."""
    title, known = "Known figures on this data set", known_figures(run.dataset) if run.dataset else []
    if not known:
        dataset = run.dataset.name if run.dataset else "unknown"
        return Section(title, [], f"None in our table is of {dataset}; figures of other data sets do not compare.")
    fids = [with_error(r.value, r.spread, 2) for r in run.of_kind(FrechetResult).values() if r.name == "FID"]
    ours = {"model": run.name, "bits/dim": None, "FID": next(iter(fids), None), "likelihood": "no likelihood yet"}
    own = []
    for result in run.of_kind(NllResult).values():
        for method, value in result.estimates():
            dequantised = short(value.dequantisation if isinstance(value, OdeEstimate) else result.dequantisation)
            how = {"likelihood": f"{method}, {dequantised}; {result.coverage}"}
            own.append(ours | {"bits/dim": with_error(value.bits_per_dim, value.error_images, 4)} | how)
    own = own or ([ours] if fids else [])
    rows: list[dict[str, str | Link | None]] = [{**row, "source": "this run"} for row in own]
    for figure in known:
        source, (_, found, number) = figure["source"], figure["source"].partition("arXiv:")
        linked = Link(source, f"https://arxiv.org/abs/{number}") if found else source
        rows.append({**figure, "source": linked})
    note = (
        "Of whole test sets unless a source says otherwise; bounds and dequantisations differ, as the table says. FIDs "
        "are Inception's, each by the samples and statistics of its source. This run's errors are standard errors over "
        "images, and the spread of sets."
    )
    return Section(title, [Table(rows, ("bits/dim", "FID"), len(own))], note)


def _curves(run: RunFolder) -> Section:
    curves = [figures.curves(found) for found in run.of_kind(CurveResult).values()]
    averages = [figures.averages(found) for found in run.of_kind(EmaResult).values()]
    shown = [plot for plots in curves + averages for plot in plots.values()]
    missing = Missing("Not measured yet.", _command(run, "evaluate curve RUN"))
    return Section("Curves", [Figures([*shown]) if shown else missing])


def _training(run: RunFolder) -> Section:
    plots = figures.training({"": [run]})
    none = Missing("No metrics.jsonl with a loss in this run: it has not logged a step.")
    return Section("Training", [Figures([*plots.values()]) if plots else none])
