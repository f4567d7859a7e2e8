"""What is wrong with a comparison is said in one line before any training; the budget of each of its variants."""

import json
import re
import shutil

import pytest
import yaml
from conftest import ROOT

from fdtrain.comparison import compare
from fdtrain.comparison.definition import load_comparison
from fdtrain.data.dataset import FILE
from fdtrain.data.mixture import open_data
from fdtrain.errors import UserError
from fdtrain.training.plan import model_spec


@pytest.fixture
def content(launch):
    return {
        "name": "c",
        "output": str(launch.folder / "out"),
        "base": str(launch.config),
        "steps": 4,
        "seeds": [0, 1],
        "reference": "a",
        "variants": [{"name": "a"}, {"name": "b", "set": {"diffusion": {"predictor": "plain"}}}],
    }


def load(content, folder):
    path = folder / "c.yaml"
    path.write_text(yaml.safe_dump(content))
    return load_comparison(path)


def test_later_layers_override_earlier_ones(content, tmp_path):
    first, second = tmp_path / "first.yaml", tmp_path / "second.yaml"
    first.write_text("diffusion: {predictor: plain, time_density: uniform}\ntraining: {lr: 1.0e-4}\n")
    second.write_text("diffusion: {time_density: asinh}\n")
    content["set"] = {"training": {"lr": 0.5, "warmup_steps": 3}}
    content["variants"][1] = {
        "name": "b",
        "overlays": [str(first), str(second)],
        "set": {"training": {"betas": [0.8, 0.9]}},
    }
    comparison = load(content, tmp_path)
    config = comparison.config("b", 7)
    assert (config.name, config.seed, config.folder) == ("b-seed7", 7, tmp_path / "out" / "c" / "runs" / "b-seed7")
    assert (config.diffusion.predictor, config.diffusion.time_density) == ("plain", "asinh")
    training = config.training
    assert (training.lr, training.warmup_steps, training.betas, training.steps) == (0.5, 3, (0.8, 0.9), 4)
    assert comparison.config("a", 0).training.lr == 0.5


def checked(content, folder):
    compare.check(load(content, folder), 1)


def own(sampler):
    return {"variants": [{"name": "a"}, {"name": "b", "sampler": sampler}]}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"seeds": [1, 1]}, "a seed is given twice"),
        ({"seeds": [0, 2**63]}, "seeds.1: "),
        ({"reference": "x"}, "reference: there is no variant 'x'; there are a, b"),
        ({"variants": [{"name": "a"}, {"name": "a"}]}, "the name 'a' is given twice"),
        ({"seconds": 5}, "set either steps or seconds"),
        ({"steps": None}, "set either steps or seconds"),
        ({"variant": []}, "unknown key 'variant'"),
        ({"variants": [{"name": "a", "overlays": ["/nowhere.yaml"]}]}, "variant 'a': --config: cannot read /nowhere"),
        ({"variants": [{"name": "a", "set": {"diffusion": {"clock": 1}}}]}, "variant 'a': unknown key 'clock'"),
        ({"variants": [{"name": "a/b"}]}, "variants.0.name"),
        ({"base": "/nowhere.yaml"}, "cannot read /nowhere.yaml"),
        (
            {"evaluation": {"samplers": [{"solver": "rk9"}]}},
            "evaluation.samplers.0.solver: input should be 'sde'",
        ),
        (
            {"evaluation": {"samplers": [{"solver": "sde", "grid": "karras"}]}},
            "sde at 10 evaluations: 'karras' is infinite at t = 1",
        ),
        ({"evaluation": {"nfe": [0]}}, "evaluation.nfe must be at least 1"),
        ({"evaluation": {"batches": 4, "gradients": 8}}, "evaluation.gradients must not be above"),
        (own({"solver": "ddim", "grid": "log"}), "there is no grid 'log'; take two_ended"),
        (own({"solver": "ddim", "grid": "vdm"}), "'vdm' is infinite at t = 0, where this model begins or ends"),
    ],
)
def test_mistakes(content, tmp_path, change, part):
    with pytest.raises(UserError) as error:
        checked(content | change, tmp_path)
    assert part in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("written", "other", "part"),
    [
        (r'"levels": 17', '"levels": 256', "variant 'b' is of data with levels 17, 'a' of levels 256"),
        (r'"sha256": "\w+"', f'"sha256": "{"0" * 64}"', "variant 'b' is of other images than 'a'"),
        (r'"classes": \[[^]]*', '"classes": [', "has no labels to learn features from"),
    ],
)
def test_data_that_do_not_serve(content, digits, tmp_path, written, other, part):
    description = shutil.copytree(digits, tmp_path / "other") / FILE
    description.write_text(re.sub(written, other, description.read_text(), count=1))
    content["variants"][0]["set"] = {"data": {"path": str(tmp_path / "other")}}
    with pytest.raises(UserError, match=part):
        checked(content, tmp_path)


