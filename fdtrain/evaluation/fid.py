"""Frechet distance of samples to a split, with kernel distance, precision and recall, and Inception Score.

    fdtrain evaluate fid runs/cifar10 --data data/cifar10 --features inception-2015-12-05.pt
    fdtrain evaluate fid --samples a b.npz --data data/cifar10 --features inception-2015-12-05.pt

Draws sets of samples that differ by their seed alone, or takes sets that ``fdtrain sample`` has left, and prints the
mean over the sets and its spread. By the standard Inception's features the distance is the FID; by any others it bears
their name.
"""

import argparse
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from fdtrain import distributed, files
from fdtrain.data.split import Split
from fdtrain.errors import UserError, check_at_least, excerpt
from fdtrain.evaluation import frechet, image_sets, measure, process, result
from fdtrain.evaluation.feature_networks import FeatureNetwork, open_features
from fdtrain.evaluation.image_sets import PixelSet
from fdtrain.evaluation.likelihood import check_same_images
from fdtrain.evaluation.load import ModelOrigin, add_length, open_model
from fdtrain.evaluation.measure import FIRST_FEATURES, Measured
from fdtrain.evaluation.result import FrechetResult
from fdtrain.evaluation.run_folder import open_split
from fdtrain.evaluation.samples import Sampler, add_sampling_arguments
from fdtrain.partial import differences
from fdtrain.randomness import check_seed

IMAGES = 50_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", nargs="?", help="a run (its newest checkpoint), a checkpoint, or an export")
    add_length(parser)
    parser.add_argument(
        "--samples", type=Path, nargs="+", metavar="SET", help="instead of a model: folders or .npz, one a set"
    )
    parser.add_argument("--data", help="a packed data set (default: the run's own)")
    parser.add_argument("--split", help="of it (default: the run's, or train)")
    parser.add_argument("--flip", action="store_true", help="compare with the split's mirror images too")
    parser.add_argument(
        "--features", help="TorchScript file, folder or the Inception's URL; default: the Inception in ~/.cache/fdtrain"
    )
    parser.add_argument(
        "--reference",
        type=Path,
        metavar="FILE",
        help="store the split's statistics in this .npz, or use those that are there, also those of other programs",
    )
    parser.add_argument("--images", type=int, help=f"of a set (default: {IMAGES}; of --samples, all)")
    parser.add_argument("--sets", type=int, default=3, help="of samples to draw (default: 3)")
    parser.add_argument("--seed", type=int, default=0, help="of the first set; the next has the next")
    add_sampling_arguments(parser)
    parser.add_argument("--json", type=Path, help="write the numbers there too")
    parser.add_argument("--device", help="such as cpu or cuda:1; by default the GPU, where there is one")


