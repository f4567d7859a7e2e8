"""one self-contained HTML page of a run: RUN/report.html.

Reads what training and the other commands have written; what is missing is said with the command that makes it.
"""

import argparse
from pathlib import Path

from fdtrain import distributed
from fdtrain.evaluation.reporting import figures, report, result, run_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", type=Path, help="the run's folder")


def run(arguments: argparse.Namespace) -> None:
    if distributed.rank() != 0:
        return
    folder = run_folder.read(arguments.run)
    curves = {"training": folder.series("train/loss")}
    for name in sorted({key for line in folder.metrics for key in line if key.endswith("/bits_per_dim")}):
        curves[f"{name.removesuffix('/bits_per_dim')}, averaged weights"] = folder.series(name)
    curves = {name: points for name, points in curves.items() if points}
    picture = None
    if curves:
        picture = arguments.run / "evaluation" / "training.png"
        figures.training(curves, picture)
    path = arguments.run / "report.html"
    page = report.page(folder, picture)
    result.replace(path, lambda aside: aside.write_text(page, encoding="utf-8"))
    print(path)
