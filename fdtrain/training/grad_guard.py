"""Steps that would do harm: a gradient that is not finite, or, as an option, far larger than usual."""

import torch
from torch import Tensor

MEMORY = 0.98
"""Of the running mean of the gradient's norm, per step: about the last fifty."""

WARMUP = 50
"""Steps before a gradient can be called unusual."""


class GradGuard:
    """Judges gradients by their global norm, the same on every rank, without waiting for the device.

    Args:
        skip_ratio: a norm above so many times its running mean is refused; None: any finite one is let pass.
    """

    def __init__(self, skip_ratio: float | None, device: torch.device):
        self.skip_ratio, self.device = skip_ratio, device
        # Running mean of the norms let pass, and their number.
        self.mean = torch.zeros((), dtype=torch.float64, device=device)
        self.seen = torch.zeros((), dtype=torch.float64, device=device)
        # Steps skipped in a row.
        self.skips = torch.zeros((), dtype=torch.float64, device=device)

    def refuses(self, norm: Tensor | float) -> Tensor:
        """1 if the step is to be skipped, else 0; a float32 scalar on the device."""
        norm = torch.as_tensor(norm, dtype=torch.float64, device=self.device)
        bad = ~torch.isfinite(norm)
        if self.skip_ratio is not None:
            bad |= (self.seen >= WARMUP) & (norm > self.skip_ratio * self.mean)
        return bad.float()

    def add(self, norm: Tensor, skipped: Tensor) -> None:
        """After a step: its norm, and whether it was skipped."""
        passed = 1 - skipped.double()
        norm = torch.nan_to_num(norm.double(), posinf=0.0, neginf=0.0)
        memory = torch.minimum(torch.full_like(self.seen, MEMORY), self.seen / (self.seen + 1))
        self.mean += passed * (1 - memory) * (norm - self.mean)
        self.seen += passed
        self.skips.add_(1).mul_(skipped)

    def state(self) -> tuple[float, float]:
        return float(self.mean), float(self.seen)

    def load(self, state: tuple[float, float]) -> None:
        self.mean.fill_(state[0])
        self.seen.fill_(state[1])
