"""Pack a data set, as it was published, into WebDataset shards.

    fdtrain pack digits data/digits
    fdtrain pack cifar10 cifar-10-python.tar.gz data/cifar10
    fdtrain pack idx /usr/share/datasets/fashion-mnist data/fashion-mnist
    fdtrain pack imagenet32 Imagenet32_train.zip Imagenet32_val.zip data/imagenet32-new
    fdtrain pack images photographs/ data/photographs --size 64 --holdout 1000
    fdtrain pack hub USER/NAME data/my --online
    fdtrain pack adopt 'shards/{000..099}.tar' --test 'val/*.tar'

A command that was stopped goes on from the finished shards when it is repeated (docs/packing.md).
"""

import argparse
import io
import os
import sys
from pathlib import Path
from typing import Any

from PIL import ImageColor

from fdtrain.capacity.target import Target, target
from fdtrain.console import phase
from fdtrain.data.adopt import LIST, adopt
from fdtrain.data.fetch import is_remote, shown
from fdtrain.data.pack import pack
from fdtrain.data.sources.arrays import ArrayChoice, arrays
from fdtrain.data.sources.digits import digits
from fdtrain.data.sources.hub import hub
from fdtrain.data.sources.idx import idx
from fdtrain.data.sources.images import images
from fdtrain.data.sources.published import celeba64, cifar10, cifar100, imagenet32_old, imagenet_new
from fdtrain.data.sources.rows import Choice
from fdtrain.data.sources.shard_lists import shard_lists
from fdtrain.data.sources.shards import shard_source
from fdtrain.data.sources.source import SPLIT_NAMES, Source
from fdtrain.data.writer import ENCODINGS
from fdtrain.errors import UserError, excerpt


