"""A comparison as Markdown, CSV, and one self-contained HTML page with plots (docs/comparing.md)."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

from fdtrain.evaluation import figures
from fdtrain.evaluation.page import TEMPLATES
from fdtrain.evaluation.plotting import Plot
from fdtrain.evaluation.result import (
    ComparedBits,
    ComparedPoint,
    ComparedVariant,
    ComparisonResult,
    Difference,
    Mean,
    write_file,
)
from fdtrain.evaluation.wording import PLUS_MINUS, escaped

NAME = "comparison"


@dataclass(frozen=True)
class Table:
    title: str
    note: str
    head: list[str]
    rows: list[list[str]]


def write(result: ComparisonResult, folder: Path) -> list[Path]:
    """Write ``comparison.md``, ``.csv`` and ``.html``, and the plots beside them; returns the three paths."""
    drawn = plots(result)
    for name, plot in drawn.items():
        plot.save(folder / f"{name}.png")
    contents = {".md": markdown(result, drawn), ".csv": comma_separated(result)}
    contents[".html"] = page(result, list(drawn.values()))
    paths = []
    for ending, content in contents.items():
        path = folder / f"{NAME}{ending}"
        write_file(path, lambda temporary, content=content: temporary.write_text(content, encoding="utf-8"), "output")
        paths.append(path)
    return paths


def tables(result: ComparisonResult) -> list[Table]:
    """The tables of a comparison, in the order of the page."""
    shown = [variant for variant in result.variants if variant.seeds]
    reference = result.reference
    bits = Table(
        "Bits/dim",
        f"Of {result.images:,} images of {result.dataset}/{result.split} ({result.levels} levels), averaged weights, "
        f"{result.draws} draws of the bound per image; by the ODE of the first {result.ode_images:,}. Mean over seeds "
        f"{PLUS_MINUS} its standard error over seeds. The own bound is that of the interval, decoder and "
        "dequantisation in the row; the closed one is on [0, 1] with uniform dequantisation, where the predictor "
        "allows it. The ODE is solved on the interval in the row, from images dequantised as its column says; beside "
        "it stands the own bound of the same images.",
        [
            "variant",
            "interval",
            "decoder",
            "dequantisation",
            "own bound",
            "closed bound",
            "ODE",
            "own bound of its images",
            "ODE's dequantisation",
            "seeds",
        ],
        [
            [
                v.name,
                interval(v),
                v.decoder,
                v.dequantisation,
                *(_bits(part) for part in (v.own_bound, v.closed_bound, v.ode, v.own_bound_of_ode_images)),
                v.ode_dequantisation if v.ode else "-",
                _seeds(v, result),
            ]
            for v in shown
        ],
    )
    differences = Table(
        f"Difference to {reference}",
        f"Bits/dim less those of '{reference}', image by image with the same draws and seed: mean {PLUS_MINUS} "
        "standard error over images / over seeds. Below zero the variant is better.",
        ["variant", "own bound", "closed bound", "ODE", "own bound of its images"],
        [
            [v.name, *map(_difference, (v.own_bound, v.closed_bound, v.ode, v.own_bound_of_ode_images))]
            for v in shown
            if v.name != reference
        ],
    )
    nfes = sorted({point.nfe for v in shown for point in v.points})
    quality = Table(
        f"{result.distance} at so many evaluations",
        f"Of {result.samples:,} samples to the training split; mean {PLUS_MINUS} standard error over seeds.",
        ["variant", *(str(nfe) for nfe in nfes)],
        [[v.name, *_distances(v.points, nfes)] for v in shown],
    )
    with_own = [v for v in shown if v.own_points]
    own_quality = Table(
        f"{result.distance} by each variant's own sampler",
        f"Of {result.samples:,} samples from the same noise, by the solver and grid in the row.",
        ["variant", "solver, grid", *(str(nfe) for nfe in nfes)],
        [[v.name, v.own_sampler or "", *_distances(v.own_points, nfes)] for v in with_own],
    )
    training = Table(
        "Training",
        "At the trained weights: standard deviation of a batch's estimate of the bound; root of the trace of the "
        "batch's gradient covariance; gradient noise scale in batches (docs/comparing.md). Images/s while training.",
        ["variant", "std of the batch's bound", "its variance", "gradient noise", "noise scale", "images/s", "steps"],
        [
            [
                v.name,
                "-" if v.variance is None else f"{v.variance.mean**0.5:.4f}",
                _mean(v.variance, 2, "g"),
                _mean(v.gradient_noise, 3, "g"),
                _mean(v.noise_scale, 2, "g"),
                _mean(v.images_per_second, 0),
                "-" if v.steps is None else f"{v.steps:,}",
            ]
            for v in shown
        ],
    )
    failures = Table(
        "Failed runs",
        "The other runs are not affected. The same command tries them again.",
        ["variant", "seed", "reason"],
        [[v.name, str(run.seed), run.reason] for v in result.variants for run in v.failures],
    )
    return [table for table in (bits, differences, quality, own_quality, training, failures) if table.rows]


def interval(variant: ComparedVariant) -> str:
    low, high = variant.interval
    return f"[{low:.3g}, {high:.6g}]"


def settings(variant: ComparedVariant, reference: str) -> str:
    """In what a variant differs from the reference."""
    if variant.name == reference:
        return "the reference"
    shown = {key: "null" if value is None else value for key, value in variant.settings.items()}
    return ", ".join(f"{key}: {value}" for key, value in shown.items()) or "equal to the reference"


def markdown(result: ComparisonResult, drawn: dict[str, Plot]) -> str:
    """All tables, and the plots that lie beside it; GitHub's Markdown."""
    lines = [f"# Comparison: {result.name}", "", escaped(about(result)), ""]
    for table in tables(result):
        lines += [f"## {table.title}", "", table.note, ""]
        lines += [_line(table.head), _line(["---"] * len(table.head)), *map(_line, table.rows), ""]
    if drawn:
        lines += ["## Curves", ""]
        for name, plot in drawn.items():
            lines += [f"![{plot.caption}]({name}.png)", "", plot.caption, ""]
    lines += ["## Variants", ""]
    lines += [f"* `{v.name}`: {escaped(settings(v, result.reference))}" for v in result.variants]
    return "\n".join(lines) + "\n"


