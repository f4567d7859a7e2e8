"""A comparison from its checks to its table."""

import json
import statistics
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml

from fdtrain import files, lock
from fdtrain.capacity.layout import run_layout
from fdtrain.comparison.definition import Comparison, run_name
from fdtrain.comparison.runs import PlannedRun, Schedule, planned_run
from fdtrain.config import Config
from fdtrain.credentials import masked_values
from fdtrain.data.dataset import DatasetDescription
from fdtrain.data.mixture import open_data
from fdtrain.data.split import Split
from fdtrain.diffusion.likelihood import ODE_SOLVER
from fdtrain.diffusion.objective import Bound
from fdtrain.errors import UserError
from fdtrain.evaluation import label_features, report, result, run_folder
from fdtrain.evaluation.compared import ComparedVariant
from fdtrain.evaluation.feature_networks import open_features
from fdtrain.evaluation.result import TrainingNoise
from fdtrain.plugins import code_of
from fdtrain.strict_yaml import flattened
from fdtrain.training.plan import model_spec, prepare

RECORD = "comparison.yaml"
RESULT = "comparison.json"
STEPS = "steps.json"
FEATURES = "features"
CALIBRATION_STEPS, CALIBRATION_WINDOW = 60, 10
"""Of equal seconds: the steps by which a variant's speed is measured, and those of one line of the log."""


def compare(comparison: Comparison, slots: int, processes: int, device: Any) -> tuple[list[Path], dict[str, str]]:
    """Train and evaluate every run that is not finished, then read all of them.

    Returns:
        The files of the result, and the reasons of the runs that failed, by name.

    Raises:
        UserError: whatever can be known to be wrong before any training.
    """
    begin, folder, definition = time.perf_counter(), comparison.folder, comparison.definition
    check(comparison, processes)
    check_folder(comparison)
    with ExitStack() as stack:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            stack.enter_context(lock.held(folder))
            write_record(comparison)
            split = test_split(comparison)
            settings = _settings(comparison, split, _features(comparison, device))
            for variant in comparison.configs:
                first = planned_run(comparison, variant, definition.seeds[0], settings)
                first.write_config()
                try:
                    prepare(str(first.config_file), [], resume=True)
                except UserError as error:
                    raise UserError(f"variant '{variant}': {error}") from error
            steps, failures = steps_of_variants(comparison, slots, processes)
            runs = planned_runs(comparison, steps, settings)
            for run in runs:
                run.write_config()
        except OSError as error:
            raise UserError(f"output: cannot write into {folder} ({error.strerror}).") from error
        failures |= Schedule(runs, slots, processes).work()
        written = _written(comparison, runs, failures, split, settings, time.perf_counter() - begin)
    return written, failures


def compare_finished(comparison: Comparison) -> list[Path]:
    """The table of the runs that are finished. None is started; the comparison itself may be at work meanwhile.

    Raises:
        UserError: none is finished, or the folder is of another comparison.
    """
    begin, definition, folder = time.perf_counter(), comparison.definition, comparison.folder
    check(comparison, 1)
    check_folder(comparison)
    split = test_split(comparison)
    settings = _settings(comparison, split, definition.features or str(folder / FEATURES))
    steps = _equal_steps(comparison) or _stored_steps(folder / STEPS)
    runs = [run for run in planned_runs(comparison, steps, settings) if run.finished()]
    if not runs:
        raise UserError(f"{folder}: no run is finished yet.")
    return _written(comparison, runs, {}, split, settings, time.perf_counter() - begin)


def planned_runs(comparison: Comparison, steps: dict[str, int], settings: dict[str, Any]) -> list[PlannedRun]:
    """The runs of the variants that have a number of steps, seed by seed: what is interrupted has all variants of the
    first."""
    return [
        planned_run(comparison, variant, seed, settings, steps=steps[variant])
        for seed in comparison.definition.seeds
        for variant in comparison.configs
        if variant in steps
    ]


def check(comparison: Comparison, processes: int) -> None:
    """All variants are of one data set with labels or features, and their runs can be launched and evaluated."""
    definition, evaluation = comparison.definition, comparison.definition.evaluation
    if min(evaluation.nfe) < 1:
        raise UserError("evaluation.nfe must be at least 1.")
    if evaluation.gradients > evaluation.batches:
        raise UserError("evaluation.gradients must not be above evaluation.batches.")
    (first, reference), *_ = comparison.configs.items()
    data = _description(reference)
    for name, config in comparison.configs.items():
        run_layout(config.training, processes)
        if config.data.test_split is None or len(config.data.paths) > 1:
            raise UserError(f"variant '{name}': data: a comparison needs one data set with a held-out test_split.")
        found = _description(config)
        for key in ("levels", "size", "channels", "name"):
            a, b = getattr(data, key), getattr(found, key)
            if a != b:
                raise UserError(
                    f"variant '{name}' is of data with {key} {b}, '{first}' of {key} {a}: bits/dim compare on one "
                    "data set alone. Give every variant the same data."
                )
        if (found.splits, config.data.test_split) != (data.splits, reference.data.test_split):
            raise UserError(f"variant '{name}' is of other images than '{first}'.")
        _check_samplers(comparison, name, found)
    if definition.features is None and not data.classes:
        raise UserError(
            f"features: data set '{data.name}' has no labels to learn features from. Name a feature network."
        )


