"""One self-contained HTML page of a run: RUN/report.html. With --compare several runs side by side on one page.

Reads what training and the other commands have written, and images of the run's data; what is missing is said with the
command that makes it.
"""

import argparse
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from fdtrain import distributed
from fdtrain.console import phase
from fdtrain.credentials import masked
from fdtrain.errors import UserError
from fdtrain.evaluation import compared, figures, page, run_folder, run_page
from fdtrain.evaluation.compared import KINDS, ComparedVariant, Row, comma_separated, of_runs
from fdtrain.evaluation.figures import Line, Plot
from fdtrain.evaluation.page import NONE, Figures, Missing, Section, Table
from fdtrain.evaluation.result import FrechetResult, write_file
from fdtrain.evaluation.wording import PLUS_MINUS, with_error

NAME = "comparison"
OVER = f"Mean {PLUS_MINUS} standard error over seeds"
OF_ONE = ("data set", "images", "network", "versions", "images/s")
"""Facts of a run that the page of several leaves out, or has with errors."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="a run's folder; with --compare, several")
    parser.add_argument("--compare", action="store_true", help="the runs on one page; the first is the reference")
    parser.add_argument("--data", help="the packed data set, where it is no longer where the run has recorded it")
    parser.add_argument(
        "--out", type=Path, help="the page (default: RUN/report.html, or comparison.html in the first run's folder)"
    )


def run(arguments: argparse.Namespace) -> None:
    if len(arguments.runs) > 1 and not arguments.compare:
        raise UserError("one page is of one run. Give one, or --compare to have them side by side.")
    if arguments.compare and len(arguments.runs) < 2:
        raise UserError("--compare needs two runs or more.")
    if distributed.rank() != 0:
        return
    first = arguments.runs[0]
    path = arguments.out or first / ("comparison.html" if arguments.compare else "report.html")
    with phase(f"drawing {path}"):
        if arguments.compare:
            variants = of_runs([run_folder.read(folder) for folder in arguments.runs])
            names = [variant.name for variant in variants]
            title = " and ".join(names) if len(names) == 2 else f"{names[0]} and {len(names) - 1} others"
            content = SideBySide(title, "", names[0], variants, data=arguments.data).html()
        else:
            content = run_page.of_run(run_folder.read(first), arguments.data)
    write_file(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    print(path)


@dataclass(frozen=True)
class SideBySide:
    """The page of any runs, or of variants with their seeds, the reference among them; also as Markdown and CSV
    (docs/comparing.md).

    ``seeds`` is the number that each should have, ``note`` what is true of all bits/dim, ``data`` the present place of
    the data.
    """

    title: str
    about: str
    reference: str
    variants: list[ComparedVariant]
    seeds: int = 1
    note: str = ""
    data: str | None = None

    @cached_property
    def rows(self) -> list[Row]:
        """The numbers of each variant."""
        return compared.rows(self.variants, self.reference)

    @property
    def shown(self) -> list[Row]:
        """Rows of the variants that have numbers."""
        return [row for row in self.rows if row["seeds"]]

    @cached_property
    def plots(self) -> dict[str, Plot]:
        """Those that can be drawn, by the names of their files."""
        plots = figures.training({v.name: v.folders for v in self.variants if v.runs})
        measured = [(row["name"], row["points"]) for row in self.shown if row.get("points")]
        if quality := [_quality(name, points) for name, points in measured]:
            caption = f"{self._distance} against evaluations; bands: standard error over seeds."
            title, x = "Distance of samples to the data", figures.EVALUATIONS
            plots["quality"] = Plot(title, x, "distance", quality, caption, figures.evaluations_axis)
        by_time = [(r["name"], zip(r.get("t_middles", ()), r.get("variance_by_time", ()))) for r in self.shown]
        points = [(name, [(t, value) for t, value in of if value is not None]) for name, of in by_time]
        if lines := [Line(name, found, number=number) for number, (name, found) in enumerate(points) if found]:
            caption = "Variance of one image's estimate of the bound by time, under each variant's own density."
            plots["variance"] = figures.variance(lines, caption)
        return plots

    @property
    def _distance(self) -> str:
        return next((row["distance"] for row in self.shown if row.get("points")), "Distance")

    @property
    def sections(self) -> list[Section]:
        """The sections of the page, in their order; tables without rows are left out."""
        settings = [{"variant": variant.name, "settings": self._settings(variant)} for variant in self.variants]
        note = f"Those in which each differs from '{self.reference}', whose values are in brackets."
        tables = [self._bits(), self._differences(), *self._distances(), self._training(), self._failures()]
        runs = {v.name: run for v in self.variants for run in reversed(v.folders) if run_page.last_sheet(run)}
        runs = runs or {v.name: run for v in self.variants for run in v.folders}
        plots = [*self.plots.values()]
        return [
            *(section for section in tables if any(isinstance(p, Table) and p.rows for p in section.parts)),
            *([run_page.samples(runs, self.data)] if runs else []),
            Section("Curves", [Figures(plots) if plots else Missing("No run has logged a step.")]),
            Section("Settings", [Table(settings)], note),
        ]

    def _bits(self) -> Section:
        rows = []
        for row in self.shown:
            described = {key: row.get(key) for key in ("bound", "dequantisation")}
            count = len(row["seeds"])
            seeds = None if self.seeds == 1 else str(count) if count == self.seeds else f"{count} of {self.seeds}"
            kinds = {title: _bits(row.get(key)) for key, title in KINDS.values()}
            of = {"ODE's dequantisation": row.get("ode_dequantisation"), "seeds": seeds}
            rows.append({"variant": row["name"], **described, **kinds, **of, "images": row.get("images")})
        names = sorted({run.dataset.name for v in self.variants for run in v.folders if run.dataset})
        others = f"The runs are of different data sets ({', '.join(names)}): their numbers do not compare. "
        note = (
            f"{others if len(names) > 1 else ''}{self.note}{OVER}; of a single seed, over images, which does not say "
            "what another training would give. The own bound is that of the interval, decoder and dequantisation in "
            "the row: bounds of different intervals are different quantities. The closed one is on [0, 1] with uniform "
            "dequantisation, where the predictor allows it. The ODE is solved on the interval in the row."
        )
        return Section("Bits/dim", [Table(rows)], note)

    def _differences(self) -> Section:
        found = {
            row["name"]: {title: _difference((row.get(key) or {}).get("difference")) for key, title in KINDS.values()}
            for row in self.shown
        }
        rows = [{"variant": name, **by_kind} for name, by_kind in found.items() if any(by_kind.values())]
        note = (
            f"Bits/dim less those of '{self.reference}', image by image with the same seed, so that what is hard for "
            f"both adds nothing to the error: mean {PLUS_MINUS} standard error over images / over seeds. Below zero "
            "the variant is better."
        )
        return Section(f"Difference to {self.reference}", [Table(rows)], note)

    def _distances(self) -> list[Section]:
        """At each number of evaluations, by the common samplers and by the variants' own; and what ``fid`` measured."""
        drawn = [row for row in self.shown if row.get("points")]
        best = [_at(row["name"], row["sampler"], row["points"]) for row in drawn]
        own = [_at(row["name"], row["own_sampler"], row["own_points"]) for row in drawn if "own_points" in row]
        several = [row for row in drawn if len(row["samplers"]) > 1]
        every = [_at(row["name"], each["sampler"], each["points"]) for row in several for each in row["samplers"]]
        runs = [(variant.name, run) for variant in self.variants for run in variant.folders]
        found = [(name, result) for name, run in runs for result in run.of_kind(FrechetResult).values()]
        found.sort(key=lambda each: (each[1].name, each[1].reference.text))
        measured = [{"variant": name, **run_page.distance(result)} for name, result in found]
        note = f"{OVER}, from the same noise, by the solver and grid in the row."
        better = " Of the samplers that all have, a row shows that of the least distances in the geometric mean."
        return [
            Section(f"{self._distance} at so many evaluations", [Table(best)], note + better),
            Section(f"{self._distance} by each variant's own sampler", [Table(own)], note),
            Section(f"{self._distance} by every common sampler", [Table(every)], note),
            Section("Distance of samples to data", [Table(measured, (run_page.VALUE,))]),
        ]

    def _training(self) -> Section:
        rows = []
        for variant, row in zip(self.variants, self.rows):
            if not row["seeds"]:
                continue
            variance = row.get("variance")
            measured = {
                "variant": row["name"],
                "std of the batch's bound": None if variance is None else f"{variance['mean'] ** 0.5:.4f}",
                "its variance": _mean(variance, 2, "g"),
                "gradient noise": _mean(row.get("gradient_noise"), 3, "g"),
                "noise scale": _mean(row.get("noise_scale"), 2, "g"),
                "images/s": _mean(row["images_per_second"], 0),
            }
            facts = run_page.facts(variant.folders[0]).items()
            rows.append(measured | {name: value and value[:60] for name, value in facts if name not in OF_ONE})
        note = (
            "At the trained weights: standard deviation of a batch's estimate of the bound; root of the trace of the "
            "batch's gradient covariance; gradient noise scale in batches (docs/comparing.md). Images/s while training."
        )
        return Section("Training", [Table(rows)], note)

    def _failures(self) -> Section:
        failed = [{"variant": r["name"], **f, "seed": str(f["seed"])} for r in self.rows for f in r["failures"]]
        note = "The other runs are not affected. The same command tries them again."
        return Section("Failed runs", [Table(failed)], note)

    def _settings(self, variant: ComparedVariant) -> str:
        """In what a variant differs from the reference."""
        if variant.name == self.reference:
            return "the reference"
        own, theirs = variant.settings, next(v.settings for v in self.variants if v.name == self.reference)
        texts = [
            {key: "null" if value is None else str(value)[:200] for key, value in of.items()} for of in (own, theirs)
        ]
        shown = [f"{k}: {texts[0].get(k, NONE)} ({texts[1].get(k, NONE)})" for k in compared.differing(own, theirs)]
        return masked(", ".join(shown)) or "equal to the reference"

    def html(self) -> str:
        return page.html(self.title, self.sections, self.about)


