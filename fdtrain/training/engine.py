"""DeepSpeed, behind the few calls that the trainer needs. The only file that imports it."""

import logging
import os
import sys
import warnings
from datetime import timedelta
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fdtrain import distributed
from fdtrain.capacity.layout import RunLayout
from fdtrain.checkpoint.fragments import FIRST_MOMENT, MOMENTUM, SECOND_MOMENT, WEIGHT, Fragment, FragmentReader
from fdtrain.checkpoint.store import Counters
from fdtrain.config import TrainingConfig
from fdtrain.diffusion.predictors import Field
from fdtrain.networks.model import Model, inner_matrices
from fdtrain.training.grad_guard import GradGuard
from fdtrain.training.hardware import DTYPES, memory_format
from fdtrain.training.matrix_exchange import MatrixExchange, Piece
from fdtrain.training.muon import Muon
from fdtrain.training.zero import SteppedRange, owners, shared, stepped_ranges, update_module

# Said before the import, which otherwise warns on every rank of a machine without an accelerator.
if not distributed.on_gpu():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")

import deepspeed
from deepspeed.runtime import compiler
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler
from deepspeed.runtime.zero.utils import ZERO_SUPPORTED_OPTIMIZERS

deepspeed.utils.logger.setLevel(logging.WARNING)
# DeepSpeed still calls functions that torch is about to rename.
warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
# A C++ extension that DeepSpeed would compile at start-up, for inference alone.
deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
ZERO_SUPPORTED_OPTIMIZERS.append(Muon)
# ZeRO asks whether the optimizer is DeepSpeed's Muon. That one is compiled when it is imported, and the compiler alone
# takes two seconds to import, on every rank.
_compile, compiler.compile = compiler.compile, lambda: compiler.dummy_decorator
import deepspeed.runtime.zero.muon.original_muon  # noqa: E402

compiler.compile = _compile

REDUCE_TO_OWNERS = 16
"""Ranks up to which ZeRO 1 and 2 reduce each piece of the gradient to the rank that owns it, which moves the fewest
bytes. DeepSpeed calls once per owner, so with more ranks it reduces everything to everyone, with 1.5 times the
bytes."""


