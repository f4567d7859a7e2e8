"""Learn features from a data set's labels, to measure distances by where Inception says nothing.

    fdtrain evaluate features data/digits export/digits-features

A small classifier, trained in seconds to minutes: weights as safetensors, and beside them what they were made of.
Distances by them compare runs on one data set; they are no FID.
"""

import argparse
import sys
from pathlib import Path

from tqdm import tqdm

from fdtrain.data.split import Split
from fdtrain.errors import excerpt
from fdtrain.evaluation import label_features


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("data", help="a packed data set with labels")
    parser.add_argument("folder", type=Path, help="where the two files go")
    parser.add_argument("--split", default="train", help="whose labels are learnt (default: train)")


def run(arguments: argparse.Namespace) -> None:
    split = Split(arguments.data, arguments.split)
    images, epochs = label_features.schedule(split)
    with tqdm(total=images * epochs, unit=" images", unit_scale=True, disable=not sys.stderr.isatty()) as bar:
        network, description = label_features.train(split, bar.update)
    label_features.save(network, description, arguments.folder)
    shares = [f"{description.accuracy:.1%} of {split.name}"]
    for other in split.description.splits:
        if other != split.name and split.description.images(other):
            shares.append(f"{label_features.accuracy(network, Split(arguments.data, other)):.1%} of {other}")
    learnt = f"{excerpt(description.name)}, {description.dims} features"
    print(f"{arguments.folder}: {learnt}, labels right: {', '.join(shares)}")