def write(side_by_side: SideBySide, folder: Path) -> list[Path]:
    """Write ``comparison.md``, ``.csv`` and ``.html``, and the plots beside them; returns the three paths."""
    plots = side_by_side.plots
    for name, plot in plots.items():
        plot.save(folder / f"{name}.png")
    names = {id(plot): f"{name}.png" for name, plot in plots.items()}
    contents = {
        ".md": page.markdown(side_by_side.title, side_by_side.sections, side_by_side.about, names),
        ".csv": comma_separated(side_by_side.rows),
        ".html": side_by_side.html(),
    }
    paths = [folder / f"{NAME}{ending}" for ending in contents]
    for path, content in zip(paths, contents.values()):
        write_file(path, lambda temporary, content=content: temporary.write_text(content, encoding="utf-8"))
    return paths


def _quality(name: str, points: list[Row]) -> Line:
    means = [point["distance"] for point in points]
    nfes = [point["nfe"] for point in points]
    return Line(name, [*zip(nfes, (d["mean"] for d in means))], [d["error"] or 0.0 for d in means])


def _mean(value: Row | None, digits: int, form: str = "f") -> str | None:
    if value is None:
        return None
    precision = f".{digits}f" if form == "f" else ".1g"
    error = "" if value["error"] is None else f" {PLUS_MINUS} {value['error']:{precision}}"
    return f"{value['mean']:.{digits}{form}}{error}"


def _bits(found: Row | None) -> str | None:
    if found is None:
        return None
    bits = found["bits_per_dim"]
    return with_error(bits["mean"], found["error_images"] if bits["error"] is None else bits["error"], 4)


def _at(name: str, sampler: str, points: list[Row]) -> dict[str, str | None]:
    counts = {str(point["nfe"]): _mean(point["distance"], 3) for point in points}
    return {"variant": name, "solver, grid": sampler, **counts}


def _difference(found: Row | None) -> str | None:
    if found is None:
        return None
    errors = [f"{error:.4f}" for error in (found["error_images"], found["error_seeds"]) if error is not None]
    return f"{found['mean']:+.4f}" + (f" {PLUS_MINUS} {' / '.join(errors)}" if errors else "")
