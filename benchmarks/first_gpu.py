"""All that a first GPU is to show, on one card in some 25 minutes: ``make gpu``.

    python benchmarks/first_gpu.py --folder runs/first_gpu

It goes piece by piece, none longer than eight minutes. A piece that has succeeded is recorded in the folder and not
done again, so after an interruption the same command goes on; training is resumed. The table is FOLDER/table.md.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import torch

from fdtrain.training.hardware import name

FASHION = Path("/usr/share/datasets/fashion-mnist")
"""Where the package dataset-fashion-mnist of Debian and Ubuntu puts its files."""
CHANNELS_LAST = "bf16, compiled, channels last"


@dataclass(frozen=True)
class Piece:
    """Commands to run one after another, and what is to be told of them: of the last one's output, by ``shows``."""

    name: str
    commands: Sequence[Sequence[str]]
    minutes: float
    shows: Callable[[str], str]


def last_line(output: str) -> str:
    return output.strip().splitlines()[-1]


def training(folder: Path, config: str, pack: Sequence[str], minutes: float, *settings: str) -> Piece:
    """A short run of a shipped configuration, by DeepSpeed's launcher."""
    data, run = folder / "data" / config, folder / config
    overrides = [f"name={config}", f"output={folder}", f"data.path={data}", *settings]
    launcher = [str(Path(sys.executable).parent / "deepspeed"), "--quiet", "--num_accelerators", "1"]
    train = [*launcher, "fdtrain/main.py", "--config", f"configs/{config}.yaml", "--resume", "auto"]
    commands = [
        [sys.executable, "tools/pack.py", *pack[:1], *pack[1:2], str(data), *pack[2:]],
        train + [word for setting in overrides for word in ("--set", setting)],
    ]
    return Piece(config, commands, minutes, lambda output: trained(run / "metrics.jsonl"))


def trained(log: Path) -> str:
    """The last window of a run's log."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    last = next(line for line in reversed(lines) if "train/images_per_second" in line)
    shown = {
        "bits/dim": f"{last['train/bits_per_dim']:.4f}",
        "images/s": f"{last['train/images_per_second']:.0f}",
        "of the matrix rate": f"{last.get('train/utilisation', float('nan')):.1%}",
        "waited for data": f"{last['train/data_wait']:.1%}",
        "GiB": f"{last['train/memory_gib']:.1f}",
    }
    return f"step {last['step']}: " + ", ".join(f"{value} {what}" for what, value in shown.items())


def pieces(folder: Path) -> list[Piece]:
    def measured(minutes: int, *options: str) -> list[list[str]]:
        return [[sys.executable, "benchmarks/gpu.py", "--minutes", str(minutes), *options]]

    fashion = ["training.steps=1500", "training.compile=true"]
    fashion += ["monitor.evaluate_every=1500", "monitor.sample_every=750"]
    tests = [sys.executable, "-m", "pytest", "-m", "gpu or fake_cuda", "tests/test_gpu.py", "tests/test_devices.py"]
    found = [
        Piece("tests", [tests], 7, last_line),
        training(folder, "digits", ["digits"], 4, "training.steps=400"),
        Piece("networks", measured(7), 8, lambda output: "docs/lab/performance.md"),
        Piece("channels last", measured(5, "--variants", CHANNELS_LAST), 6, lambda output: "docs/lab/performance.md"),
    ]
    if FASHION.is_dir():
        found.insert(2, training(folder, "fashion_mnist_gpu", ["idx", str(FASHION)], 6, *fashion))
    return found


def carry_out(wanted: Sequence[Piece], folder: Path) -> bool:
    """Do what is not done yet; returns whether all is done now."""
    folder.mkdir(parents=True, exist_ok=True)
    for piece in wanted:
        record = folder / f"{piece.name}.json"
        if record.exists():
            continue
        print(f"{piece.name}: up to {piece.minutes:g} minutes", flush=True)
        begin = time.monotonic()
        try:
            for command in piece.commands:
                left = 60 * piece.minutes - (time.monotonic() - begin)
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=left, check=True)
            shown = piece.shows(done.stdout)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError, StopIteration, OSError) as error:
            print(f"{piece.name}: not done ({error})", flush=True)
            continue
        minutes = (time.monotonic() - begin) / 60
        record.write_text(json.dumps({"date": f"{date.today():%Y-%m-%d}", "minutes": minutes, "shown": shown}) + "\n")
    return all((folder / f"{piece.name}.json").exists() for piece in wanted)


def table(wanted: Sequence[Piece], folder: Path, device: str) -> str:
    lines = [f"### First run on {device}", f"`make gpu`, torch {torch.__version__}.\n"]
    lines += ["| piece | date | minutes | what it shows |", "|---|---|---|---|"]
    for piece in wanted:
        record = folder / f"{piece.name}.json"
        found = json.loads(record.read_text()) if record.exists() else {"date": "", "minutes": 0, "shown": "not done"}
        lines.append(f"| {piece.name} | {found['date']} | {found['minutes']:.1f} | {found['shown']} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/first_gpu"))
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks/first_gpu.py: no GPU here.")
    folder = arguments.folder
    wanted = pieces(folder)
    complete = carry_out(wanted, folder)
    (folder / "table.md").write_text(table(wanted, folder, name(torch.device("cuda", 0))))
    print((folder / "table.md").read_text())
    sys.exit(0 if complete else "not all is done: see above, and run this again")


if __name__ == "__main__":
    main()
