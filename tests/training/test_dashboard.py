"""What TensorBoard's own plugins read of a run: groups, charts, hyperparameters; nothing twice after a resume."""

import json
import re
from collections import Counter

import pytest
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler
from tensorboard.util.tensor_util import make_ndarray

from fdtrain.config import NETWORKS, OWN, Config
from fdtrain.training.dashboard import CHARTS, SETTINGS, Dashboard, dashboard, tag
from fdtrain.training.monitor import Monitor

TRAIN = {"bits_per_dim": 2.0, "gradient_norm": 1.0, "lr": 0.1, "skipped_steps": 0.0, "broken_samples": 0.0}
TRAIN |= {"integrand/0": -1.0, "images_per_second": 9.0, "utilisation": 0.5, "memory_gib": 1.0}


class Board:
    """A folder of runs as TensorBoard serves it."""

    def __init__(self, folder):
        self.multiplexer = EventMultiplexer({}).AddRunsFromDirectory(str(folder)).Reload()
        self.context = TBContext(data_provider=MultiplexerDataProvider(self.multiplexer, str(folder)))

    def tags(self, run):
        found = self.context.data_provider.list_scalars(RequestContext(), experiment_id="", plugin_name="scalars")
        return list(found[run])

    def scalars(self, run, tag):
        found = self.multiplexer.Tensors(run, tag)
        return [(event.step, make_ndarray(event.tensor_proto).item()) for event in found]

    def texts(self, run):
        found = self.multiplexer.Tensors(run, "configuration/text_summary")
        return [(event.step, event.tensor_proto.string_val[0].decode()) for event in found]

    def layout(self):
        return json.loads(CustomScalarsPlugin(self.context).layout_impl(RequestContext(), ""))

    def session_groups(self):
        """Hyperparameters, status, and the last value of each metric, by the run's name."""
        context, request = Context(self.context), RequestContext()
        metadata = context.hparams_metadata(request, "")
        experiment = context.experiment_from_metadata(
            request, "", True, metadata, context.hparams_from_data_provider(request, "", None)
        )
        metrics = [metric.name.tag for metric in experiment.metric_infos]
        asked = api_pb2.ListSessionGroupsRequest(
            allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING],
            col_params=[{"metric": metric.name} for metric in experiment.metric_infos],
            include_metrics=True,
            slice_size=100,
        )
        groups = Handler(request, context, "", asked).run().session_groups
        return metrics, {group.sessions[0].name: group for group in groups}


def run(folder, start, stop, shown, value=None):
    monitor = Monitor(folder, 4, first=True, dashboard=shown)
    monitor.begin(start)
    for step in range(start + 1, stop + 1):
        monitor.log(step, TRAIN | {"bits_per_dim": value or float(step)})
        monitor.log(step, {"bits_per_dim": 10.0 + step, "standard_error": 0.1}, prefix="test")
    if stop == 4:
        monitor.succeed()
    return monitor


@pytest.fixture
def shown():
    return Dashboard("lr: 0.1\n", {"training.lr": 0.1, "network.name": "dit"}, ["test/bits_per_dim"])


def test_a_run_is_shown_by_the_plugins(tmp_path, shown):
    for name, stop in (("a", 4), ("b", 2)):
        (tmp_path / name).mkdir()
        run(tmp_path / name, 0, stop, shown).close()
    board = Board(tmp_path)
    metrics, groups = board.session_groups()
    assert metrics == ["test/bits_per_dim"]
    assert sorted(groups) == ["a/tensorboard", "b/tensorboard"]
    first, second = groups["a/tensorboard"], groups["b/tensorboard"]
    assert first.hparams["network.name"].string_value == "dit"
    assert first.hparams["training.lr"].number_value == pytest.approx(0.1)
    assert [group.metric_values[0].value for group in (first, second)] == [14.0, 12.0]
    statuses = [group.sessions[0].status for group in (first, second)]
    assert statuses == [api_pb2.STATUS_SUCCESS, api_pb2.STATUS_UNKNOWN]
    # The runs' layouts are one.
    assert [category["title"] for category in board.layout()["category"]] == list(CHARTS)
    assert [len(category["chart"]) for category in board.layout()["category"]] == [len(c) for c in CHARTS.values()]


def test_a_resumed_run_has_everything_once(tmp_path, shown):
    (tmp_path / "a").mkdir()
    run(tmp_path / "a", 0, 3, shown).close()
    changed = Dashboard("lr: 0.2\n", shown.hyperparameters, shown.metrics)
    run(tmp_path / "a", 2, 3, changed, value=7.0).close()
    last = run(tmp_path / "a", 2, 3, changed, value=8.0)
    last.rewind(1)
    last.log(2, {"bits_per_dim": 9.0})
    last.close()
    board = Board(tmp_path)
    # The configuration of each part of the run, from its first step on.
    assert board.texts("a/tensorboard") == [(1, "```yaml\nlr: 0.1\n```"), (2, "```yaml\nlr: 0.2\n```")]
    assert board.scalars("a/tensorboard", "train/bits_per_dim") == [(1, 1.0), (2, 9.0)]
    assert len(board.session_groups()[1]) == 1
    assert len(board.layout()["category"]) == len(CHARTS)


def test_every_chart_has_curves_and_every_curve_a_group(tmp_path, shown):
    monitor = run(tmp_path, 0, 1, shown)
    monitor.log(1, {"digits-features": 3.0}, prefix="frechet")
    monitor.close()
    tags = Board(tmp_path).tags("tensorboard")
    assert {name.split("/")[0] for name in tags} == {"train", "test", "integrand", "speed", "frechet"}
    for charts in CHARTS.values():
        for expression in charts.values():
            assert any(re.match(expression, name) for name in tags)
    held_out = CHARTS["Likelihood"]["bits/dim, held-out images, averaged weights"]
    assert [name for name in tags if re.match(held_out, name)] == ["test/bits_per_dim"]


@pytest.mark.parametrize("network", sorted(NETWORKS.keys() - {OWN}))
def test_hyperparameters_are_the_same_of_every_network(network):
    content = {"name": "x", "data": {"path": "d"}, "training": {"steps": 5}, "network": {"name": network}}
    content["monitor"] = {"evaluate_every": 5}
    found = dashboard(Config.model_validate(content), "digits", 123, "digits-features")
    assert found.metrics == ["test/bits_per_dim", "train/bits_per_dim", "frechet/digits-features"]
    assert list(found.hyperparameters) == [
        "dataset",
        "parameters",
        "seed",
        *SETTINGS.split(),
    ]
    assert Counter(map(type, found.hyperparameters.values())).keys() <= {int, float, str}
    assert found.hyperparameters["network.name"] == network
    # Every network has each of them, but dit no dropout.
    absent = {"diffusion.interval"} | ({"network.dropout"} if network == "dit" else set())
    assert {key for key, value in found.hyperparameters.items() if value == "None"} == absent


def test_tags_of_the_log():
    names = ["train/lr", "train/integrand/3", "train/data_wait", "test/data_wait"]
    assert [tag(name) for name in names] == ["train/lr", "integrand/3", "speed/data_wait", "test/data_wait"]
