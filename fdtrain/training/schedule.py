"""The learning rate as a function of the step."""

import math

from fdtrain.config import TrainingConfig

DECAYS = {
    "constant": lambda done: 1.0,
    "linear": lambda done: 1.0 - done,
    "cosine": lambda done: 0.5 * (1.0 + math.cos(math.pi * done)),
}


def learning_rate(step: int, training: TrainingConfig) -> float:
    """Rate of the step after ``step`` are done: linear warm-up to ``lr``, then the decay over all steps."""
    warmup = min(1.0, (step + 1) / max(1, training.warmup_steps))
    return training.lr * warmup * DECAYS[training.decay](step / training.steps)
