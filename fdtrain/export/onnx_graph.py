"""The field as an ONNX graph, ``model.onnx``, and a sampler beside it that needs numpy and onnxruntime alone."""

import json
import logging
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import onnxscript
import torch
from torch import Tensor

from fdtrain.errors import UserError
from fdtrain.export import agreement, torch_export
from fdtrain.export.bundle import SOLVERS, bundle
from fdtrain.networks.model import Model
from fdtrain.randomness import Purpose

FILE, SAMPLER, DESCRIPTION = "model.onnx", "sample.py", "model.json"
OLDEST_OPSET = 18
"""Of torch's exporter."""
OPSET = 20
LOADING = """```
pip install numpy onnxruntime
python FOLDER/sample.py --images 16 --steps 20 --out samples.npz
```

The graph `model.onnx` gives the field `F` of `x` (N, C, H, W) float32, `t` (N,) float64 in INTERVALLABELS."""


def write(model: Model, folder: Path, opset: int | None = None) -> float:
    """Write graph, sampler and description, and return the largest difference of the graph's field in onnxruntime.
    Raises UserError: there is no such opset."""
    opset = OPSET if opset is None else opset
    newest = onnx.defs.onnx_opset_version()
    if not OLDEST_OPSET <= opset <= newest:
        raise UserError(f"--opset {opset}: it must be {OLDEST_OPSET} to {newest}; the default is {OPSET}.")
    _export(model, folder / FILE, opset)
    onnx.checker.check_model(folder / FILE)
    (folder / DESCRIPTION).write_text(json.dumps(model.spec.content(), indent=1) + "\n")
    (folder / SAMPLER).write_text(sampler(), encoding="utf-8")
    session = onnxruntime.InferenceSession(folder / FILE, providers=["CPUExecutionProvider"])

    def field(x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        values = {name: value.numpy() for name, value in (("x", x), ("t", t), ("label", label)) if value is not None}
        return torch.from_numpy(np.asarray(session.run(None, values)[0]))

    return agreement.check(model, field, "the ONNX graph")


def _export(model: Model, path: Path, opset: int) -> None:
    names = ["x", "t", "label"][: len(torch_export.arguments(model))]
    translated = {
        torch.ops.aten.special_erfinv.default: _erfinv(model),
        torch.ops.aten.acos.default: _acos,
        torch.ops.aten.asinh.default: _asinh,
    }
    # The exporter tells of its steps, and of versions that it does without.
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            torch.onnx.export(
                model,
                torch_export.arguments(model),
                path,
                input_names=names,
                output_names=["F"],
                dynamic_shapes=torch_export.dynamic(model),
                opset_version=opset,
                dynamo=True,
                external_data=False,
                custom_translation_table=translated,
                verbose=False,
            )
    finally:
        logging.disable(logging.NOTSET)


def _erfinv(model: Model) -> Callable:
    """ONNX has no ``erfinv``: the frequencies of :func:`fdtrain.networks.embeddings.fourier`, its only use, do not
    depend on the inputs."""
    count = getattr(model.network, "channels", 2) // 2
    values = torch.special.erfinv((torch.arange(count, dtype=torch.float32) + 0.5) / count)
    constant = onnx.numpy_helper.from_array(values.numpy())

    def erfinv(argument):
        return onnxscript.opset18.Constant(value=constant)

    return erfinv


def _acos(x):
    """``arccos`` of float64 times away from 1 (the cosine clock), which onnxruntime has in float32 alone: from there
    two steps of Newton's method."""
    op: Any = onnxscript.opset18  # Its operators' types admit no values of a graph.
    angle = op.Cast(op.Acos(op.Cast(x, to=onnx.TensorProto.FLOAT)), to=onnx.TensorProto.DOUBLE)
    for _ in range(2):
        angle = op.Add(angle, op.Div(op.Sub(op.Cos(angle), x), op.Sin(angle)))
    return angle


def _asinh(x):
    """Of times, none below zero; onnxruntime has it in float32 alone."""
    op: Any = onnxscript.opset18
    wide = op.Cast(x, to=onnx.TensorProto.DOUBLE)
    one = op.Constant(value=onnx.numpy_helper.from_array(np.array(1.0)))
    return op.CastLike(op.Log(op.Add(wide, op.Sqrt(op.Add(op.Mul(wide, wide), one)))), x)


def sampler() -> str:
    """The script: this package's solvers, and a loop around the graph."""
    template = (Path(__file__).parent / "templates" / "onnx_sampler.py.txt").read_text(encoding="utf-8")
    solvers = bundle(SOLVERS)
    return template.replace("@SOLVERS@", solvers).replace("@PURPOSE@", str(int(Purpose.SAMPLE)))
