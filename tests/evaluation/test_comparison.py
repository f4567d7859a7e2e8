"""The files of a comparison: what is missing is a dash, and what a run has said is text."""

import csv
import io

import pytest

from fdtrain.evaluation import comparison, figures, result
from fdtrain.evaluation.result import ComparisonResult

HOSTILE = "<script>alert('x')</script>|a"


def mean(value, error=0.01):
    return {"mean": value, "error": error, "values": [value]}


@pytest.fixture
def found():
    bound = {"interval": (0.0, 1.0), "decoder": "none", "dequantisation": "uniform", "ode_dequantisation": "uniform"}
    reference = {
        "name": "a",
        "settings": {},
        **bound,
        "seeds": [0],
        "failures": [],
        "steps": 8,
        "own_bound": {"bits_per_dim": mean(2.5), "difference": None},
        "ode": {"bits_per_dim": mean(2.25), "difference": None},
        "own_bound_of_ode_images": {"bits_per_dim": mean(2.375), "difference": None},
        "points": [{"nfe": 10, "distance": mean(4.0)}],
        "variance": mean(0.04),
        "t_middles": [0.1, 0.5],
        "variance_by_time": [1e-6, 1e6],
        "training": [(1, 3.0), (2, 2.5)],
    }
    failed = {"name": "b", "settings": {"diffusion.scale": None}, **bound, "seeds": [], "failures": []}
    failed["failures"] = [{"seed": 0, "reason": HOSTILE}]
    split = {"dataset": "digits", "source": "", "split": "test", "fingerprint": "", "images_in_split": 3, "levels": 17}
    content = {"kind": "comparison", **split, "images": 3, "device": "cpu", "seconds": 1.0, "name": "c"}
    content |= {"reference": "a", "budget": "8 steps", "seeds": [0], "draws": 2, "ode_images": 0, "samples": 4}
    return ComparisonResult.model_validate({**content, "distance": "FID", "variants": [reference, failed]})


def test_the_three_files(found, tmp_path):
    text, table, page = (path.read_text() for path in comparison.write(found, tmp_path))
    assert "| uniform | 2.5000 ± 0.0100 | - | 2.2500 ± 0.0100 | 2.3750 ± 0.0100 | uniform | 1 |" in text
    assert "&lt;script>alert('x')&lt;/script>\\|a" in text
    assert "* `b`: diffusion.scale: null" in text
    assert "](quality.png)\n\nFID against evaluations; bars: standard error over seeds.\n" in text
    rows = list(csv.DictReader(io.StringIO(table)))
    assert [row["variant"] for row in rows] == ["a", "b"]
    assert (rows[0]["own_bound_bits_per_dim"], rows[1]["own_bound_bits_per_dim"]) == ("2.5", "")
    assert (rows[0]["frechet_10"], rows[0]["batch_variance"], rows[1]["failed"]) == ("4.0", "0.04", "1")
    assert "<script>" not in page
    assert "alert(&#39;x&#39;)" in page
    assert page.count("<svg") == 3
    assert sorted(path.name for path in tmp_path.glob("*.png")) == ["quality.png", "training.png", "variance.png"]


def test_variances_of_many_decades_have_plain_numbers(found):
    plot = figures.compared_variance([found.variants[0]])
    labels = [label.get_text() for label in plot.figure.axes[0].get_yticklabels()]
    assert labels
    assert all(float(label) > 0 for label in labels)


def test_a_comparison_of_which_every_run_has_failed(found, tmp_path):
    nothing = found.model_copy(update={"variants": found.variants[1:]})
    text, _, page = (path.read_text() for path in comparison.write(nothing, tmp_path))
    assert "## Failed runs" in text
    assert "<svg" not in page


def test_a_result_is_read_as_it_was_written(found, tmp_path):
    result.write(found, tmp_path / "comparison.json", "output")
    assert result.read(tmp_path / "comparison.json") == found
