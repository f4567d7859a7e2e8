"""What the logs of runs say of their training, as plots: of one run, or of several in the same axes."""

from dataclasses import dataclass

from fdtrain.evaluation import plotting
from fdtrain.evaluation.plotting import Line, Plot
from fdtrain.evaluation.run_folder import RunFolder

Runs = dict[str, RunFolder]
"""By the names of their lines."""
BANDS = "with two standard errors over images"


@dataclass(frozen=True)
class Metric:
    """A number of the log, and how it is drawn."""

    name: str
    title: str
    unit: str
    caption: str
    log: bool = False


METRICS = (
    Metric(
        "train/images_per_second",
        "Speed",
        "images/s",
        "Images per second of all processes, without evaluation, samples and checkpoints.",
    ),
    Metric(
        "train/gradient_norm",
        "Gradient norm",
        "nats per dimension",
        "Norm of the gradient before clipping: the mean over the steps of a line of the log.",
        log=True,
    ),
    Metric("train/lr", "Learning rate", "rate", "Learning rate."),
)


def of_run(run: RunFolder) -> list[Plot]:
    """The plots of one run."""
    lines = [Line("training batches", line.points) for line in _batches({"": run})]
    lines += [Line(f"{line.name}, averaged weights", line.points, line.band) for line in _held_out({"": run})]
    plots = []
    if lines:
        caption = f"Bits/dim of training batches, and of held-out images by the averaged weights {BANDS}."
        plots.append(Plot(plotting.over_steps("Bits/dim", "bits/dim", lines), caption))
    return plots + _others({"": run})


def compared(runs: Runs) -> list[Plot]:
    """The plots of several runs, a line for each."""
    plots = []
    if lines := _held_out(runs):
        figure = plotting.over_steps("Bits/dim of held-out images", "bits/dim", lines, first=0.8)
        plots.append(Plot(figure, f"Bits/dim of held-out images by the averaged weights {BANDS}."))
    if lines := _batches(runs):
        figure = plotting.over_steps("Bits/dim of training batches", "bits/dim", lines, first=0.8)
        plots.append(Plot(figure, "Bits/dim of training batches."))
    return plots + _others(runs)


def _others(runs: Runs) -> list[Plot]:
    """All but the likelihood: distances of samples, speed, gradient norm, rate."""
    keys = {key for run in runs.values() for line in run.metrics for key in line}
    distances = [
        Metric(
            key,
            f"Samples while training, {key.removeprefix('frechet/')}",
            "Frechet distance",
            "Frechet distance of a few samples to the training images while training: it shows the trend alone.",
            log=True,
        )
        for key in sorted(keys)
        if key.startswith("frechet/")
    ]
    plots = []
    for metric in (*distances, *METRICS):
        lines = _lines({name or metric.title: run.series(metric.name) for name, run in runs.items()})
        if lines:
            figure = plotting.over_steps(metric.title, metric.unit, lines, first=1.0, log=metric.log)
            plots.append(Plot(figure, metric.caption))
    return plots


def _lines(points: dict[str, list[tuple[float, float]]]) -> list[Line]:
    """Each run in the same colour in every plot, whether or not the others have what is drawn."""
    return [Line(name, found, number=number) for number, (name, found) in enumerate(points.items()) if found]


def _batches(runs: Runs) -> list[Line]:
    # Earlier versions logged it as the loss, which it is.
    return _lines({name: run.series("train/bits_per_dim") or run.series("train/loss") for name, run in runs.items()})


def _held_out(runs: Runs) -> list[Line]:
    """By run and split; several runs' splits are named where they differ."""
    splits = sorted({split for run in runs.values() for split in run.held_out()})
    lines = []
    for number, (name, run) in enumerate(runs.items()):
        for split, found in run.held_out().items():
            parts = [name] if name and len(splits) == 1 else [name, split]
            points = [(step, bits) for step, bits, _ in found]
            band = [(bits - 2 * error, bits + 2 * error) for _, bits, error in found]
            style = number + len(plotting.COLOURS) * splits.index(split)
            lines.append(Line(", ".join(filter(None, parts)), points, band, style))
    return lines
