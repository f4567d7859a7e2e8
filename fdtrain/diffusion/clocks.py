"""Clocks: the times of other formulations as functions of the one time ``t``, and so as densities of it.

A clock ``tau`` rises with ``t``. Drawing ``tau`` evenly is drawing ``t`` from the density ``dtau/dt``, whose
distribution function is the clock itself. Each class gives ``cdf(t) = tau``, its inverse ``quantile(tau)`` and
``pdf(t) = dtau/dt``, in closed form (docs/method.md, 'Other formulations'); :class:`Restricted` normalises them on an
interval. ``interval`` is the one that the source trains on; None where it has to be stated. All in float64.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from fdtrain.diffusion.interval import CLOSED, Interval
from fdtrain.diffusion.process import alpha


class TimeDensity(Protocol):
    """A density of ``t`` with its exact inverse distribution function."""

    def quantile(self, u: Tensor, /) -> Tensor: ...

    def cdf(self, t: Tensor, /) -> Tensor: ...

    def pdf(self, t: Tensor, /) -> Tensor: ...


class Clock(TimeDensity, Protocol):
    """A density that need not be normalised, and the interval of its source."""

    @property
    def interval(self) -> Interval | None: ...


@dataclass(frozen=True)
class Asinh:
    """``q(t) = 1 / (asinh(1/s) sqrt(t^2 + s^2))`` on [0, 1]: log-uniform above ``s``, uniform below it."""

    scale: float = 1 / 256
    interval: Interval | None = CLOSED

    @property
    def _range(self) -> float:
        return math.asinh(1 / self.scale)

    def quantile(self, u: Tensor) -> Tensor:
        # s sinh(u asinh(1/s)), with s written as 1 / sinh(asinh(1/s)) so that u = 1 gives t = 1 to the last bit.
        end = torch.as_tensor(self._range, dtype=u.dtype)
        return torch.sinh(u * end) / torch.sinh(end)

    def cdf(self, t: Tensor) -> Tensor:
        return torch.asinh(t / self.scale) / self._range

    def pdf(self, t: Tensor) -> Tensor:
        return 1 / (self._range * torch.sqrt(t * t + self.scale * self.scale))


@dataclass(frozen=True)
class Formula:
    """A clock without parameters."""

    quantile: Callable[[Tensor], Tensor]
    cdf: Callable[[Tensor], Tensor]
    pdf: Callable[[Tensor], Tensor]
    interval: Interval | None


UNIFORM = Formula(lambda u: u, lambda t: t, torch.ones_like, CLOSED)
ANGLE = Formula(
    lambda u: torch.sin(0.5 * math.pi * u),
    lambda t: 2 / math.pi * torch.atan2(t, alpha(t)),
    lambda t: 2 / (math.pi * alpha(t)),
    CLOSED,
)
"""``t = sin(pi/2 tau)`` on [0, 1]: uniform in the angle of ``(alpha, t)``."""
LOG_TIME = Formula(torch.exp, torch.log, torch.reciprocal, None)
"""``q(t) ~ 1/t``, even in ``log t`` (i-DODE, Zheng et al. 2023, its VP setting)."""


@dataclass(frozen=True)
class LogSnr:
    """Even in the log-SNR: ``tau = (gamma - low) / (high - low)``, ``gamma = -log_snr``.

    ScoreFlow's importance sampling (Song et al. 2021b), VDM's linear ``gamma`` (Kingma et al. 2021), and the VE
    process ``z = x0 + sg eps``, ``sg = sg_min (sg_max / sg_min)^tau`` (Song et al. 2021), with their end points.
    """

    low: float = 0.0
    high: float = 1.0
    bounded: bool = False

    @property
    def interval(self) -> Interval | None:
        """Between the end points, where they are ends."""
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
        return Interval(*self.quantile(ends).tolist()) if self.bounded else None

    def quantile(self, u: Tensor) -> Tensor:
        return torch.sqrt(torch.sigmoid(self.low + (self.high - self.low) * u))

    def cdf(self, t: Tensor) -> Tensor:
        return (2 * torch.log(t) - torch.log1p(-t * t) - self.low) / (self.high - self.low)

    def pdf(self, t: Tensor) -> Tensor:
        return 2 / ((self.high - self.low) * t * (1 - t * t))


@dataclass(frozen=True)
class LogNormal:
    """``log(t / alpha)`` is normal: EDM's noise levels (Karras et al. 2022), mean -1.2 and deviation 1.2.

    The logarithm of ``t / alpha`` is the logit of the flow's time, so with (0, 1) these are the logit-normal times of
    Stable Diffusion 3 (Esser et al. 2024).
    """

    mean: float
    deviation: float
    interval: Interval | None

    def _normal(self, t: Tensor) -> Tensor:
        return (torch.log(t) - torch.log(alpha(t)) - self.mean) / self.deviation

    def quantile(self, u: Tensor) -> Tensor:
        gamma = 2 * (self.mean + self.deviation * torch.special.ndtri(u))
        return torch.sqrt(torch.sigmoid(gamma))

    def cdf(self, t: Tensor) -> Tensor:
        return torch.special.ndtr(self._normal(t))

    def pdf(self, t: Tensor) -> Tensor:
        normal = torch.exp(-0.5 * self._normal(t).square()) / (self.deviation * math.sqrt(2 * math.pi))
        return normal / (t * (1 - t * t))


@dataclass(frozen=True)
class Process(TimeDensity):
    """A published process with a time of its own, and where in it its training begins and ends."""

    first: float
    last: float = 1.0

    @property
    def interval(self) -> Interval:
        return Interval(*self.quantile(torch.tensor([self.first, self.last], dtype=torch.float64)).tolist())


@dataclass(frozen=True)
class Flow(Process):
    """Flow matching (Lipman et al. 2023), ``z = (1 - tau) x0 + tau eps``: ``tau = t / (t + alpha)``."""

    first: float = 1e-4

    def quantile(self, u: Tensor) -> Tensor:
        return u / torch.sqrt(u * u + (1 - u) * (1 - u))

    def cdf(self, t: Tensor) -> Tensor:
        return t / (t + alpha(t))

    def pdf(self, t: Tensor) -> Tensor:
        return 1 / (alpha(t) * (t + alpha(t)).square())


BETA_MIN, BETA_MAX = 0.1, 20.0
"""Of the linear-beta processes (Song et al. 2021)."""
VP_FIRST = 1e-5
"""Smallest time that score_sde trains on."""


def _total_beta(tau: Tensor) -> Tensor:
    """``B(tau) = Int_0^tau beta``, ``beta = 0.1 + 19.9 tau``."""
    return BETA_MIN * tau + 0.5 * (BETA_MAX - BETA_MIN) * tau * tau


def _tau_of_beta(total: Tensor) -> Tensor:
    """The inverse of :func:`_total_beta`."""
    return 2 * total / (BETA_MIN + torch.sqrt(BETA_MIN**2 + 2 * (BETA_MAX - BETA_MIN) * total))


def _beta(tau: Tensor) -> Tensor:
    return BETA_MIN + (BETA_MAX - BETA_MIN) * tau


@dataclass(frozen=True)
class LinearVP(Process):
    """The linear-beta VP process (DDPM; Song et al. 2021): ``t^2 = 1 - exp(-B(tau))``, trained on ``tau >= 1e-5``."""

    first: float = VP_FIRST

    def quantile(self, u: Tensor) -> Tensor:
        return torch.sqrt(-torch.expm1(-_total_beta(u)))

    def cdf(self, t: Tensor) -> Tensor:
        return _tau_of_beta(-torch.log1p(-t * t))

    def pdf(self, t: Tensor) -> Tensor:
        return 2 * t / ((1 - t * t) * _beta(self.cdf(t)))


@dataclass(frozen=True)
class Restricted:
    """A density cut to an interval and normalised there."""

    density: TimeDensity
    interval: Interval

    @cached_property
    def _ends(self) -> tuple[float, float]:
        """The clock at the ends, once: every batch asks for its quantiles and its density."""
        ends = torch.tensor([self.interval.t_min, self.interval.t_max], dtype=torch.float64)
        low, high = self.density.cdf(ends).tolist()
        return low, high

    def quantile(self, u: Tensor) -> Tensor:
        low, high = self._ends
        return self.density.quantile(low + (high - low) * u).clamp(self.interval.t_min, self.interval.t_max)

    def cdf(self, t: Tensor) -> Tensor:
        low, high = self._ends
        return (self.density.cdf(t) - low) / (high - low)

    def pdf(self, t: Tensor) -> Tensor:
        low, high = self._ends
        return self.density.pdf(t) / (high - low)


@dataclass(frozen=True)
class SoftTruncation:
    """Soft Truncation (Kim et al. 2022): the interval of each batch begins at a random time.

    ``tau_min`` has a density ``~ tau^-k`` from ``tau_0`` to 1 on the linear-beta VP clock, ``tau_0`` being the
    interval's own; a batch's times are even in log-SNR on what is left. As a density it is the one of the whole
    interval.
    """

    interval: Interval = LinearVP().interval
    k: float = 1.0

    def of_batch(self, u: float) -> Restricted:
        """The density of a batch, for one uniform draw."""
        clock = LinearVP()
        first, power = clock.cdf(torch.tensor(self.interval.t_min, dtype=torch.float64)), self.k - 1
        tau = first / (1 - u * (1 - first**power)) ** (1 / power) if power else first ** (1 - u)
        t_min = float(clock.quantile(tau))
        return Restricted(LogSnr(), Interval(max(t_min, self.interval.t_min), self.interval.t_max))

    def quantile(self, u: Tensor) -> Tensor:
        return self.of_batch(0.0).quantile(u)

    def cdf(self, t: Tensor) -> Tensor:
        return self.of_batch(0.0).cdf(t)

    def pdf(self, t: Tensor) -> Tensor:
        return self.of_batch(0.0).pdf(t)


@dataclass(frozen=True)
class SubVP(Process):
    """The sub-VP process (Song et al. 2021): ``z = sqrt(e) x0 + (1 - e) eps``, ``e = exp(-B(tau))``, seen in ``t``.

    ``t^2 = (1 - e)^2 / (e + (1 - e)^2)``, so with ``r = t^2 / (1 - t^2)``, ``s = 1 - e`` solves ``s^2 = r (1 - s)``.
    """

    first: float = VP_FIRST

    def quantile(self, u: Tensor) -> Tensor:
        e, s = torch.exp(-_total_beta(u)), -torch.expm1(-_total_beta(u))
        return s / torch.sqrt(e + s * s)

    def _noise(self, t: Tensor) -> Tensor:
        """``s`` of ``t``."""
        return 2 / (1 + torch.sqrt(1 + 4 * (1 - t * t) / (t * t)))

    def cdf(self, t: Tensor) -> Tensor:
        s = self._noise(t)
        # e = s^2 / r, without a difference near t = 1; 1 - s near t = 0.
        total = torch.where(s < 0.5, -torch.log1p(-s), 2 * torch.log(t) - torch.log1p(-t * t) - 2 * torch.log(s))
        return _tau_of_beta(total)

    def pdf(self, t: Tensor) -> Tensor:
        # log r = 2 log s - log e; d log r / dt = 2 / (t (1 - t^2)); d log r / dtau = beta (2 e / s + 1).
        s, r = self._noise(t), t * t / (1 - t * t)
        e = s * s / r
        return 2 / (t * (1 - t * t) * _beta(self.cdf(t)) * (2 * e / s + 1))


@dataclass(frozen=True)
class ZeroSnrVP(Process):
    """The linear-beta process with ``alpha`` shifted and scaled to be 0 at its end (Lin et al. 2024): closed at 1.

    Trained from its first step of 1000 on.
    """

    first: float = 1e-3

    @property
    def _end(self) -> float:
        """``alpha`` of the process as it was, at its end."""
        return math.exp(-0.25 * (BETA_MIN + BETA_MAX))

    def quantile(self, u: Tensor) -> Tensor:
        # 1 - alpha, to the last digit.
        lost = -torch.expm1(-0.5 * _total_beta(u)) / (1 - self._end)
        return torch.sqrt(lost * (2 - lost))

    def cdf(self, t: Tensor) -> Tensor:
        return _tau_of_beta(-2 * torch.log1p(-(1 - self._end) * t * t / (1 + alpha(t))))

    def pdf(self, t: Tensor) -> Tensor:
        before = self._end + (1 - self._end) * alpha(t)
        return 2 * t * (1 - self._end) / (alpha(t) * _beta(self.cdf(t)) * before)


@dataclass(frozen=True)
class Cosine(Process):
    """The cosine schedule (Nichol & Dhariwal 2021), ``alpha = cos(a) / cos(a_0)``, ``a = pi/2 (tau + s) / (1 + s)``.

    ``s = 0.008``; from its first step of 4000 to the last but one: the last, whose beta is cut, is noise alone.
    """

    offset: float = 0.008
    first: float = 1 / 4000
    last: float = 1 - 1 / 4000

    @property
    def _start(self) -> float:
        return 0.5 * math.pi * self.offset / (1 + self.offset)

    def quantile(self, u: Tensor) -> Tensor:
        angle = 0.5 * math.pi * (u + self.offset) / (1 + self.offset)
        # 1 - alpha as a product of sines.
        lost = 2 * torch.sin(0.5 * (angle + self._start)) * torch.sin(0.5 * (angle - self._start))
        lost = lost / math.cos(self._start)
        return torch.sqrt(lost * (2 - lost))

    def cdf(self, t: Tensor) -> Tensor:
        angle = torch.arccos(math.cos(self._start) * alpha(t))
        return angle * (2 / math.pi) * (1 + self.offset) - self.offset

    def pdf(self, t: Tensor) -> Tensor:
        c, a = math.cos(self._start), alpha(t)
        return (1 + self.offset) * (2 / math.pi) * c * t / (a * torch.sqrt(1 - c * c * a * a))


VE_RANGE = (0.02, 100.0)
"""Of images in [-1, 1]: 0.01 to 50 in score_sde, whose VE images are in [0, 1]."""
VDM_RANGE = (-13.3, 5.0)
EDM_RANGE = (0.002, 80.0)

CLOCKS: dict[str, Clock] = {
    "linear_vp": LinearVP(),
    "sub_vp": SubVP(),
    "zero_snr_vp": ZeroSnrVP(),
    "cosine": Cosine(),
    "flow": Flow(),
    "ve": LogSnr(2 * math.log(VE_RANGE[0]), 2 * math.log(VE_RANGE[1]), True),
    "vdm": LogSnr(*VDM_RANGE, True),
}
"""The time of a published process, by its name."""

DENSITIES: dict[str, Callable[[float], Clock]] = {
    "uniform": lambda scale: UNIFORM,
    "asinh": Asinh,
    "angle": lambda scale: ANGLE,
    "log_time": lambda scale: LOG_TIME,
    "log_snr": lambda scale: LogSnr(),
    "edm": lambda scale: LogNormal(-1.2, 1.2, Interval(*(sg / math.sqrt(1 + sg * sg) for sg in EDM_RANGE))),
    "soft_truncation": lambda scale: SoftTruncation(),
    "logit_normal": lambda scale: LogNormal(0.0, 1.0, Flow().interval),
    **{name: lambda scale, clock=clock: clock for name, clock in CLOCKS.items()},
}
"""By name, each made with the ``s`` of ``asinh``."""


def time_density(kind: str, scale: float, interval: Interval = CLOSED, soft_truncation_k: float = 1.0) -> TimeDensity:
    """The density named ``kind`` in :data:`DENSITIES`, on ``interval``."""
    density = DENSITIES[kind](scale)
    if isinstance(density, SoftTruncation):
        return replace(density, interval=interval, k=soft_truncation_k)
    return density if interval == CLOSED == density.interval else Restricted(density, interval)
