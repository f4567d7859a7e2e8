"""Export a run's averaged weights: ``fdtrain export runs/digits export/digits``.

    --format safetensors    model.safetensors and config.json, which fdtrain.load("export/digits") reads (default)
    --format diffusers      a folder for DiffusionPipeline.from_pretrained("export/digits", trust_remote_code=True)
    --format onnx           model.onnx, and sample.py, which needs numpy and onnxruntime alone
    --format torch_export   model.pt2, for torch.export.load

--ema-length 0.1 takes the average of that relative length instead, of a run with ema.lengths (docs/training.md).
Each is compared with the model on the same inputs; the export fails if they differ. README.md is the model card, and
export.json records the difference and the checksum of every file (docs/export.md). --push OWNER/NAME uploads the folder
to the Hugging Face hub, --dry-run says what it would upload.
"""

import argparse
from pathlib import Path

from fdtrain.console import phase
from fdtrain.errors import UserError
from fdtrain.evaluation.load import add_length
from fdtrain.export import hub
from fdtrain.export.write import FORMATS, UNKNOWN, export
from fdtrain.main import add_allow_code


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", help="a run (its newest checkpoint), a checkpoint, or an export")
    add_length(parser)
    add_allow_code(parser)
    parser.add_argument("folder", type=Path, help="a new folder, or an earlier export, which is replaced")
    parser.add_argument("--format", choices=FORMATS, default="safetensors", help="default: safetensors")
    parser.add_argument(
        "--licence", default=UNKNOWN, help="for the model card, such as apache-2.0 (default: %(default)s)"
    )
    parser.add_argument("--opset", type=int, help="version of ONNX's operators, for --format onnx")
    parser.add_argument("--push", metavar="OWNER/NAME", help="upload it to this repository of the Hugging Face hub")
    parser.add_argument("--dry-run", action="store_true", help="with --push: say what would be uploaded")


def run(arguments: argparse.Namespace) -> None:
    if arguments.dry_run and not arguments.push:
        raise UserError("--dry-run: of what? Name a repository with --push.")
    how = {"ema_length": arguments.ema_length, "licence": arguments.licence, "opset": arguments.opset}
    folder, repository = arguments.folder, arguments.push
    with phase(f"exporting to {folder}, and comparing with the model"):
        difference = export(arguments.model, folder, arguments.format, **how)
    print(f"exported to {folder}; largest difference to the model {difference:.1e}")
    if repository:
        sizes = hub.check(folder, repository)
        for name, size in sizes.items():
            print(f"  {name}  {size:,} bytes")
        much = f"{len(sizes)} files, {sum(sizes.values()):,} bytes"
        if arguments.dry_run:
            print(f"would be uploaded to {repository}: {much}")
        else:
            print(f"uploaded to {hub.push(folder, repository, list(sizes))}: {much}")