class Engine:
    """A model under DeepSpeed: mixed precision, gradient reduction, ZeRO, offload, optimiser.

    The model is on its device. Weights stay float32; at bf16 and fp16 the network computes under autocast, and
    gradients are reduced in float32. ``field`` returns ``F`` in float32. A step whose gradient is not finite changes
    no weights.
    """

    def __init__(self, model: Model, training: TrainingConfig, layout: RunLayout):
        self.model, self.training, self.stage = model, training, layout.zero_stage
        self.shapes = {name: p.shape for name, p in model.named_parameters()}
        self.parameters = list(model.parameters())
        self.device = self.parameters[0].device
        self.memory_format = memory_format(self.device, training.precision)
        self.guard = GradGuard(training.skip_grad_norm_ratio, self.device)
        self.matrices = set(inner_matrices(model)) if training.optimizer == "muon" else set()
        """The parameters that Muon steps."""
        self.optimizer = _optimizer(model, self.matrices, training)
        self.optimizer.register_step_pre_hook(self._judge)
        _limit_waiting(training.collective_timeout_s)
        settings = _settings(training, layout)
        # Of no one type: its optimiser is ZeRO's, or ours at stage 0.
        self.engine: Any = deepspeed.initialize(model=model, optimizer=self.optimizer, config=settings)[0]
        if self.stage:
            self._scale_with_clipping()
            if training.precision != "fp16":
                # Whether the gradient is finite is for the guard, on the device: ZeRO would have the host wait for it.
                zero: Any = sys.modules[type(self.engine.optimizer).__module__]
                zero.is_invalid_grad_norm = lambda norm: False
        else:
            # The engine's own would look through all modules for their parameters.
            self.engine.zero_grad = self.optimizer.zero_grad
            # Alone, DeepSpeed would copy every gradient into a bucket and back for nobody.
            self.engine.enable_backward_allreduce = layout.world_size > 1
        self.stepped = list(stepped_ranges(self.engine.optimizer, model, self.stage))
        # At stage 0 every rank steps everything, but saves no more than its share of it.
        self.saved = self.stepped if self.stage else shared(self.stepped)
        self.owners = owners(self.engine.optimizer, model, self.stage)
        if isinstance(self.optimizer, Muon):
            self.optimizer.exchanges = self._exchanges()
        self._start_moments()

    def field(self, label: Tensor | None = None) -> Field:
        """Of these labels: the network at images and times."""
        return lambda x, t: self.engine(x.contiguous(memory_format=self.memory_format), t, label)

    def backward(self, loss: Tensor) -> None:
        """Accumulate gradients of one pass; ``loss`` is its mean, the division by the passes is done here."""
        self.engine.backward(loss)

    def step(self, lr: float) -> None:
        """After each pass; updates the weights after the last of a step. ``lr`` is AdamW's, Muon's in proportion.

        Then ``norm`` is that of the global gradient before clipping, and ``skipped`` 1 if there was no update,
        else 0; both scalars, the same on every rank.
        """
        for group in self.engine.optimizer.param_groups:
            group["lr"] = lr * group.get("relative_lr", 1.0)
        last = self.engine.is_gradient_accumulation_boundary()
        if last and not self.stage:
            scaler = self.engine.torch_autocast_z0_gradscaler
            if scaler is not None:
                scaler.unscale_(self.optimizer)
            clip = self.training.grad_clip or float("inf")
            self.norm = torch.nn.utils.clip_grad_norm_(self.parameters, clip)
        self.engine.step()
        if self.stage and last:
            self.norm = torch.as_tensor(self.engine.get_global_grad_norm(), device=self.guard.device)
        if last:
            self.skipped = self.guard.refuses(self.norm)
            self.guard.add(self.norm, self.skipped)

    def _judge(self, *_: Any) -> None:
        """Before the optimiser's step: see that a refused one changes nothing. At fp16 ZeRO leaves a gradient that is
        not finite out by itself, as its loss scale must come down, and comes here with a finite one."""
        norm = self.engine.optimizer._global_grad_norm if self.stage else self.norm
        refused = self.guard.refuses(norm).to(self.owners[0].device)
        # The kernels leave everything as it is where this is 1, without a word to the host.
        setattr(self.optimizer, "found_inf", refused)  # noqa: B010 (no attribute of its type)

    def _scale_with_clipping(self) -> None:
        """At fp16 ZeRO clips and judges the gradient before torch's scaler divides by the loss scale, and never
        lowers the scale of one that overflowed. Its own scaler does all three in the right order."""
        zero = self.engine.optimizer
        if zero.torch_autocast_gradscaler is not None:
            zero.torch_autocast_gradscaler = None
            zero.loss_scaler = DynamicLossScaler(
                init_scale=2**16,
                scale_window=2000,
                min_scale=2**-20,
                delayed_shift=1,
                consecutive_hysteresis=False,
                raise_error_at_min_scale=False,
            )
            zero.dynamic_loss_scale = True

    def _start_moments(self) -> None:
        """The optimiser's state from the start, so that saving and loading need no first step."""
        for r in {id(r.owner): r for r in self.stepped}.values():
            state = {moment: torch.zeros_like(r.owner, requires_grad=False) for moment in self._moments(r)}
            if FIRST_MOMENT in state:
                state["step"] = torch.zeros((), device=r.owner.device)
            self.optimizer.state[r.owner] = state

    def _exchanges(self) -> dict[Tensor, MatrixExchange]:
        """Of every owner, each of which is stepped by all ranks at once."""
        mine = [[r for r in self.stepped if r.owner is owner] for owner in self.owners]
        pieces = [[Piece(r.parameter, r.start, r.count) for r in of_owner] for of_owner in mine]
        # At stage 0 every rank has, and steps, everything.
        of_ranks = distributed.of_all(pieces) if self.stage else [pieces]
        most = self.training.bucket_mib * 2**20 // 4
        return {
            owner: MatrixExchange(mine[i], [of_rank[i] for of_rank in of_ranks], self.shapes, most, self.device)
            for i, owner in enumerate(self.owners)
        }

    def _moments(self, r: SteppedRange) -> tuple[str, ...]:
        return (MOMENTUM,) if r.parameter in self.matrices else (FIRST_MOMENT, SECOND_MOMENT)

    def _of(self, r: SteppedRange) -> dict[str, Tensor]:
        """By kind, what the optimiser has of a range's owner."""
        state = self.optimizer.state[r.owner]
        return {WEIGHT: r.owner.data, **{moment: state[moment] for moment in self._moments(r)}}

    @property
    def weights(self) -> list[Fragment]:
        """This rank's fragments of the float32 weights, live; those of all ranks are all weights, once."""
        return [Fragment(WEIGHT, r.parameter, r.start, r.of(r.owner.data)) for r in self.saved]

    @property
    def fragments(self) -> list[Fragment]:
        """This rank's fragments of weights and moments, live; those of all ranks are the whole state, once."""
        return [Fragment(k, r.parameter, r.start, r.of(flat)) for r in self.saved for k, flat in self._of(r).items()]

    def counters(self) -> Counters:
        """What the state has beside tensors."""
        updates = [float(step) for step in self.updates]
        return Counters(max(updates, default=0.0), self._loss_scale(), self.guard.state())

    def load(self, parts: FragmentReader, counters: Counters) -> None:
        """Load what any number of ranks saved at any stage: ``fragments`` as parts, and ``counters``.

        A rank reads what it saves, and has the rest from the others. Every rank must call it.
        """
        with torch.no_grad():
            if not self.stage:
                for r in self.stepped:
                    for flat in self._of(r).values():
                        flat.zero_()
            for r in self.saved:
                for kind, flat in self._of(r).items():
                    r.of(flat).copy_(parts.read(kind, r.parameter, r.start, r.count))
            if not self.stage:
                for r in self.stepped:
                    for flat in self._of(r).values():
                        # The sum of bits: that of numbers would lose the sign of a zero.
                        distributed.all_reduce_sum(flat.view(-1).view(torch.int32))
            for step in self.updates:
                step.fill_(counters.updates)
            update_module(self.engine.optimizer, self.model, self.stage, self.stepped)
        self._set_loss_scale(counters.loss_scale)
        self.guard.load(counters.guard)

    @property
    def updates(self) -> list[Tensor]:
        """Adam's counts of them, one for each tensor that it steps."""
        return [state["step"] for state in self.optimizer.state.values() if "step" in state]

    def _loss_scale(self) -> dict[str, Any]:
        """Of the scaler there is, empty at fp32 and bf16."""
        if self.training.precision != "fp16":
            return {}
        if self.stage:
            scaler = self.engine.optimizer.loss_scaler
            since = scaler.cur_iter - scaler.last_overflow_iter
            return {"scale": float(scaler.cur_scale), "since": since}
        saved = self.engine.torch_autocast_z0_gradscaler.state_dict()
        return {"scale": saved["scale"], "since": saved["_growth_tracker"]}

    def _set_loss_scale(self, saved: dict[str, Any]) -> None:
        """``saved`` is empty where the run was saved at another precision."""
        if not saved or self.training.precision != "fp16":
            return
        if self.stage:
            scaler = self.engine.optimizer.loss_scaler
            scaler.cur_scale = saved["scale"]
            scaler.last_overflow_iter = scaler.cur_iter - saved["since"]
        else:
            scaler = self.engine.torch_autocast_z0_gradscaler
            scaler.load_state_dict({**scaler.state_dict(), "scale": saved["scale"], "_growth_tracker": saved["since"]})


