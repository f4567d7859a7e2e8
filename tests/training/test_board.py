"""What TensorBoard's own plugins read of a run: groups, charts, hyperparameters; nothing twice after a resume."""

import json
import re

from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.context import RequestContext
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar.custom_scalars_plugin import CustomScalarsPlugin
from tensorboard.plugins.hparams import api_pb2
from tensorboard.plugins.hparams.backend_context import Context
from tensorboard.plugins.hparams.list_session_groups import Handler
from test_monitor import monitor_of

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


def test_runs_are_shown_by_the_plugins(tmp_path):
    """The first was resumed, with other settings, and ended well."""
    for name, start, stop, network in (("a", 0, 3, "ddpmpp"), ("a", 1, 4, "ddpmpp"), ("b", 0, 2, "dit")):
        settings = {"network": {"name": network}, "monitor": {"evaluate_every": 1, "frechet_every": 1}}
        (tmp_path / name).mkdir(exist_ok=True)
        monitor = monitor_of(tmp_path / name, 4, seed=start, **settings)
        monitor.begin(start)
        for step in range(start + 1, stop + 1):
            monitor.log(step, TRAIN | {"bits_per_dim": float(step)})
            monitor.log(step, {"bits_per_dim": 10.0 + step, "standard_error": 0.1}, prefix="test")
        monitor.log(start + 1, {"digits-features": 3.0}, prefix="frechet")
        if stop == 4:
            monitor.succeed()
        monitor.close()
    served = Served(tmp_path)
    metrics, groups = served.session_groups()
    assert metrics == ["test/bits_per_dim", "train/bits_per_dim", "frechet/digits-features"]
    assert sorted(groups) == ["a/tensorboard", "b/tensorboard"]
    first, second = groups["a/tensorboard"], groups["b/tensorboard"]
    assert first.hparams["network.name"].string_value == "ddpmpp"
    assert (first.hparams["parameters"].number_value, first.hparams["training.steps"].number_value) == (123, 4)
    # Every network has each of them, but dit no dropout.
    for group, absent in ((first, {"diffusion.interval"}), (second, {"diffusion.interval", "network.dropout"})):
        assert {key for key, value in group.hparams.items() if value.string_value == "None"} == absent
    assert {value.name.tag: value.value for value in second.metric_values} == dict(zip(metrics, (12.0, 2.0, 3.0)))
    statuses = [group.sessions[0].status for group in (first, second)]
    assert statuses == [api_pb2.STATUS_SUCCESS, api_pb2.STATUS_UNKNOWN]
    # The runs' layouts are one; every chart has curves, and every curve a group.
    assert {category["title"]: len(category["chart"]) for category in served.layout()} == {
        category: len(charts) for category, charts in CHARTS.items()
    }
    # The configuration of each part of the run, from its first step on.
    assert [(step, "seed: 1" in text) for step, text in served.texts("a/tensorboard")] == [(1, False), (2, True)]
    tags = served.tags("a/tensorboard")
    assert {name.split("/")[0] for name in tags} == {"train", "test", "integrand", "speed", "frechet"}
    for charts in CHARTS.values():
        assert all(any(re.match(expression, name) for name in tags) for expression in charts.values())
    held_out = CHARTS["Likelihood"]["bits/dim, held-out images, averaged weights"]
    assert [name for name in tags if re.match(held_out, name)] == ["test/bits_per_dim"]
