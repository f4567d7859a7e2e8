"""One self-contained HTML page of a run: RUN/report.html.

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
    # Earlier versions logged it as the loss, which it is.
    curves = {"training": folder.series("train/bits_per_dim") or folder.series("train/loss")}
    names = {key for line in folder.metrics for key in line if key.endswith("/bits_per_dim")}
    for name in sorted(names - {"train/bits_per_dim"}):
        curves[f"{name.removesuffix('/bits_per_dim')}, averaged weights"] = folder.series(name)
    curves = {name: points for name, points in curves.items() if points}
    picture = None
    if curves:
        picture = arguments.run / "evaluation" / "training.png"
        figures.training(curves, picture)
    path = arguments.run / "report.html"
    page = report.page(folder, picture)
    result.write_file(path, lambda temporary: temporary.write_text(page, encoding="utf-8"))
    print(path)
