"""DeepSpeed, behind the few calls that the trainer needs. The only file that imports it."""

import logging
import os
import pickle
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from fdtrain.config import Training
from fdtrain.errors import LostPeer, UserError
from fdtrain.networks.model import Model

# Said before the import, which otherwise warns on every rank of a machine without an accelerator.
if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

# DeepSpeed opens checkpoints with torch.load(weights_only=False), which runs whatever a file asks it to. This
# makes torch admit tensors and plain containers only, and the classes named below, which hold numbers.
os.environ["TORCH_FORCE_WEIGHTS_ONLY_LOAD"] = "1"

import deepspeed
from deepspeed.accelerator import get_accelerator
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address

torch.serialization.add_safe_globals([LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address])
deepspeed.utils.logger.setLevel(logging.WARNING)
# DeepSpeed still calls functions that torch is about to rename.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
# A C++ extension that DeepSpeed would compile at start-up, for inference alone.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False

PRECISIONS = {"bf16": "bfloat16", "fp16": "float16"}
CHECKPOINT_TAG = "engine"


def world_size() -> int:
    """Processes of this launch, known from the launcher before any process group exists."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    return int(os.environ.get("LOCAL_RANK", "0"))


def connect() -> torch.device:
    """Join the process group (of one, when started without a launcher) and return this rank's device."""
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}.items():
        os.environ.setdefault(name, value)
    os.environ.setdefault("MASTER_PORT", "0" if world_size() == 1 else "29500")
    accelerator = get_accelerator()
    if accelerator.device_name() == "cpu":
        # Processes that each take all cores get in each other's way.
        if "OMP_NUM_THREADS" not in os.environ:
            processes = int(os.environ.get("LOCAL_SIZE") or os.environ.get("LOCAL_WORLD_SIZE") or 1)
            torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // processes))
    else:
        accelerator.set_device(local_rank())
    deepspeed.init_distributed(dist_backend=accelerator.communication_backend_name(), verbose=False)
    return torch.device(accelerator.current_device_name())


@contextmanager
def peers() -> Iterator[None]:
    """Around everything that talks to other ranks: a connection that breaks raises LostPeer."""
    try:
        yield
    except RuntimeError as error:
        if isinstance(error, dist.DistBackendError) or "gloo" in str(error):
            raise LostPeer(
                f"the connection to another process of this run was lost ({str(error).splitlines()[0]}); "
                "its own output says why. Launch again with --resume auto."
            ) from error
        raise


def all_reduce_sum(x: Tensor) -> Tensor:
    """Sum over ranks, in place."""
    dist.all_reduce(x)
    return x


def broadcast(value):
    """Rank 0's value of a small picklable object."""
    box = [value]
    dist.broadcast_object_list(box)
    return box[0]


class Engine:
    """A model under DeepSpeed: mixed precision, gradient reduction, ZeRO, optimiser.

    Weights stay float32; at bf16 and fp16 the network computes under autocast, and gradients are reduced in
    float32. ``forward`` returns ``F`` in float32.

    Args:
        model: already on its device.
        training: the configuration's section.
    """

    def __init__(self, model: Model, training: Training):
        self.model, self.training = model, training
        accumulation = training.accumulation(world_size())
        optimizer = torch.optim.AdamW(
            model.parameters(),
            lr=training.lr,
            betas=training.betas,
            eps=training.eps,
            weight_decay=training.weight_decay,
            fused=True,
        )
        settings = {
            "train_batch_size": training.global_batch,
            "train_micro_batch_size_per_gpu": training.global_batch // world_size() // accumulation,
            "gradient_accumulation_steps": accumulation,
            "zero_optimization": {"stage": training.zero_stage},
            # Without ZeRO DeepSpeed clips but keeps the norm to itself: then step() clips.
            "gradient_clipping": training.clip if training.zero_stage else 0.0,
            "steps_per_print": 2**63 - 1,
        }
        if training.precision != "fp32":
            settings["torch_autocast"] = {
                "enabled": True,
                "dtype": PRECISIONS[training.precision],
                # Modules whose gradients would travel in half precision: none.
                "lower_precision_safe_modules": [],
            }
        self.engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
        if world_size() == 1 and training.zero_stage == 0:
            # DeepSpeed would copy every gradient into a bucket and back for nobody.
            self.engine.enable_backward_allreduce = False

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None) -> Tensor:
        return self.engine(x, t, label)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of one pass; ``loss`` is its mean, the division by the passes is done here."""
        self.engine.backward(loss)

    def step(self, lr: float) -> Tensor | float:
        """After each pass; updates the weights after the last of a step.

        Returns:
            Norm of the global gradient before clipping; not finite when fp16 overflowed and the update was
            skipped. Meaningless before the last pass.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr
        norm = None
        if not self.training.zero_stage and self.engine.is_gradient_accumulation_boundary():
            scaler = self.engine.torch_autocast_z0_gradscaler
            if scaler is not None:
                scaler.unscale_(self.engine.optimizer)
            norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.training.clip or float("inf"))
        self.engine.step()
        return self.engine.get_global_grad_norm() if norm is None else norm

    def save(self, folder: Path) -> None:
        """Write the engine's state under ``folder``. Every rank must call it."""
        scaler = self.engine.torch_autocast_z0_gradscaler
        # The one part of its state that DeepSpeed does not save.
        extra = {"gradient_scaler": scaler.state_dict()} if scaler else {}
        self.engine.save_checkpoint(str(folder), tag=CHECKPOINT_TAG, client_state=extra, save_latest=False)

    def load(self, folder: Path) -> None:
        """Load what :meth:`save` wrote, on the same number of ranks unless ``zero_stage`` is 0.

        Raises:
            UserError: a file asks for code to be run.
        """
        try:
            _, extra = self.engine.load_checkpoint(str(folder), tag=CHECKPOINT_TAG)
        except pickle.UnpicklingError as error:
            raise UserError(
                f"{folder / CHECKPOINT_TAG} holds more than tensors and numbers; loading it could run code, so it "
                "is refused. Resume from a checkpoint that this program wrote."
            ) from error
        scaler = self.engine.torch_autocast_z0_gradscaler
        # Absent where the run was saved at another precision.
        if scaler and "gradient_scaler" in extra:
            scaler.load_state_dict(extra["gradient_scaler"])
