import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import yaml

from fdtrain.capacity.estimate import known_dataset, parameters, published
from fdtrain.capacity.layout import run_layout
from fdtrain.capacity.target import Target
from fdtrain.commands.plan import forecast
from fdtrain.config import DROPPED, RENAMED, TrainingConfig, dump_config, load_config
from fdtrain.config import NETWORKS as SECTIONS
from fdtrain.errors import UserError
from fdtrain.main import parse_arguments
from fdtrain.networks.model import NETWORKS
from fdtrain.training.hardware import DTYPES
from fdtrain.training.plan import model_spec
from fdtrain.training.schedule import DECAYS

CONFIGS = sorted((Path(__file__).parent.parent / "configs").glob("*.yaml"))
MINIMAL = {"name": "x", "data": {"path": "d"}, "training": {"steps": 10}}


@pytest.fixture
def write(tmp_path):
    def write(content) -> Path:
        path = tmp_path / "c.yaml"
        path.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
        return path

    return write


@pytest.mark.parametrize("path", CONFIGS, ids=lambda p: p.stem)
def test_every_shipped_configuration_is_valid_and_reads_back_when_it_is_resolved(path, write):
    config = load_config(path)
    assert config.name == path.stem
    resolved = write(dump_config(config))
    assert load_config(resolved) == config
    assert yaml.safe_load(resolved.read_text())["training"]["eps"] == 1e-8  # a default, spelled out


ON_ONE_MACHINE = ("digits", "digits_vdm", "fashion_mnist", "fashion_mnist_gpu", "fashion_mnist_vdm", "template")


PLANNED = [p for p in CONFIGS if p.stem not in ON_ONE_MACHINE and "_old" not in p.stem]


@pytest.mark.parametrize("path", PLANNED, ids=lambda p: p.stem)
def test_the_comment_is_what_the_plan_says(path):
    """The old ImageNet takes what the new one does."""
    config = load_config(path)
    lines = forecast(config, published(config), Target("cuda", 8), tflops=989, utilisation=0.35)
    for file in {path, path.with_stem(path.stem.replace("imagenet32", "imagenet32_old"))}:
        assert "\n".join(lines[-2:]) in file.read_text()


def test_the_template_works_with_its_suggestions_too(write):
    """As it is, and with every line that is commented out."""
    text = (Path(__file__).parent.parent / "configs" / "template.yaml").read_text()
    photographs = known_dataset("photographs", 64, 3, 256, 0, 1000)
    whole = re.sub(r"^  # ([a-z_]+: )", r"  \1", text, flags=re.MULTILINE)
    assert whole.count("\n  # ") < text.count("\n  # ")
    for content in (text, whole):
        config = load_config(write(content))
        assert parameters(model_spec(config, photographs)) > 10**6
        assert run_layout(config.training, world_size=4).micro_batch == 16
    assert load_config(write(whole)).network.checkpointing


def test_overrides(write):
    """An override replaces a section; without a name the keys of a network are ddpmpp's."""
    file = write(MINIMAL | {"network": {"channels": 64}})
    given = ["training.lr=1e-4", "network.multipliers=[1, 2]", "name=y", "data.test_split=null", "data.flip=on"]
    config = load_config(file, given)
    assert (config.network.name, config.network.channels, config.network.multipliers) == ("ddpmpp", 64, (1, 2))
    assert (config.training.lr, config.name, config.data.test_split, config.data.flip) == (1e-4, "y", None, True)
    assert load_config(file, ["network={name: dit, size: XL}"]).network.size == "XL"


def test_a_mapping_is_laid_over_a_file(write):
    layer = {"training.steps": 7, "network": {"channels": 8}, "network.blocks": 2, "output": Path("a") / "b"}
    config = load_config([write(MINIMAL), layer])
    assert (config.training.steps, config.network.channels, config.network.blocks) == (7, 8, 2)
    assert (config.output, config.data) == (Path("a/b"), load_config(write(MINIMAL)).data)


@pytest.mark.parametrize(
    ("override", "parts"),
    [
        ("training.stepz=5", ["unknown key 'stepz'", "section 'training'", "did you mean 'steps'"]),
        ("trainin.lr=1", ["unknown key 'trainin'", "did you mean 'training'"]),
        ("data.global_batch=5", ["unknown key 'global_batch'", "'data'", "did you mean 'training.global_batch'"]),
        ("training.qqq=5", ["unknown key 'qqq'", "it has: steps, global_batch"]),
        ("training.lr=fast", ["training.lr", "valid number", "'fast'"]),
        ("training.lr=.nan", ["training.lr", "finite"]),
        ("training.lanes=7", ["global_batch 128 is not divisible by lanes 7", "set lanes to 4"]),
        ("training={steps: 1, lanes: 64, micro_batch: 5}", ["micro_batch 5", "multiple of global_batch / lanes = 2"]),
        ("network.name=unet", ["network: input should be 'ddpmpp', 'vdm' or 'dit', not 'unet'"]),
        ("network={name: vdm, multipliers: [1]}", ["unknown key 'multipliers'", "'network.multipliers' of 'ddpmpp'"]),
        ("network={name: dit, chanels: 8}", ["unknown key 'chanels' in section 'network'", "'network.channels' of"]),
        ("network.label_dropout=0.1", ["network", "set class_conditional to true"]),
        ("diffusion.predictor=noise", ["diffusion.predictor", "'plain', 'bounded', 'alpha', 'eps'", "'noise'"]),
        ("diffusion.interval=[0, 2]", ["diffusion.interval", "two times that rise, in [0, 1]"]),
        ("diffusion.strata=48", ["diffusion.strata 48 does not divide training.global_batch 128; set it to 32"]),
        ("diffusion={strata: 8, time_sampling: lattice}", ["strata are of time_sampling stratified; this is lattice"]),
        ("training.adam=foreach", ["training.adam is no more; remove it: what is done now was 'fused'"]),
        ("name=../x", ["name", "../x"]),
        ("name=12", ["name: input should be a valid string, not 12; put quotes around a text that YAML reads so"]),
        ("network.fourier_features=[3, 3]", ["must be all, how many, or"]),
        ("training", ["--set training: expected section.key=value"]),
        ("training.lr=[1", ["--set training.lr=[1: not a YAML value: line 1"]),
    ],
)
def test_mistakes_are_named_in_one_line(write, override, parts):
    with pytest.raises(UserError) as error:
        load_config(write(MINIMAL), [override])
    message = str(error.value)
    assert "\n" not in message
    for part in parts:
        assert part in message


