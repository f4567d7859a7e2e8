"""One self-contained HTML page of a run: RUN/report.html. With --compare several runs side by side on one page.

Reads what training and the other commands have written, and images of the run's data; what is missing is said with the
command that makes it.
"""

import argparse
from pathlib import Path

from fdtrain import distributed
from fdtrain.console import phase
from fdtrain.errors import UserError
from fdtrain.evaluation import compared, report, result, run_folder, side_by_side


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
            variants = compared.of_runs([run_folder.read(folder) for folder in arguments.runs])
            names = [variant.name for variant in variants]
            title = " and ".join(names) if len(names) == 2 else f"{names[0]} and {len(names) - 1} others"
            content = side_by_side.SideBySide(title, "", names[0], variants, data=arguments.data).html()
        else:
            content = report.of_run(run_folder.read(first), arguments.data)
    result.write_file(path, lambda temporary: temporary.write_text(content, encoding="utf-8"))
    print(path)