def about(result: ComparisonResult) -> str:
    count, seeds = len(result.variants), ", ".join(map(str, result.seeds))
    return f"{count} variants, seeds {seeds}, {result.budget} each, on {result.dataset} ({result.device})."


def _line(cells: list[str]) -> str:
    return f"| {' | '.join(map(escaped, cells))} |"


def comma_separated(result: ComparisonResult) -> str:
    """One row for each variant, every number in a column of its own; empty where there is none."""
    rows = [_numbers(variant) for variant in result.variants]
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _numbers(v: ComparedVariant) -> dict[str, object]:
    low, high = v.interval
    row: dict[str, object] = {"variant": v.name, "t_min": low, "t_max": high, "decoder": v.decoder}
    row |= {"dequantisation": v.dequantisation, "ode_dequantisation": v.ode_dequantisation}
    row |= {"seeds": len(v.seeds), "failed": len(v.failures)}
    for name in ("own_bound", "closed_bound", "ode", "own_bound_of_ode_images"):
        part: ComparedBits | None = getattr(v, name)
        if part is not None:
            row |= {f"{name}_bits_per_dim": part.bits_per_dim.mean, f"{name}_error_seeds": part.bits_per_dim.error}
            if part.difference is not None:
                row[f"{name}_difference"] = part.difference.mean
                row[f"{name}_difference_error_images"] = part.difference.error_images
                row[f"{name}_difference_error_seeds"] = part.difference.error_seeds
    means = {f"frechet_{point.nfe}": point.distance for point in v.points}
    means |= {f"own_sampler_frechet_{point.nfe}": point.distance for point in v.own_points}
    means |= {"batch_variance": v.variance, "gradient_noise": v.gradient_noise, "noise_scale": v.noise_scale}
    for name, value in (means | {"images_per_second": v.images_per_second}).items():
        if value is not None:
            row |= {name: value.mean, f"{name}_error": value.error}
    return row | {"steps": v.steps}


def plots(result: ComparisonResult) -> dict[str, Plot]:
    """The plots that can be drawn, by the names of their files."""
    shown = [variant for variant in result.variants if variant.seeds]
    drawn: dict[str, Plot | None] = {}
    if any(v.training for v in shown):
        drawn["training"] = figures.compared_training(shown)
    if any(v.points for v in shown):
        drawn["quality"] = figures.compared_quality(shown, result.distance)
    drawn["variance"] = figures.compared_variance(shown)
    return {name: plot for name, plot in drawn.items() if plot is not None}


def page(result: ComparisonResult, drawn: list[Plot]) -> str:
    """The HTML page."""
    return TEMPLATES.get_template("comparison.html.jinja").render(
        name=result.name,
        about=about(result),
        tables=tables(result),
        pictures=drawn,
        settings=[[v.name, settings(v, result.reference)] for v in result.variants],
    )


def _mean(value: Mean | None, digits: int, form: str = "f") -> str:
    if value is None:
        return "-"
    error = "" if value.error is None else f" {PLUS_MINUS} {value.error:{f'.{digits}f' if form == 'f' else '.1g'}}"
    return f"{value.mean:.{digits}{form}}{error}"


def _distances(points: list[ComparedPoint], nfes: list[int]) -> list[str]:
    found = {point.nfe: point.distance for point in points}
    return [_mean(found.get(nfe), 3) for nfe in nfes]


def _bits(part: ComparedBits | None) -> str:
    return _mean(part and part.bits_per_dim, 4)


def _difference(part: ComparedBits | None) -> str:
    if part is None or part.difference is None:
        return "-"
    found: Difference = part.difference
    errors = ("-" if error is None else f"{error:.4f}" for error in (found.error_images, found.error_seeds))
    return f"{found.mean:+.4f} {PLUS_MINUS} {' / '.join(errors)}"


def _seeds(v: ComparedVariant, result: ComparisonResult) -> str:
    return str(len(v.seeds)) if len(v.seeds) == len(result.seeds) else f"{len(v.seeds)} of {len(result.seeds)}"