@pytest.mark.parametrize(
    ("content", "overrides", "where"),
    [
        ({"stepz": 5}, [], "{file}"),
        ({}, ["training.stepz=5"], "--set"),
        ({"stepz": 5}, ["training.lr=x"], "{file} and --set"),
        # Values that do not go together, of which each may be the wrong one.
        ({"lanes": 16}, ["training.global_batch=5"], "{file} and --set"),
    ],
)
def test_who_gave_a_value_that_is_wrong(write, content, overrides, where):
    file = write(MINIMAL | {"training": {"steps": 1, **content}})
    with pytest.raises(UserError) as error:
        load_config(file, overrides)
    assert str(error.value).endswith(f" (in {where.format(file=file)}).")


@pytest.mark.parametrize(
    ("content", "part"),
    [
        ("a: [", "not valid YAML"),
        ("just text", "must hold sections"),
        ("", "must hold sections"),
        ({"name": "x"}, r"data is missing; training is missing \(in .*c.yaml\)"),
    ],
)
def test_files_that_are_no_configuration(write, content, part):
    with pytest.raises(UserError, match=part):
        load_config(write(content))


def test_missing_file():
    with pytest.raises(UserError, match=r"cannot read nowhere\.yaml"):
        load_config("nowhere.yaml")


def training(**settings) -> TrainingConfig:
    return TrainingConfig(steps=1, **settings)


@pytest.mark.parametrize(("micro_batch", "world_size", "passes"), [(None, 64, 1), (16, 2, 4), (2, 1, 64)])
def test_accumulation(micro_batch, world_size, passes):
    assert run_layout(training(micro_batch=micro_batch), world_size).passes == passes


@pytest.mark.parametrize(("batch", "lanes"), [(128, 128), (4096, 1024), (96, 32), (7, 1)])
def test_lanes_leave_room_for_processes(batch, lanes):
    assert training(global_batch=batch).lanes == lanes


def test_world_sizes_that_do_not_fit():
    with pytest.raises(UserError, match=r"64 lanes cannot be shared by 3 processes; launch a number out of 1, 2, 4, 8"):
        run_layout(training(lanes=64), 3)
    with pytest.raises(UserError, match="128 images of a step, which is no multiple of micro_batch 48"):
        run_layout(training(micro_batch=48), 1)


def test_the_page_of_keys_is_up_to_date():
    """Made by tools/document.py."""
    root = Path(__file__).parent.parent
    made = subprocess.run([sys.executable, "tools/document.py"], cwd=root, capture_output=True, text=True, check=True)
    assert (root / "docs" / "configuration.md").read_text() == made.stdout


@pytest.mark.parametrize(("old", "new"), RENAMED.items())
def test_a_key_of_an_earlier_version_names_its_new_one(old, new, write):
    with pytest.raises(UserError, match=f"{old} is called {new} now"):
        load_config(write(MINIMAL), [f"{old}=1"])


def test_recorded_settings_of_earlier_versions_that_changed_nothing_are_passed_over(write):
    """They stand in every run's configuration, with the defaults of then."""
    recorded = [f"{key}={value}" for key, value in DROPPED.items()]
    assert load_config(write(MINIMAL), recorded) == load_config(write(MINIMAL))


@pytest.mark.parametrize(("key", "table"), [("decay", DECAYS), ("precision", DTYPES)])
def test_the_choices_of_a_key_are_those_of_the_code(key, table):
    assert set(get_args(TrainingConfig.model_fields[key].annotation)) == set(table)


def test_every_network_has_its_section():
    assert SECTIONS.keys() == NETWORKS.keys()


def test_several_settings_after_one_flag_and_after_several():
    arguments = ["--config", "c.yaml", "--set", "a=1", "b.c=2", "--resume", "auto", "--set", "d=3"]
    assert parse_arguments(arguments).set == ["a=1", "b.c=2", "d=3"]
    assert parse_arguments(["--config", "c.yaml"]).set == []


def test_a_home_folder_is_meant_in_every_path(write, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path = write(MINIMAL | {"output": "~/runs", "data": {"mixture": [{"path": "~/a", "weight": 1}], "cache": "~"}})
    config = load_config(path, ["training.init_from=~/runs/x", "monitor.frechet_features=~/features"])
    assert (config.folder, config.data.paths) == (Path("/home/me/runs/x"), ["/home/me/a"])
    assert config.data.cache == Path("/home/me")
    assert config.training.init_from == Path("/home/me/runs/x")
    assert config.monitor.frechet_features == "/home/me/features"
    with pytest.raises(UserError, match="there is no home folder ~nobody-here"):
        load_config(write(MINIMAL), ["data.path=~nobody-here/x"])