def run(arguments: argparse.Namespace) -> None:
    # Names of files may be of any bytes.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    a = arguments
    try:
        with phase("looking through the source"):
            source: Source | None = a.read(a)
        if source is not None:
            description = pack(source, a.output, a.encoding, a.shard_images, a.workers, bar=True, again=a.again)
        else:
            how = _name(a), a.holdout, a.channels, a.levels, a.image, a.labels, a.workers
            description = adopt(a.input, a.output, *how, bar=True)
    except KeyboardInterrupt:
        raise UserError("interrupted. The same command goes on from the finished shards.") from None
    for split, shards in description.splits.items():
        count = description.images(split)
        plural = "" if len(shards) == 1 else "s"
        print(f"{a.output}: {excerpt(description.name)}: {split}: {count} images, {len(shards)} shard{plural}")
        if source and source.published.get(split, count) != count:
            print(f"note: {source.published[split]} images were published as '{split}'. Is the source complete?")
    notes = source.notes if source else []
    if source is None and (private := a.output / LIST).exists():
        notes = [f"the URLs with their credentials are in {private}: give that to data.path, and keep it private."]
    for note in notes:
        print(f"note: {note}")
    if a.no_config:
        return
    with phase(f"choosing a first configuration, {a.output}/train.yaml"):
        # Loaded here: it imports torch, which the worker processes have no use for.
        from fdtrain.capacity.first_config import here, write_first_config

        lines = write_first_config(a.output, description, a.target or here())
    print(*lines, sep="\n")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    sources = parser.add_subparsers(title="sources", required=True, metavar="SOURCE")

    def add(name: str, read, what: str, *shared: str) -> argparse.ArgumentParser:
        """A source with some of the options that several have."""
        source = sources.add_parser(name, help=what, description=what)
        source.set_defaults(read=read)
        for option in shared:
            source.add_argument(option, **SHARED[option])
        return source

    add("digits", lambda a: digits(), "scikit-learn's 8x8 handwritten digits; nothing to download")
    for number, read in ((10, cifar10), (100, cifar100)):
        option = add(f"cifar{number}", lambda a, read=read: read(a.input), f"CIFAR-{number}").add_argument
        option("input", type=Path, help=f"cifar-{number}-python.tar.gz, or the folder in it")
    for size, zips in ((32, "Imagenet32_train.zip Imagenet32_val.zip"), (64, "Imagenet64_train_part1.zip ...")):
        what = f"new ImageNet {size}x{size} (Chrabaszcz et al. 2017), with labels"
        option = add(f"imagenet{size}", lambda a, size=size: imagenet_new(a.input, size), what).add_argument
        option("input", type=Path, nargs="+", help=f"{zips}, or the npz form, or folders with the batches")
    what = "old ImageNet 32x32 (van den Oord et al. 2016), withdrawn, without labels"
    option = add("imagenet32-old", lambda a: imagenet32_old(a.train, a.valid, a.shard_images), what).add_argument
    option("train", type=Path, help="train_32x32.tar")
    option("valid", type=Path, help="valid_32x32.tar")
    what = "CelebA, cropped to 140x140, at 64x64"
    option = add("celeba64", lambda a: celeba64(a.input, a.shard_images), what).add_argument
    option("input", type=Path, help="img_align_celeba.zip, beside it list_eval_partition.txt if you have it")

    what = "a folder of IDX files: MNIST, Fashion-MNIST, KMNIST, EMNIST"
    option = add("idx", _idx, what, "--name", "--classes").add_argument
    option("input", type=Path, help="the folder with train-images-idx3-ubyte.gz and the others")
    option("--subset", help="of several in one folder, such as emnist-balanced")

    what = "a folder, zip or tar of images; classes are its folders, or the labels in its dataset.json"
    source = add("images", _images, what, "--name", "--size", "--channels")
    option, held_out = source.add_argument, source.add_mutually_exclusive_group().add_argument
    option("input", type=Path, help="the images to train on")
    held_out("--test", type=Path, metavar="INPUT", help="held-out images, likewise")
    held_out("--holdout", type=_count, default=0, metavar="N", help="hold out N images")
    option("--background", type=_colour, metavar="COLOUR", help="behind transparent pixels, such as white or #ff8800")

    what = "a data set of the Hugging Face hub, or a folder of parquet or of save_to_disk"
    option = add("hub", _hub, what, "--name", "--size", "--channels").add_argument
    option("input", help="the folder or parquet file, or the data set's name (USER/NAME)")
    option("--online", action="store_true", help="fetch it from the hub, if it was not fetched before")
    option("--image-column", metavar="NAME", help="default: the only one that holds images")
    option("--label-column", metavar="NAME", help="default: the only one that holds labels, if any; '': none")
    option("--config", metavar="NAME", help="configuration of the data set (default: the only one)")
    nulls = "(default: refuse rows without an image)"
    option("--null-images", choices=("refuse", "skip"), default="refuse", help=nulls)

    what = "images and labels in a file of numpy: .npz, or a pair of .npy"
    option = add("arrays", _arrays, what, "--name", "--size", "--channels", "--classes").add_argument
    option("input", type=Path, help="the .npz file, or the .npy file of the images")
    option("--test", type=Path, metavar="INPUT", help="held-out images, likewise")
    option("--images", metavar="KEY", help="the array of the images (default: as its name tells)")
    option("--labels", metavar="KEY", help="the array of the labels, likewise; '': none")
    option("--split", choices=sorted(set(SPLIT_NAMES.values())), help="(default: as names tell, or train)")

    for name, source in sources.choices.items():
        source.add_argument("output", type=Path, help="folder for the shards and dataset.json")
        _add_output(source, shard_images=100 if name == "digits" else 1000)

    what = "existing WebDataset shards, described where they are; with --size, packed anew"
    source = add("adopt", _shards, what, "--name", "--size", "--channels")
    option, held_out = source.add_argument, source.add_mutually_exclusive_group().add_argument
    places = "to train on: paths, globs, {000..099}, folders, lists (.txt), URLs"
    option("input", nargs="+", metavar="SHARDS", help=places)
    held_out("--test", nargs="+", default=[], metavar="SHARDS", help="held-out shards, likewise")
    whole = "hold out whole shards, a fixed choice, of N images"
    held_out("--holdout", type=_count, default=0, metavar="N", help=whole)
    option("--output", type=Path, metavar="FOLDER", help="for dataset.json (default: the folder of the first shard)")
    option("--levels", type=_count, default=256, help="values of a pixel (default: 256)")
    option("--image", metavar="SUFFIX", help="of the image, such as image.png (default: the only one)")
    suffixes = "of the label: cls, txt, json:FIELD; '': none (default: cls or json:label)"
    option("--labels", metavar="SUFFIX", help=suffixes)
    _add_output(source, shard_images=1000)


