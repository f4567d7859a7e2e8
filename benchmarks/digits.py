"""Test bits/dim of configs/digits.yaml, over seeds: trained through the launcher, evaluated as the demo does.

    python benchmarks/digits.py --seeds 0 1 2

Prints each seed's bound (EMA weights, 20 draws per image, all 300 test images) with its standard errors and the seconds
of training, and the spread over seeds.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def run(*command: str) -> None:
    subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def train(seed: int, folder: str, processes: int, settings: list[str]) -> tuple[dict, float]:
    """The result of evaluation, and seconds of training, start-up included."""
    name = f"seed{seed}"
    overrides = [f"output={folder}", f"data.path={folder}/data", f"name={name}", f"seed={seed}", *settings]
    begin = time.perf_counter()
    run(
        str(Path(sys.executable).parent / "deepspeed"),
        "--num_accelerators",
        str(processes),
        "fdtrain/main.py",
        "--config",
        "configs/digits.yaml",
        *(word for override in overrides for word in ("--set", override)),
    )
    seconds = time.perf_counter() - begin
    result = f"{folder}/{name}.json"
    run(
        sys.executable,
        "tools/evaluate.py",
        "nll",
        f"{folder}/{name}",
        "--data",
        f"{folder}/data",
        "--draws",
        "20",
        "--json",
        result,
    )
    return json.loads(Path(result).read_text()), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--set", action="append", default=[], help="overrides of the configuration")
    arguments = parser.parse_args()
    values = []
    with tempfile.TemporaryDirectory() as folder:
        run(sys.executable, "tools/pack.py", "digits", f"{folder}/data")
        for seed in arguments.seeds:
            result, seconds = train(seed, folder, arguments.processes, arguments.set)
            elbo = result["elbo"]
            values.append(elbo["bits_per_dim"])
            print(
                f"seed {seed}: test {elbo['bits_per_dim']:.4f} bits/dim (standard error over draws "
                f"{elbo['error_draws']:.4f}, over images {elbo['error_images']:.4f}), trained in {seconds:.0f} s",
                flush=True,
            )
    if len(values) > 1:
        mean, spread = statistics.mean(values), statistics.stdev(values)
        print(f"{len(values)} seeds: {mean:.4f}, standard deviation {spread:.4f}, worst {max(values):.4f}")


if __name__ == "__main__":
    main()