def _check_samplers(comparison: Comparison, name: str, data: DatasetDescription) -> None:
    """One of the common samplers and a variant's own, if it has one, serve its model."""
    evaluation, own = comparison.definition.evaluation, comparison.samplers.get(name)
    try:
        spec = model_spec(comparison.configs[name], data)
        if own is not None:
            own.check(spec, evaluation.nfe)
        if not any(sampler.serves(spec, evaluation.nfe) for sampler in evaluation.samplers):
            evaluation.samplers[0].check(spec, evaluation.nfe)
    except UserError as error:
        raise UserError(f"variant '{name}': {error}") from error


def _description(config: Config) -> DatasetDescription:
    return open_data(config.data.paths).description


def test_split(comparison: Comparison) -> Split:
    """The held-out split, which is the same for all variants."""
    config = next(iter(comparison.configs.values()))
    assert config.data.test_split is not None
    return Split(config.data.paths[0], config.data.test_split)


def _settings_of(config: Config) -> dict[str, Any]:
    """What a variant is, without what each run sets."""
    settings = masked_values(config.model_dump(mode="json", exclude={"name", "output", "seed"}))
    return settings | ({"code": config.code} if config.code else {})


def _record(comparison: Comparison) -> dict[str, Any]:
    """What defines the numbers of a comparison; the folder has the same as long as it is used."""
    definition = comparison.definition.model_dump(mode="json", include={"name", "steps", "seconds", "features"})
    variants = {name: _settings_of(config) for name, config in comparison.configs.items()}
    return {**definition, "variants": variants}


def write_record(comparison: Comparison) -> None:
    """Variants of the folder that are left out this time stay on record: they may come back, unchanged."""
    path, ours = comparison.folder / RECORD, _record(comparison)
    stored = yaml.safe_load(path.read_text())["variants"] if path.is_file() else {}
    files.write_text(path, yaml.safe_dump({**ours, "variants": {**stored, **ours["variants"]}}, sort_keys=False))