def _add_output(source: argparse.ArgumentParser, shard_images: int) -> None:
    option = source.add_argument
    option("--again", action="store_true", help="replace what another command has packed there")
    option("--no-config", action="store_true", help="write no train.yaml to begin training with")
    device = "of train.yaml (default: what is here)"
    option("--for", dest="target", type=_target, metavar="cpu|cuda[:N]", help=device)
    option("--encoding", choices=ENCODINGS, default="npy", help="npy: fast; png: small (default: npy)")
    cores = len(os.sched_getaffinity(0))
    option("--workers", type=_count, default=cores, help="processes (default: one a core)")
    about = "images of a shard, about (default: %(default)s)"
    option("--shard-images", type=_count, default=shard_images, metavar="N", help=about)


def _idx(a: argparse.Namespace) -> Source:
    return idx(a.input, _name(a), a.subset, a.classes)


def _images(a: argparse.Namespace) -> Source:
    return images(a.input, a.test, a.holdout, _name(a), a.size, a.channels, a.shard_images, a.background)


def _hub(a: argparse.Namespace) -> Source:
    skip = a.null_images == "skip"
    choice = Choice(a.image_column, a.label_column, a.size, a.channels, a.config, skip)
    return hub(a.input, _name(a), choice, a.shard_images, a.online)


def _arrays(a: argparse.Namespace) -> Source:
    choice = ArrayChoice(a.images, a.labels, a.split, a.classes, a.size, a.channels)
    return arrays(a.input, a.test, _name(a), choice)


def _shards(a: argparse.Namespace) -> Source | None:
    """A source to pack anew if a size is given. Otherwise none: ``input`` becomes the shards of every split."""
    a.input = shard_lists(a.input, a.test)
    if a.holdout and len(a.input) > 1:
        raise UserError(f"the shards have splits of their own ({', '.join(a.input)}). Leave out --holdout.")
    if a.size and (a.output is None or a.levels != 256):
        raise UserError("--size packs the images anew: give a folder for them with --output, and no --levels.")
    first = a.input["train"][0]
    if a.output is None and is_remote(first):
        raise UserError(f"{shown(first)} is remote. Give a folder for dataset.json with --output.")
    a.output = a.output or Path(first).parent
    if not a.size:
        return None
    return shard_source(a.input, a.holdout, _name(a), a.size, a.channels, a.image, a.labels, a.workers)


def _name(arguments: argparse.Namespace) -> str:
    return arguments.name or arguments.output.resolve().name


def _target(text: str) -> Target:
    found = target(text)
    if found.devices not in (1, 2, 4, 8, 16, 32, 64):
        raise argparse.ArgumentTypeError(f"{text!r}: give a power of two up to 64, which can share a step's images")
    return found


def _colour(text: str) -> tuple[int, int, int]:
    try:
        red, green, blue = ImageColor.getrgb(text)[:3]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a colour; give a name or #rrggbb") from None
    return red, green, blue


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive number")
    return int(text)


SHARED: dict[str, dict[str, Any]] = {
    "--name": {"help": "of the data set (default: the output folder's)"},
    "--size": {"type": _count, "metavar": "PIXELS", "help": "resize the largest centre square (default: as they are)"},
    "--channels": {"type": int, "choices": (1, 3), "help": "default: as the first image"},
    "--classes": {
        "type": lambda text: text.split(","),
        "metavar": "NAME,...",
        "help": "names of the labels from 0 on (default: their numbers)",
    },
}
"""Options that several sources have."""
