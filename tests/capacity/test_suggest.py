"""First configurations, for machines given as numbers."""

import pytest

from fdtrain.capacity.cost import flops
from fdtrain.capacity.estimate import KnownDataset
from fdtrain.capacity.layout import run_layout
from fdtrain.capacity.spec import model_spec
from fdtrain.capacity.suggest import MEMORY, MINUTES, WATCHING, Machine, suggest
from fdtrain.data.dataset import Shard

GIB = 2**30


def machine(device: str, count: int, memory: int, share: float = 0.35, **rates: float) -> Machine:
    """One on which training reaches a share of the matrix rate, whatever the network."""

    def speed(spec, precision, images, checkpointing):
        assert 1 <= images <= 2048
        return share * rates[precision] / flops(spec).training(checkpointing)

    return Machine(device, count, memory, rates, speed)


LAPTOP = machine("cpu", 1, 8 * GIB, fp32=2e11, bf16=3e10)
SERVER = machine("cpu", 1, 64 * GIB, fp32=2e12, bf16=2e13)
OLD_GPU = machine("cuda", 1, 16 * GIB, fp32=8e12, fp16=4e13)
GPU = machine("cuda", 1, 80 * GIB, fp32=5e13, bf16=6e14)
NODE = machine("cuda", 8, 80 * GIB, fp32=5e13, bf16=6e14)


def data(size: int, channels: int = 3, images: int = 2000, levels: int = 256, test: int = 100, classes: int = 0):
    splits = {"train": images} | ({"test": test} if test else {})
    shards = {s: [Shard(file=f"{s}.tar", images=n, bytes=1, sha256="0" * 64)] for s, n in splits.items()}
    known = KnownDataset("My photos, 2024", size, channels, levels, classes, images)
    return known.description().model_copy(update={"splits": shards})


SETS = {
    "digits 8": data(8, 1, 1497, 17, 300, 10),
    "grey 28": data(28, 1, 60_000, 256, 10_000),
    "RGB 32": data(32),
    "RGB 64": data(64),
    "RGB 256": data(256),
}
NETWORKS = {  # The width and the levels on each machine: the table that one would draw by hand.
    ("digits 8", "laptop"): (32, (1, 2), "fp32"),
    ("digits 8", "gpu"): (128, (1, 2), "bf16"),
    ("grey 28", "laptop"): (16, (1, 2, 2), "fp32"),
    ("grey 28", "gpu"): (128, (1, 2, 2), "bf16"),
    ("RGB 32", "laptop"): (16, (1, 2, 2, 2), "fp32"),
    ("RGB 32", "old gpu"): (128, (1, 2, 2, 2), "fp16"),
    ("RGB 64", "laptop"): (16, (1, 2, 2, 2), "fp32"),
    ("RGB 64", "gpu"): (128, (1, 2, 2, 2), "bf16"),
    ("RGB 256", "laptop"): (16, (1, 1, 2, 2, 4, 4), "fp32"),
    ("RGB 256", "node"): (128, (1, 1, 2, 2, 4, 4), "bf16"),
}
MACHINES = {"laptop": LAPTOP, "server": SERVER, "old gpu": OLD_GPU, "gpu": GPU, "node": NODE}


@pytest.mark.parametrize(("images", "on"), NETWORKS, ids=lambda name: name.replace(" ", "-"))
def test_the_network_follows_from_the_images_and_the_machine(images, on):
    chosen, device = suggest(SETS[images], "data/mine", MACHINES[on]), MACHINES[on]
    network, training, monitor = chosen.config.network, chosen.config.training, chosen.config.monitor
    assert (network.channels, network.multipliers, training.precision) == NETWORKS[images, on]
    assert chosen.config.name == "My-photos-2024"
    assert chosen.config.data.test_split == "test"
    # Fits, in memory and in time.
    assert chosen.memory <= MEMORY[device.device] * device.memory
    assert chosen.seconds <= 60 * MINUTES[device.device] * (1 + 2 * WATCHING) * 1.2
    layout = run_layout(training, device.count)
    assert layout.passes * layout.micro_batch * device.count == training.global_batch
    # Watched often enough to see it learn, and to its end.
    assert 0 < training.warmup_steps <= training.steps / 20
    for every in (monitor.log_every, monitor.sample_every, monitor.evaluate_every, chosen.config.checkpoint.every):
        assert 1 <= every <= training.steps
    assert 0.9 < chosen.config.ema.decay < 1


def test_an_odd_size_gets_fewer_levels_and_a_note():
    chosen = suggest(data(50), "d", LAPTOP)
    assert (chosen.config.network.multipliers, chosen.config.network.attention) == ((1, 2), (25,))
    assert "--resize 48" in chosen.notes[0]
    assert suggest(data(7, 1), "d", LAPTOP).config.network.multipliers == (1,)


def test_images_that_are_too_much_for_the_machine_are_named():
    assert any("--resize" in note for note in suggest(SETS["RGB 256"], "d", LAPTOP).notes)
    assert not suggest(SETS["RGB 32"], "d", GPU).notes


def test_little_memory_takes_smaller_passes_then_a_smaller_network():
    small, tiny = (suggest(SETS["RGB 64"], "d", machine("cuda", 1, memory, **GPU.rates)) for memory in (8 * GIB, GIB))
    assert small.config.training.micro_batch < small.config.training.global_batch
    assert small.config.network.channels == 128 > tiny.config.network.channels
    assert small.memory <= MEMORY["cuda"] * 8 * GIB
    assert tiny.memory <= MEMORY["cuda"] * GIB


def test_without_held_out_images_nothing_is_evaluated():
    chosen = suggest(data(32, test=0), "d", LAPTOP)
    assert chosen.config.data.test_split is None
    assert chosen.config.monitor.evaluate_every is None


def test_more_images_train_longer_only_while_there_is_time():
    few, many = suggest(data(32, images=300), "d", GPU), suggest(data(32, images=10**6), "d", GPU)
    assert few.images <= 200_000 < many.images
    assert few.config.network.dropout > 0 == many.config.network.dropout


def test_precision_and_width_follow_from_the_measured_speed():
    """A CPU whose matrix unit multiplies half precision fast, and whose networks train no faster in it."""

    def speed(spec, precision, images, checkpointing):
        return {"fp32": 0.3, "bf16": 0.02}[precision] * rates[precision] / flops(spec).training(checkpointing)

    rates = {"fp32": 3e11, "bf16": 3e12}
    chosen = suggest(SETS["grey 28"], "d", Machine("cpu", 1, 16 * GIB, rates, speed))
    assert (chosen.config.training.precision, chosen.config.network.channels) == ("fp32", 16)
    config = chosen.config.training
    seconds = config.steps * config.global_batch / speed(model_spec(chosen.config, SETS["grey 28"]), "fp32", 64, False)
    assert chosen.seconds == pytest.approx(seconds * (1 + 2 * WATCHING))


def test_what_does_not_fit_is_not_tried():
    tried = []
    tiny = Machine("cpu", 1, 2**20, LAPTOP.rates, lambda *given: tried.append(given) or 1.0)
    assert any("memory" in note for note in suggest(SETS["RGB 64"], "d", tiny).notes)
    assert not tried