def _optimizer(model: Model, matrices: set[str], training: TrainingConfig) -> torch.optim.AdamW:
    adamw = {"betas": training.betas, "eps": training.eps, "weight_decay": training.weight_decay}
    if not matrices:
        return torch.optim.AdamW(model.parameters(), lr=training.lr, fused=True, **adamw)
    parts: dict[bool, list[Tensor]] = {True: [], False: []}
    for name, p in model.named_parameters():
        parts[name in matrices].append(p)
    return Muon(parts[True], parts[False], training.lr, training.muon_lr, DTYPES[training.precision], **adamw)


def _limit_waiting(seconds: float) -> None:
    """DeepSpeed makes groups of its own, in which a call would wait for a rank as long as torch does unasked: half an
    hour on a CPU, ten minutes on GPUs."""
    deepspeed.init_distributed(verbose=False)
    # It remembers the groups of an earlier run in this process, which have ended.
    deepspeed.utils.groups._release_process_group_references()
    timeout = timedelta(seconds=seconds)
    deepspeed.comm.comm.cdb.new_group = partial(torch.distributed.new_group, timeout=timeout)


def _settings(training: TrainingConfig, layout: RunLayout) -> dict[str, Any]:
    """Our configuration as DeepSpeed's."""
    stage, several = layout.zero_stage, layout.world_size > 1
    elements = training.bucket_mib * 2**20 // 4
    zero = {
        "stage": stage,
        # Between GPUs; on a CPU there is no second stream to reduce in.
        "overlap_comm": distributed.on_gpu() and several and stage > 0,
        "use_multi_rank_bucket_allreduce": layout.world_size > REDUCE_TO_OWNERS,
        "reduce_bucket_size": elements,
        "allgather_bucket_size": elements,
    }
    if training.offload != "none":
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": distributed.on_gpu()}
    if training.offload == "weights":
        zero["offload_param"] = {"device": "cpu", "pin_memory": distributed.on_gpu()}
    settings = {
        "train_batch_size": training.global_batch,
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": layout.passes,
        "zero_optimization": zero,
        # torch's fused AdamW runs on the CPU too, without a compiler on the user's machine.
        "zero_force_ds_cpu_optimizer": False,
        # Without ZeRO DeepSpeed clips but keeps the norm to itself: then step() clips.
        "gradient_clipping": training.grad_clip if stage else 0.0,
        "steps_per_print": 2**63 - 1,
        # It would wait for the device twice in every pass.
        "timers": {"throughput": {"enabled": False}},
    }
    if training.precision != "fp32":
        settings["torch_autocast"] = {
            "enabled": True,
            "dtype": str(DTYPES[training.precision]).removeprefix("torch."),
            # Modules whose gradients would travel in half precision: none.
            "lower_precision_safe_modules": [],
        }
    return settings