def run(arguments: argparse.Namespace) -> None:
    start = time.perf_counter()
    check_at_least(arguments, 1, "images", "sets")
    check_seed(arguments.seed, "--seed", arguments.sets)
    if (arguments.model is None) == (arguments.samples is None):
        raise UserError("give a model to sample from, or samples with --samples.")
    if arguments.samples and arguments.ema_length is not None:
        raise UserError("--ema-length chooses the average of a model; --samples are drawn already.")
    if arguments.reference and arguments.reference.suffix != ".npz":
        raise UserError(
            f"--reference {arguments.reference}: name a .npz file; what an older one holds is computed again."
        )
    # Rank 0 decides for all: it may be about to write the file.
    path: Path | None = arguments.reference
    there = distributed.broadcast(path is not None and path.is_file())
    stored = measure.read(path, arguments.device) if path and there else None
    foreign = stored is not None and stored.about is None
    for name in ("data", "split", "flip"):
        if foreign and getattr(arguments, name):
            raise UserError(f"--{name}: {arguments.reference} has statistics of images of its own. Leave it out.")
    split = None if foreign else open_split(arguments.model, arguments.data, arguments.split, "train")
    network = open_features(arguments.features, arguments.device)
    sets, definition, origin = _model_sets(arguments, split) if arguments.model else _stored_sets(arguments, split)
    target = _reference(arguments, split, network, stored)
    definition = {
        "kind": "frechet",
        "name": network.title,
        **definition,
        "images": sets[0].count,
        "reference": target.about,
        "features": network.describe(),
        "kept": len(target.first_features),
        "device": arguments.device.type,
    }
    process.check_same(definition)
    own = origin.result_file("frechet", network.identity.name) if origin else None
    outputs = [output for output in (own, arguments.json) if output]
    done = distributed.broadcast(_finished(outputs[0], definition) if outputs and distributed.rank() == 0 else [])

    def record() -> FrechetResult:
        """Of the sets that are done so far, written to all outputs."""
        more = {"seconds": time.perf_counter() - start, "unfinished": len(done) < len(sets)}
        found = FrechetResult.model_validate(definition | _summary(done) | more)
        for output in outputs:
            result.write(found, output)
        return found

    for s in sets[len(done) :]:
        title = f"set {len(done) + 1} of {len(sets)}"
        measured = measure.measure(network, s, arguments.batch, arguments.device, True, title)
        # The other ranks continue with the next set.
        done.append(_compare(measured, target) if distributed.rank() == 0 else {})
        if distributed.rank() == 0 and len(done) < len(sets):
            record()
    if distributed.rank() == 0:
        _print(record())


Sets = tuple[list[PixelSet], dict[str, Any], ModelOrigin | None]
"""Sets of equally many images, all that defines them, and the model where they are drawn now."""


def _model_sets(arguments: argparse.Namespace, split: Split | None) -> Sets:
    model, origin = open_model(arguments.model, arguments.ema_length, shared=True)
    if split is not None:
        check_same_images(model.spec, split)
    sampler = Sampler.of(arguments, model.spec, origin)
    model = model.to(arguments.device)
    seeds = list(range(arguments.seed, arguments.seed + arguments.sets))
    sets = [image_sets.of_model(model, sampler, seed, arguments.images or IMAGES) for seed in seeds]
    return sets, {**origin.identity(), **sampler.describe(), "seeds": seeds}, origin


def _stored_sets(arguments: argparse.Namespace, split: Split | None) -> Sets:
    sets = [image_sets.open_samples(path) for path in arguments.samples]
    for s in sets:
        if split is not None and s.shape != split.description.shape:
            raise UserError(
                f"{s.name} holds images (C, H, W) = {s.shape}, those of '{split.description.name}' are "
                f"{split.description.shape}."
            )
    counts = [s.count for s in sets]
    if len(set(counts)) > 1 and arguments.images is None:
        raise UserError(f"the sets hold {', '.join(map(str, counts))} images. Say how many with --images.")
    count = arguments.images or counts[0]
    if small := next((s for s in sets if s.count < count), None):
        raise UserError(
            f"{small.name} holds {small.count} images, {count} are asked for. Finish it, or lower --images."
        )
    keys = ("model", "weights_sha256", "step", "solver", "grid", "steps", "nfe", "label", "guidance")
    definition: dict[str, Any] = {"samples": [s.name for s in sets]}
    for key in keys:
        values = [s.metadata.get(key) for s in sets]
        if any(value != values[0] for value in values):
            raise UserError(f"the sets differ in {key}: {', '.join(map(str, values))}. Compare them one by one.")
        definition[key] = values[0]
    seeds = [s.metadata.get("seed") for s in sets]
    if None not in seeds and len(set(seeds)) < len(seeds):
        raise UserError(
            f"--samples: two sets have the same seed ({', '.join(map(str, seeds))}): they are the same images."
        )
    return [replace(s, count=count) for s in sets], definition | {"seeds": seeds}, None