def check_folder(comparison: Comparison) -> None:
    """The folder is new, or of this comparison: more seeds and variants may come, but none may have changed.

    Raises:
        UserError: it is another's.
    """
    folder = comparison.folder
    try:
        stored = yaml.safe_load((folder / RECORD).read_text())
        stored |= {"variants": {name: flattened(settings) for name, settings in stored["variants"].items()}}
    except FileNotFoundError:
        if folder.is_dir() and any(path.name != lock.FILE for path in folder.iterdir()):
            raise UserError(
                f"{folder} holds something else than a comparison. Choose another name or output."
            ) from None
        return
    except (OSError, yaml.YAMLError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise UserError(f"{folder / RECORD} cannot be read ({type(error).__name__}). Choose another name.") from error
    ours = json.loads(json.dumps(_record(comparison)))
    changed = [key for key in ("steps", "seconds", "features") if stored.get(key) != ours[key]]
    both = {name: stored["variants"][name] for name in ours["variants"] if name in stored["variants"]}
    # Earlier versions have recorded more.
    changed += [
        f"variant '{name}'"
        for name, before in both.items()
        if not flattened(ours["variants"][name]).items() <= before.items()
    ]
    if changed or not both:
        what = f"it differs in {', '.join(changed)}" if changed else "no variant is in both"
        raise UserError(f"{folder} holds the results of another comparison: {what}. Choose another name or output.")


def _features(comparison: Comparison, device: Any) -> str:
    """The feature network: the one that is named, or learnt from the labels once."""
    named = comparison.definition.features
    if named is not None:
        open_features(named, device)
        return named
    folder = comparison.folder / FEATURES
    if not (folder / label_features.DESCRIPTION).is_file():
        config = next(iter(comparison.configs.values()))
        label_features.save(*label_features.train(Split(config.data.paths[0], config.data.train_split)), folder)
    return str(folder)


def _settings(comparison: Comparison, split: Split, features: str) -> dict[str, Any]:
    """Of each run's evaluation, as JSON."""
    evaluation = comparison.definition.evaluation.model_dump(mode="json")
    ode_images = min(evaluation["ode_images"], len(split))
    ode = {"ode_images": ode_images, "ode_solver": ODE_SOLVER}
    samplers = (*comparison.definition.evaluation.samplers, *comparison.samplers.values())
    solvers = {sampler.solver for sampler in samplers}
    code = code_of(*(("solver", solver) for solver in solvers))
    return {**evaluation, **ode, "images": len(split), "features": features, **({"code": code} if code else {})}


def steps_of_variants(comparison: Comparison, slots: int, processes: int) -> tuple[dict[str, int], dict[str, str]]:
    """Steps of each variant, and the failures of variants whose speed could not be measured.

    For equal seconds, the speed is measured once by a short run of each variant beside others, as the runs will be.
    """
    definition = comparison.definition
    if equal := _equal_steps(comparison):
        return equal, {}
    assert definition.seconds is not None
    path = comparison.folder / STEPS
    steps = _stored_steps(path)
    timed = [_calibration(comparison, name) for name in comparison.configs if name not in steps]
    for run in timed:
        run.write_config()
    failed = Schedule(timed, slots, processes).work()
    for run in timed:
        if run.name not in failed:
            seconds = [s for _, s in run_folder.read(run.folder).series("train/step_seconds")]
            steps[run.variant] = max(1, round(definition.seconds / statistics.median(seconds[1:])))
    files.write_text(path, json.dumps(steps, indent=1) + "\n")
    failures = {
        planned_run(comparison, run.variant, seed, None).name: failed[run.name]
        for run in timed
        if run.name in failed
        for seed in definition.seeds
    }
    return steps, failures


def _equal_steps(comparison: Comparison) -> dict[str, int]:
    """Of a comparison at equal steps; nothing at equal seconds."""
    steps = comparison.definition.steps
    return {} if steps is None else dict.fromkeys(comparison.configs, steps)


def _stored_steps(path: Path) -> dict[str, int]:
    try:
        return {str(name): int(steps) for name, steps in json.loads(path.read_text()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f"{path} is damaged ({error}). Delete it: the speeds are measured again.") from error


def _calibration(comparison: Comparison, variant: str) -> PlannedRun:
    config = comparison.configs[variant]
    unwatched = dict.fromkeys(("evaluate_every", "sample_every", "frechet_every")) | {"callbacks": ()}
    monitor = config.monitor.model_copy(update={"log_every": CALIBRATION_WINDOW, **unwatched})
    changed = {"name": f"{variant}-speed", "output": comparison.folder / "runs", "monitor": monitor}
    training = config.training.model_copy(update={"steps": CALIBRATION_STEPS})
    config = config.model_copy(update={**changed, "training": training})
    return PlannedRun(variant, config.seed, config, None)


def _written(
    comparison: Comparison,
    runs: list[PlannedRun],
    failures: dict[str, str],
    split: Split,
    settings: dict[str, Any],
    seconds: float,
) -> list[Path]:
    """Write the numbers and the page of all runs that are finished."""
    definition, reference = comparison.definition, comparison.definition.reference
    finished = {run.name: run.results() for run in runs if run.name not in failures}
    variants = []
    for name, config in comparison.configs.items():
        names = {seed: run_name(name, seed) for seed in definition.seeds}
        variants.append(
            ComparedVariant(
                name,
                {seed: finished[run] for seed, run in names.items() if run in finished},
                flattened(_settings_of(config)),
                {seed: failures[run] for seed, run in names.items() if run in failures},
                _described(model_spec(config, split.description).bound),
            )
        )
    budget = f"{definition.steps} steps" if definition.steps else f"{definition.seconds:g} seconds of training steps"
    seeds, identity = ", ".join(map(str, definition.seeds)), result.split_identity(split)
    noise = [noise for run in finished.values() for noise in run.of_kind(TrainingNoise).values()]
    device = noise[0].device if noise else "unknown"
    page = report.SideBySide(
        f"Comparison: {definition.name}",
        f"{len(variants)} variants, seeds {seeds}, {budget} each, on {identity['dataset']} ({device}).",
        reference,
        variants,
        len(definition.seeds),
        f"By the averaged weights, {settings['draws']} draws of the bound per image, {identity['levels']} levels. ",
    )
    content = {
        "kind": "comparison",
        "version": result.VERSION,
        **identity,
        "device": device,
        "seconds": seconds,
        "name": definition.name,
        "reference": reference,
        "budget": budget,
        "seeds": list(definition.seeds),
        **{key: settings[key] for key in ("images", "draws", "ode_images", "samples")},
        "variants": page.rows,
    }
    result.write(content, comparison.folder / RESULT)
    return report.write(page, comparison.folder)


def _described(bound: Bound) -> dict[str, Any]:
    """What the numbers of a variant are of."""
    interval = bound.interval
    return {
        "interval": (interval.t_min, interval.t_max),
        "decoder": bound.decoder if interval.t_min else "none",
        "dequantisation": bound.dequantisation,
        "ode_dequantisation": bound.ode_dequantisation,
    }
