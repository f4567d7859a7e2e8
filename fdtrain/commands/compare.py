"""Compare variants of a configuration: ``fdtrain compare configs/comparisons/digits.yaml``.

Trains each variant with each seed by the ordinary training command, evaluates all of them alike, and writes one table:
comparison.md, .csv and .html in the comparison's folder (docs/comparing.md). A command that was stopped continues when
it is repeated. A run that fails is reported in the table and does not stop the others; the exit code is then 1.
"""

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from fdtrain import distributed
from fdtrain.comparison.definition import load_comparison
from fdtrain.errors import UserError, check_at_least
from fdtrain.evaluation import process
from fdtrain.main import add_allow_code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("comparison", type=Path, help="YAML file; see configs/comparisons/")
    parser.add_argument("--jobs", type=int, help="runs side by side; default: as many as the devices or cores allow")
    parser.add_argument("--processes", type=int, default=1, help="of each run (default: 1)")
    add_allow_code(parser)
    parser.add_argument("--finished", action="store_true", help="start nothing; the table of what is finished so far")


def run(arguments: argparse.Namespace) -> None:
    if distributed.world_size() > 1:
        raise UserError("start fdtrain compare without a launcher: it launches its runs itself; see --processes.")
    check_at_least(arguments, 1, "jobs", "processes")
    # Draws curves: --help needs no matplotlib.
    from fdtrain.comparison.compare import compare, compare_finished

    comparison = load_comparison(arguments.comparison)
    try:
        with _terminated_as_interrupted(), process.process_group(None) as device:
            devices = torch.cuda.device_count() if distributed.on_gpu() else len(os.sched_getaffinity(0))
            jobs = arguments.jobs or max(1, devices // arguments.processes)
            failures: dict[str, str] = {}
            if arguments.finished:
                files = compare_finished(comparison)
            else:
                files, failures = compare(comparison, jobs, arguments.processes, device)
    except KeyboardInterrupt:
        raise UserError(f"interrupted. {process.AGAIN}") from None
    print(*files, sep="\n")
    if failures:
        print(f"fdtrain: {len(failures)} of the runs failed; the table says why.", file=sys.stderr)
        sys.exit(1)


@contextmanager
def _terminated_as_interrupted() -> Iterator[None]:
    """A scheduler that ends the comparison is told the same as who presses Ctrl-C, and its runs save likewise."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