def _reference(
    arguments: argparse.Namespace, split: Split | None, network: FeatureNetwork, stored: Measured | None
) -> Measured:
    """What samples are compared with: what the file has, of another program or of the split, or the split, measured
    now."""
    path = arguments.reference
    if split is None:
        assert stored is not None
        if (dims := len(stored.moments.mean)) != network.identity.dims:
            raise UserError(
                f"--reference {path} is of {dims} features, '{network.identity.name}' has {network.identity.dims}. "
                "Name the features that it was made by with --features."
            )
        return replace(stored, about={"file": path.name, "sha256": files.sha256(path)})
    about = measure.definition(split, arguments.flip, network)
    if stored:
        if different := differences(stored.about, about):
            what = "; ".join(different)
            raise UserError(f"--reference {path} was made of something else: {what}. Name another file, or remove it.")
        return stored
    images = image_sets.of_split(split)
    images = image_sets.mirrored(images) if arguments.flip else images
    made = measure.measure(network, images, arguments.batch, arguments.device, title="reference")
    made = replace(made, about=about)
    if path and distributed.rank() == 0:
        measure.save(made, path)
    return made


def _finished(path: Path, definition: dict[str, Any]) -> list[dict[str, Any]]:
    """The distances of the first sets, which an interrupted evaluation with the same definition has left."""
    found = result.defined_by(path, definition)
    if not isinstance(found, FrechetResult) or not found.unfinished:
        return []
    return found.model_dump(by_alias=True, mode="json")["sets"]


def _compare(measured: Measured, target: Measured) -> dict[str, Any]:
    """All distances of one set."""
    found, data = measured.first_features, target.first_features
    enough = min(len(found), len(data)) > frechet.NEIGHBOUR
    precision, recall = frechet.precision_recall(data, found) if enough else (None, None)
    return {
        "value": frechet.frechet_distance(measured.moments, target.moments),
        "kid": frechet.kernel_distance(found, data) if enough else None,
        "precision": precision,
        "recall": recall,
        "inception_score": frechet.inception_score(measured.scores)[0] if measured.scores else None,
    }


def _summary(done: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over the sets; the distance of each, and their standard deviation."""
    values = [one["value"] for one in done]
    columns = {name: [one[name] for one in done] for name in done[0]}
    means = {name: None if None in column else statistics.mean(column) for name, column in columns.items()}
    return {**means, "values": values, "spread": statistics.stdev(values) if len(values) > 1 else None, "sets": done}


def _print(numbers: FrechetResult) -> None:
    """The numbers, and everything that defines them."""
    values, features = numbers.values, numbers.features
    each = f"{len(values)} sets of {numbers.images} images: " if len(values) > 1 else f"{numbers.images} images: "
    spread = "" if numbers.spread is None else f" +- {numbers.spread:.2g}"
    print(
        f"{excerpt(numbers.name)} {numbers.value:.4f}{spread}  ({each}{', '.join(f'{value:.4f}' for value in values)})"
    )
    if numbers.kid is not None:
        first = f"by the first {min(numbers.images, FIRST_FEATURES)} of a set and {numbers.feature_images} of the split"
        print(f"KID {numbers.kid:.3e}, precision {numbers.precision:.4f}, recall {numbers.recall:.4f}  ({first})")
    if numbers.inception_score is not None:
        # A classifier of other classes than ImageNet's gives another score than the one known by this name.
        title = "Inception Score" if numbers.name == "FID" else f"class score ({excerpt(features.name)})"
        print(f"{title} {numbers.inception_score:.4f}")
    print(f"against {numbers.reference.text}")
    if numbers.solver:
        options = f"{numbers.solver}, {numbers.grid} grid, {numbers.nfe} evaluations, guidance {numbers.guidance:g}"
        print(f"{options}, seeds {', '.join(map(str, numbers.seeds))}")
    if numbers.images <= features.dims:
        print(f"note: fewer images than the {features.dims} features: the distance says more of that than of the model")
