"""Evaluate one run of a comparison: ``python -m fdtrain.comparison.evaluate RUN SETTINGS [--allow-code FILE ...]``,
SETTINGS as JSON.

One process for all that is measured, so that libraries are imported once.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fdtrain import files, plugins
from fdtrain.comparison import noise
from fdtrain.comparison.definition import SolverAndGrid
from fdtrain.comparison.runs import SETTINGS, record, result_files, step_of
from fdtrain.config import Config, load_config
from fdtrain.data.split import Split
from fdtrain.diffusion.weighting import WEIGHTINGS
from fdtrain.errors import UserError, exit_code
from fdtrain.evaluation import image_sets, nll, process, result
from fdtrain.evaluation.feature_networks import FeatureNetwork, open_features
from fdtrain.evaluation.frechet import frechet_distance
from fdtrain.evaluation.load import FOLDER, open_model
from fdtrain.evaluation.measure import measure
from fdtrain.evaluation.result import TrainingNoise
from fdtrain.networks.model import Model
from fdtrain.training.batch_noise import BatchNoise

BATCH = 256
NOISE = ("samplers", "sampler", "nfe", "samples", "strata", "batches", "gradients", "code")
"""Settings by which distances and the noise of training are measured: those of the likelihoods change nothing there."""


def evaluate(run: Path, settings: dict[str, Any], device: torch.device) -> None:
    """Likelihoods of the test split, then distances of samples and the noise of training; then the record of it.

    Raises:
        UserError: the run has no sound checkpoint of its last step.
    """
    config = load_config(run / "config.yaml")
    assert config.data.test_split is not None
    files_of_results, steps = result_files(run, config, settings), config.training.steps
    # From here on the results may be of both settings, until all are there.
    (run / FOLDER / SETTINGS).unlink(missing_ok=True)
    images, ode_images = settings["images"], settings["ode_images"]
    common = [str(run), "--data", config.data.paths[0], "--split", config.data.test_split]
    whole = ["--draws", str(settings["draws"])]
    ode = ["--ode", "--tolerance", str(settings["ode_tolerance"]), "--trace", "hutchinson"]
    if ode_images >= images:
        _nll(device, *common, *whole, *ode)
    else:
        _nll(device, *common, *whole)
        if ode_images:
            # The bound is computed again with it; two draws are the least.
            _nll(device, *common, "--draws", "2", "--images", str(ode_images), *ode)
    measure_noise(run, config, settings, device, files_of_results["noise"])
    for path in files_of_results.values():
        if (step := step_of(path)) != steps:
            raise UserError(f"{path} is of step {step}, not {steps}: no later checkpoint is sound.")
    files.write_text(run / FOLDER / SETTINGS, json.dumps(record(run, settings), indent=1) + "\n")


def _nll(device: torch.device, *words: str) -> None:
    parser = argparse.ArgumentParser()
    nll.add_arguments(parser)
    arguments = parser.parse_args(words)
    arguments.device = device
    nll.run(arguments)


def measure_noise(run: Path, config: Config, settings: dict[str, Any], device: torch.device, path: Path) -> None:
    """Write distances of samples and the noise of training batches, by the averaged weights, unless they are there."""
    begin = time.perf_counter()
    model, origin = open_model(run)
    model.to(device)
    split, network = Split(config.data.paths[0], config.data.train_split), open_features(settings["features"], device)
    definition = {
        "kind": "noise",
        **origin.identity(),
        **result.split_identity(split),
        "images": settings["samples"],
        "device": device.type,
        "seed": config.seed,
        "time_sampling": config.diffusion.time_sampling,
        "features": network.describe(),
        "settings": {key: settings[key] for key in NOISE if key in settings},
    }
    if result.defined_by(path, definition):
        return
    weighting = WEIGHTINGS[config.diffusion.weighting]
    batches = noise.Batches.of(model, split, replace(BatchNoise.of(config, model.spec), label_dropout=0.0), weighting)
    measured = {
        "batch": noise.bound(batches, settings["batches"], settings["strata"]),
        "gradient": noise.gradient(batches, settings["gradients"]),
        **_distances(network, model, split, settings, device),
    }
    content = {**definition, **measured, "seconds": time.perf_counter() - begin}
    result.write(TrainingNoise.model_validate(content), path)


def _distances(
    network: FeatureNetwork, model: Model, split: Split, settings: dict[str, Any], device: torch.device
) -> dict[str, Any]:
    """Frechet distances of samples to the split at each number of evaluations; all variants draw the same noise."""
    count = settings["samples"]
    target = measure(network, image_sets.of_split(split), BATCH, device).moments

    def points(named: SolverAndGrid) -> dict[str, Any]:
        samplers = {nfe: named.sampler(nfe) for nfe in settings["nfe"]}
        points = []
        for nfe, sampler in samplers.items():
            moments = measure(network, image_sets.of_model(model, sampler, 0, count), BATCH, device).moments
            points.append({"nfe": nfe, "distance": frechet_distance(moments, target)})
        grid = next(iter(samplers.values())).describe()["grid"]
        return {"solver": named.solver, "grid": grid, "points": points}

    own = settings.get("sampler")
    common = [SolverAndGrid.model_validate(each) for each in settings["samplers"]]
    return {
        "distance": network.title,
        "samplers": [points(each) for each in common if each.serves(model.spec, settings["nfe"])],
        "own_sampler": points(SolverAndGrid.model_validate(own)) if own else None,
    }


def main() -> None:
    run, settings = Path(sys.argv[1]), json.loads(sys.argv[2])
    plugins.execute(sys.argv[4::2])
    with process.process_group(None) as device:
        evaluate(run, settings, device)


if __name__ == "__main__":
    sys.exit(exit_code(main))
