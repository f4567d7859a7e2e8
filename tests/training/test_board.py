"""What TensorBoard's own plugins read of a run: groups, charts, hyperparameters; nothing twice after a resume."""

import json
import re

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
from test_monitor import monitor_of

from fdtrain.config import NETWORKS
from fdtrain.training.board import CHARTS

TRAIN = {"bits_per_dim": 2.0, "gradient_norm": 1.0, "lr": 0.1, "skipped_steps": 0.0, "broken_samples": 0.0}
TRAIN |= {"integrand/0": -1.0, "images_per_second": 9.0, "utilisation": 0.5, "memory_gib": 1.0}


class Served:
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
        return json.loads(CustomScalarsPlugin(self.context).layout_impl(RequestContext(), ""))["category"]

    def session_groups(self):
        """The metrics of the table of hyperparameters, and its rows by the run's name."""
        context, request = Context(self.context), RequestContext()
        metadata, found = context.hparams_metadata(request, ""), context.hparams_from_data_provider(request, "", None)
        metrics = context.experiment_from_metadata(request, "", True, metadata, found).metric_infos
        asked = api_pb2.ListSessionGroupsRequest(
            allowed_statuses=[api_pb2.STATUS_SUCCESS, api_pb2.STATUS_UNKNOWN, api_pb2.STATUS_RUNNING],
            col_params=[{"metric": metric.name} for metric in metrics],
            include_metrics=True,
            slice_size=100,
        )
        groups = Handler(request, context, "", asked).run().session_groups
        return [metric.name.tag for metric in metrics], {group.sessions[0].name: group for group in groups}


def run(folder, start, stop, value=None, **settings):
    monitor = monitor_of(folder, 4, **settings)
    monitor.begin(start)
    for step in range(start + 1, stop + 1):
        monitor.log(step, TRAIN | {"bits_per_dim": value or float(step)})
        monitor.log(step, {"bits_per_dim": 10.0 + step, "standard_error": 0.1}, prefix="test")
    if stop == 4:
        monitor.succeed()
    return monitor


def test_runs_are_shown_by_the_plugins(tmp_path):
    for name, stop in (("a", 4), ("b", 2)):
        (tmp_path / name).mkdir()
        monitor = run(tmp_path / name, 0, stop, monitor={"evaluate_every": 1, "frechet_every": 1})
        monitor.log(1, {"digits-features": 3.0}, prefix="frechet")
        monitor.close()
    served = Served(tmp_path)
    metrics, groups = served.session_groups()
    assert metrics == ["test/bits_per_dim", "train/bits_per_dim", "frechet/digits-features"]
    assert sorted(groups) == ["a/tensorboard", "b/tensorboard"]
    first, second = groups["a/tensorboard"], groups["b/tensorboard"]
    assert first.hparams["network.name"].string_value == "ddpmpp"
    assert (first.hparams["parameters"].number_value, first.hparams["training.steps"].number_value) == (123, 4)
    assert {value.name.tag: value.value for value in second.metric_values} == dict(zip(metrics, (12.0, 2.0, 3.0)))
    statuses = [group.sessions[0].status for group in (first, second)]
    assert statuses == [api_pb2.STATUS_SUCCESS, api_pb2.STATUS_UNKNOWN]
    # The runs' layouts are one; every chart has curves, and every curve a group.
    assert {category["title"]: len(category["chart"]) for category in served.layout()} == {
        category: len(charts) for category, charts in CHARTS.items()
    }
    tags = served.tags("a/tensorboard")
    assert {name.split("/")[0] for name in tags} == {"train", "test", "integrand", "speed", "frechet"}
    for charts in CHARTS.values():
        assert all(any(re.match(expression, name) for name in tags) for expression in charts.values())
    held_out = CHARTS["Likelihood"]["bits/dim, held-out images, averaged weights"]
    assert [name for name in tags if re.match(held_out, name)] == ["test/bits_per_dim"]


def test_a_resumed_run_has_everything_once(tmp_path):
    (tmp_path / "a").mkdir()
    run(tmp_path / "a", 0, 3).close()
    run(tmp_path / "a", 2, 3, value=7.0, seed=5).close()
    last = run(tmp_path / "a", 2, 3, value=8.0, seed=5)
    last.rewind(1)
    last.log(2, {"bits_per_dim": 9.0})
    last.close()
    served = Served(tmp_path)
    # The configuration of each part of the run, from its first step on.
    assert [(step, "seed: 5" in text) for step, text in served.texts("a/tensorboard")] == [(1, False), (2, True)]
    assert served.scalars("a/tensorboard", "train/bits_per_dim") == [(1, 1.0), (2, 9.0)]
    assert len(served.session_groups()[1]) == 1
    assert len(served.layout()) == len(CHARTS)


@pytest.mark.parametrize("network", sorted(NETWORKS))
def test_hyperparameters_are_the_same_of_every_network(tmp_path, network):
    run(tmp_path, 0, 1, network={"name": network}).close()
    found = Served(tmp_path).session_groups()[1]["tensorboard"].hparams
    # Every network has each of them, but dit no dropout.
    absent = {"diffusion.interval"} | ({"network.dropout"} if network == "dit" else set())
    assert {key for key, value in found.items() if value.string_value == "None"} == absent