def test_a_folder_of_nothing_yet_of_something_else_and_of_another_comparison(content, tmp_path):
    first = load(content, tmp_path)
    with pytest.raises(UserError, match="no run is finished yet"):
        compare.compare_finished(first)
    first.folder.mkdir(parents=True)
    (first.folder / "thesis.tex").write_text("")
    with pytest.raises(UserError, match="holds something else than a comparison"):
        compare.check_folder(first)
    compare.write_record(first)
    compare.check_folder(load(content | {"seeds": [0, 1, 2]}, tmp_path))  # More seeds may come later.
    record = first.folder / compare.RECORD
    record.write_text(record.read_text().replace("    training:\n", "    training:\n      overlap: true\n"))
    assert "overlap" in record.read_text()
    compare.check_folder(first)  # As earlier versions have recorded it.
    for change, part in (
        ({"steps": 5}, "steps, variant 'a', variant 'b'"),
        ({"set": {"training": {"lr": 0.1}}}, "variant 'a', variant 'b'"),
        ({"variants": [{"name": "x"}], "reference": "x"}, "no variant is in both"),
    ):
        with pytest.raises(UserError, match="holds the results of another comparison") as error:
            compare.check_folder(load(content | change, tmp_path))
        assert part in str(error.value)


def test_a_variant_that_was_left_out_comes_back_unchanged(content, tmp_path):
    whole = load(content, tmp_path)
    whole.folder.mkdir(parents=True)
    compare.write_record(whole)
    kept, left_out = content["variants"]
    compare.write_record(load(content | {"variants": [kept]}, tmp_path))
    compare.check_folder(load(content, tmp_path))
    changed = {**left_out, "set": {"diffusion": {"time_density": "angle"}}}
    with pytest.raises(UserError, match=f"it differs in variant '{left_out['name']}'"):
        compare.check_folder(load(content | {"variants": [kept, changed]}, tmp_path))


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "comparisons").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_comparisons_that_come_with_the_project(path, digits, monkeypatch):
    """Each variant is well posed on the data, and differs from the others."""
    monkeypatch.chdir(ROOT)
    comparison = load_comparison(path)
    description = open_data([str(digits)]).description
    specs = {name: model_spec(config, description) for name, config in comparison.configs.items()}
    assert len({config.model_dump_json() for config in comparison.configs.values()}) == len(specs)


def test_steps_follow_from_the_speed(content, tmp_path, monkeypatch):
    """Of equal seconds: once measured, and without the first window, in which the machine warms up."""
    variants = [{"name": "quick"}, {"name": "slow", "set": {"training": {"lr": 0.1}}}, {"name": "broken"}]
    budget = {"steps": None, "seconds": 30, "reference": "quick"}
    comparison, timed = load(content | budget | {"variants": variants}, tmp_path), []

    class Schedule:
        def __init__(self, runs, slots, processes):
            self.runs = runs

        def work(self):
            for run in self.runs:
                timed.append(run.name)
                run.folder.mkdir(parents=True, exist_ok=True)
                (run.folder / "config.yaml").write_text("name: x\n")
                each = {"quick": 0.1, "slow": 0.5, "broken": 1.0}[run.variant]
                lines = [{"step": 10 * (k + 1), "train/step_seconds": each * (9 if k == 0 else 1)} for k in range(6)]
                (run.folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
                assert (run.steps, run.settings) == (60, None)
            return {"broken-speed": "no memory"} if any(run.variant == "broken" for run in self.runs) else {}

    monkeypatch.setattr(compare, "Schedule", Schedule)
    steps, failures = compare.steps_of_variants(comparison, 2, 1)
    assert steps == {"quick": 300, "slow": 60}
    assert failures == {"broken-seed0": "no memory", "broken-seed1": "no memory"}
    assert timed == ["quick-speed", "slow-speed", "broken-speed"]
    # The next time, only the one that failed is measured.
    assert compare.steps_of_variants(comparison, 2, 1)[0] == steps
    assert timed[3:] == ["broken-speed"]
