"""Every published formulation as a view of the one process: predictors, losses, truncated bounds."""

import math

import pytest
import torch
from densities import gaussian, three_modes
from scipy import stats

from fdtrain.diffusion.clocks import CLOCKS, DENSITIES, time_density
from fdtrain.diffusion.decoders import (
    bin_centres,
    discrete_decoder,
    gaussian_decoder,
    truncated_normal,
    truncated_normal_entropy,
)
from fdtrain.diffusion.formulation import formulation_interval
from fdtrain.diffusion.interval import CLOSED, Interval
from fdtrain.diffusion.likelihood import ode_nll, ode_start
from fdtrain.diffusion.objective import Bound, normal_nll, residual
from fdtrain.diffusion.predictors import INPUTS, PREDICTORS, TIMES, eps_hat, make_predictor, score, v_hat, x0_hat
from fdtrain.diffusion.process import alpha, per_image, perturb, velocity
from fdtrain.diffusion.solvers import GRID, SOLVERS, sample, time_grid
from fdtrain.diffusion.weighting import WEIGHTINGS
from fdtrain.evaluation.likelihood import density_name

T = torch.tensor([1e-3, 0.05, 0.3, 0.7, 0.99], dtype=torch.float64)
SCALE, SD = 0.03, 0.5


@pytest.fixture
def drawn():
    generator = torch.Generator().manual_seed(0)
    x0, eps = torch.randn(2, 5, 1, 3, 3, dtype=torch.float64, generator=generator)
    x, v = perturb(x0, eps, T), velocity(x0, eps, T)
    return x0, eps, x, v


def target(kind, x0, eps, v):
    """What the network is to put out, where the field is that of one image ``x0``: F = v / t."""
    F, t, a = v / per_image(T, v), per_image(T, v), per_image(alpha(T), v)
    sigma = t / a
    variance = sigma**2 + SD**2
    return {
        "plain": F,
        "bounded": F * (t**2 + SCALE**2).sqrt(),
        "alpha": F / a,
        "eps": eps,
        "x0": x0,
        "v": v,
        "flow": eps - x0,
        "score": -eps,
        # (D - c_skip z) / c_out with the published c_skip and c_out (Karras et al. 2022, table 1).
        "edm": (x0 - SD**2 / variance * (x0 + sigma * eps)) / (sigma * SD / variance.sqrt()),
    }[kind]


@pytest.mark.parametrize("kind", PREDICTORS)
def test_round_trip(kind, drawn):
    x0, eps, x, v = drawn
    F = PREDICTORS[kind](SCALE).field(target(kind, x0, eps, v), x, T)
    torch.testing.assert_close(eps_hat(F, x, T), eps, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(x0_hat(F, x, T), x0, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(v_hat(F, T), v, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(score(F, x, T) * per_image(T, x), -eps, rtol=1e-9, atol=1e-9)


def test_edm_is_asked_as_published(drawn):
    """c_in z and c_noise of Karras et al. 2022, table 1, with z = x / alpha, sigma = t / alpha."""
    x = drawn[2]
    image, time = PREDICTORS["edm"](SCALE).inputs(x, T)
    sigma = T / alpha(T)
    z = x / per_image(alpha(T), x)
    torch.testing.assert_close(image, z * per_image(1 / (sigma**2 + SD**2).sqrt(), x))
    torch.testing.assert_close(time, sigma.log() / 4)


def test_inputs_are_the_published_processes(drawn):
    x0, eps, x, _ = drawn
    flow = CLOCKS["flow"].cdf(T)
    z = per_image(1 - flow, x) * x0 + per_image(flow, x) * eps
    torch.testing.assert_close(PREDICTORS["flow"](SCALE).inputs(x, T)[0], z)
    # Of images in [0, 1] as there, z' = x0' + sigma eps; its network works on 2 z' - 1, and log sigma.
    sigma = T / alpha(T) / 2
    ve, time = make_predictor("score", SCALE, "ve", "score_sde_ve").inputs(x, T)
    torch.testing.assert_close(ve, 2 * ((x0 + 1) / 2 + per_image(sigma, x) * eps) - 1)
    torch.testing.assert_close(time, (sigma / 0.01).log())
    tau = CLOCKS["sub_vp"].cdf(T)
    e = per_image(torch.exp(-0.1 * tau - 9.95 * tau**2), x)
    sub, time = make_predictor("eps", SCALE, "sub_vp", "score_sde_sub_vp").inputs(x, T)
    torch.testing.assert_close(sub, e.sqrt() * x0 + (1 - e) * eps)
    torch.testing.assert_close(1000 * time, 999 * tau)


def test_a_network_whose_output_is_added_to_its_input(drawn):
    """VDM, i-DODE: where f is 0, the target is what the network is given; elsewhere f adds to it."""
    x0, eps, x, v = drawn
    nothing = torch.zeros_like(x)
    for kind, named in (("eps", eps_hat), ("v", lambda F, x, t: v_hat(F, t))):
        predictor = make_predictor(kind, SCALE, network_skip=True)
        torch.testing.assert_close(named(predictor.field(nothing, x, T), x, T), x, rtol=1e-9, atol=1e-9)
    for kind in PREDICTORS:
        predictor = make_predictor(kind, SCALE, network_skip=True)
        f = target(kind, x0, eps, v) - predictor.inputs(x, T)[0]
        torch.testing.assert_close(v_hat(predictor.field(f, x, T), T), v, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", WEIGHTINGS)
def test_each_published_loss_is_its_weight_times_the_residual(kind, drawn):
    x0, eps, x, v = drawn
    # Images at the centres of bins.
    x0 = Bound(256).images(((x0 + 3) * 20).to(torch.uint8), torch.full_like(x0, 0.5))
    x, v = perturb(x0, eps, T), velocity(x0, eps, T)
    F = v / per_image(T, v) + torch.randn_like(v)
    snr, sigma = (alpha(T) / T) ** 2, T / alpha(T)
    errors = {
        "eps": (eps_hat(F, x, T) - eps),
        "x0": (x0_hat(F, x, T) - x0),
        "v": (v_hat(F, T) - v),
        # The velocity of z = (1 - tau) x0 + tau eps.
        "flow": (eps_hat(F, x, T) - x0_hat(F, x, T)) - (eps - x0),
        "edm": per_image(((sigma**2 + SD**2) / (sigma * SD) ** 2).sqrt(), x) * (x0_hat(F, x, T) - x0),
        "min_snr": per_image(snr.clamp(max=5).sqrt(), x) * (x0_hat(F, x, T) - x0),
    }
    ones = torch.ones_like(T)
    bound = Bound(interval=Interval(5e-4, 0.999), decoder="discrete")
    loss = bound.loss(lambda x, t: F, x0, eps, T, ones, WEIGHTINGS[kind])
    nelbo = bound.outside(x0) + residual(F, v, T) / T
    torch.testing.assert_close(loss.nelbo, nelbo)
    published = nelbo if kind == "bound" else errors[kind].square().flatten(1).sum(1)
    torch.testing.assert_close(loss.train, published, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize(
    ("interval", "gap"), [((0.01, 0.9), 0.01883), ((0.01, 0.99), 0.00199), ((0.001, 0.999), 0.000101)]
)
def test_the_truncated_bound_of_a_gaussian(interval, gap):
    """docs/method.md, section 9: bound less entropy of N(0.3, 0.05) with the exact field, by quadrature in t."""
    m, var = 0.3, 0.05
    low, high = interval
    bound, entropy = Bound(interval=Interval(low, high)), 0.5 * math.log(2 * math.pi * math.e * var)
    # E|v - t F|^2 of a Gaussian is the posterior variance of v: var / w.
    t = torch.logspace(math.log10(low), math.log10(high), 40001, dtype=torch.float64)
    integral = torch.trapezoid(var / (alpha(t) ** 2 * var + t * t) / t, t).item()
    spread = math.sqrt(var)
    x0 = torch.tensor([[m - spread], [m + spread]], dtype=torch.float64)  # Its mean and square are the data's.
    assert bound.outside(x0).mean().item() + integral - entropy == pytest.approx(gap, rel=5e-3)


N = 100_000


@pytest.mark.parametrize(
    ("predictor", "density", "network_input", "network_time"),
    [
        ("eps", "linear_vp", None, "linear_vp"),
        ("eps", "sub_vp", None, "sub_vp"),
        ("eps", "log_snr", None, "linear_vp"),
        ("eps", "cosine", None, "cosine"),
        ("v", "log_time", None, "vdm"),
        ("v", "zero_snr_vp", None, "zero_snr_vp"),
        ("flow", "flow", None, "flow"),
        ("edm", "edm", None, None),
        ("score", "ve", "ve", "score_sde_ve"),
        ("x0", "vdm", None, "vdm"),
        ("bounded", "asinh", None, None),
    ],
)
def test_the_bound_of_every_member_is_the_entropy_up_to_its_truncation(predictor, density, network_input, network_time):
    data, generator = three_modes(2), torch.Generator().manual_seed(0)
    interval = formulation_interval(predictor, SCALE, density, network_input, network_time)
    assert make_predictor(predictor, SCALE, network_input, network_time).finite(interval.t_min)
    drawing = time_density(density_name(interval), SCALE, interval)
    x0 = data.sample(N, generator)
    eps = torch.randn(x0.shape, dtype=torch.float64, generator=generator)
    u = (torch.arange(N, dtype=torch.float64) + torch.rand(N, dtype=torch.float64, generator=generator)) / N
    t = drawing.quantile(u)
    difference = Bound(interval=interval).nelbo(data.field, x0, eps, t, drawing.pdf(t)) - data.nll(x0)
    error = difference.std().item() / math.sqrt(N)
    assert error < 0.08
    # What the truncation costs, for data of variances from 0.003 on: at most t_min^2 / variance and alpha(t_max)^2.
    slack = 2 * interval.t_min**2 / 0.003 + 2 * (1 - interval.t_max**2)
    assert -3 * error < difference.mean().item() < 3 * error + slack


def test_a_bound_that_is_closed_at_zero_alone():
    """Its limit from the truncated one, and from the closed one."""
    x0 = torch.randn(4, 1, 2, 2, dtype=torch.float64)
    torch.testing.assert_close(
        Bound(interval=Interval(0.0, 1 - 1e-12)).outside(x0), normal_nll(x0), rtol=1e-6, atol=1e-6
    )
    low, high = 1e-5, 0.9
    # The truncated form has |v|^2 / t in its integral.
    d, squares = 4, x0.square().flatten(1).sum(1)
    moved = d * math.log(high / low) + (squares - d) * (high**2 - low**2) / 2
    torch.testing.assert_close(
        Bound(interval=Interval(low, high)).outside(x0) + moved,
        Bound(interval=Interval(0.0, high)).outside(x0),
        rtol=1e-6,
        atol=1e-6,
    )


def test_the_gaussian_decoder():
    s = 0.01 / math.sqrt(1 - 1e-4)
    assert gaussian_decoder(3, 0.01) == pytest.approx(3 * stats.norm(0, s).entropy())


@pytest.mark.parametrize(("levels", "t_min"), [(17, 0.02), (17, 0.1), (256, 0.0013)])
def test_the_discrete_decoder_against_draws(levels, t_min):
    """Its table of means, against a Monte Carlo of the softmax over the levels."""
    generator = torch.Generator().manual_seed(0)
    centres, s = bin_centres(levels), t_min / math.sqrt(1 - t_min**2)
    for k in (0, levels // 2):
        seen = centres[k] + s * torch.randn(20_000, dtype=torch.float64, generator=generator)
        logp = torch.log_softmax(-0.5 * ((seen[:, None] - centres) / s) ** 2, 1)[:, k]
        error = logp.std().item() / math.sqrt(len(logp))
        assert discrete_decoder(levels, t_min)[k].item() == pytest.approx(-logp.mean().item(), abs=4 * error + 1e-9)


def test_the_discrete_bound_of_levels_that_are_certain():
    """With hardly any noise at t_min, the decoder says nothing: the levels are seen."""
    bound = Bound(17, Interval(1e-3, 0.999), "discrete")
    image = torch.randint(17, (2, 1, 4, 4), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    x0 = bound.images(image, torch.rand(2, 1, 4, 4))
    torch.testing.assert_close(x0.double(), bin_centres(17)[image.long()], rtol=0, atol=1e-6)
    kl = 0.5 * (0.001999 * x0.square().flatten(1).sum(1) - 16 * (0.001999 + 2 * math.log(0.999)))
    torch.testing.assert_close(bound.outside(x0), kl, rtol=1e-3, atol=1e-5)
    assert bound.bits_per_dim(16 * math.log(2), 16) == pytest.approx(1.0)


def test_truncated_normal_dequantisation():
    levels, t_min = 17, 0.02
    cut = math.sqrt(1 - t_min**2) / (levels * t_min)
    law = stats.truncnorm(-cut, cut, scale=t_min)
    assert truncated_normal_entropy(levels, t_min) == pytest.approx(law.entropy())
    u = torch.linspace(0.001, 0.999, 99, dtype=torch.float64)
    torch.testing.assert_close(t_min * truncated_normal(u, levels, t_min), torch.from_numpy(law.ppf(u.numpy())))
    ends = truncated_normal(torch.tensor([0.0, 1.0]), levels, t_min)
    assert ends.abs().max().item() <= cut * (1 + 1e-6)


def test_truncated_normal_ode_likelihood_of_levels():
    """-log P of one dimension's levels, by dequantising: above the true probability of a bin, and near to it."""
    data, levels = gaussian(0.1, 0.09), 5
    bound = Bound(levels, Interval(0.05, 0.9999), "discrete")
    k = torch.tensor([[2]], dtype=torch.uint8).repeat(400, 1)
    u = ((torch.arange(400, dtype=torch.float64) + 0.5) / 400)[:, None]
    x, entropy = ode_start(bound, k, u)
    nll = ode_nll(data.field, x, 1e-5, interval=bound.interval).nll.mean().item() - entropy
    a = math.sqrt(1 - 0.05**2)
    law = stats.norm(a * 0.1, math.sqrt(a * a * 0.09 + 0.05**2))
    centre = bin_centres(levels)[2].item()
    true = -math.log(law.cdf(a * (centre + 0.2)) - law.cdf(a * (centre - 0.2)))
    assert true - 1e-4 < nll < true + 0.8


@pytest.mark.parametrize("interval", [CLOSED, Interval(1e-3, 0.9999), Interval(1e-3, 1.0)], ids=str)
def test_the_ode_likelihood_on_an_interval(interval):
    """Of a Gaussian: the density of its x at t_min, but for the standard normal at t_max."""
    data, x = gaussian(0.1, 0.09), torch.linspace(-0.5, 0.7, 5, dtype=torch.float64)[:, None]
    result = ode_nll(data.field, x, 1e-5, interval=interval)
    a = math.sqrt(1 - interval.t_min**2)
    law = gaussian(a * 0.1, a * a * 0.09 + interval.t_min**2)
    torch.testing.assert_close(result.nll[:, 0], law.nll(x), rtol=0, atol=5e-3 if interval.t_max < 1 else 1e-4)
    assert (result.nfe < 600).all()


@pytest.mark.parametrize("solver", SOLVERS)
def test_sampling_on_a_truncated_interval(solver):
    """From t_max to t_min and the prediction there: of a single image, the image; never evaluated outside."""
    interval = Interval(0.0013, 0.9966)
    image = torch.full((3, 2), 0.4, dtype=torch.float64)
    seen = []

    def field(x, t):
        seen.append(t[0].item())
        return (alpha(t)[:, None] * x - image) / (t * t)[:, None]

    noise = torch.Generator().manual_seed(0)
    z = torch.randn(3, 2, dtype=torch.float64, generator=noise)
    times = time_grid(GRID, 8, interval=interval)
    assert (times[0], times[-2], times[-1]) == (interval.t_max, interval.t_min, 0.0)
    out = sample(
        field, z, times, solver, lambda i: torch.randn(3, 2, dtype=torch.float64, generator=noise), interval=interval
    )
    torch.testing.assert_close(out, image, rtol=0, atol=1e-9)
    assert min(seen) == interval.t_min
    assert max(seen) == interval.t_max


def test_a_grid_that_leaves_the_interval_is_refused():
    with pytest.raises(ValueError, match=r"of the times \[0\.0013, 0\.9966\]"):
        time_grid([1.0, 0.5, 0.0], 2, interval=Interval(0.0013, 0.9966))
    with pytest.raises(ValueError, match="and then to 0"):
        time_grid([0.9966, 0.0001, 0.0], 2, interval=Interval(0.0013, 0.9966))
    assert time_grid([0.9966, 0.5, 0.0], 2, interval=Interval(0.0013, 0.9966)) == [0.9966, 0.5, 0.0]


@pytest.mark.parametrize(
    ("settings", "parts"),
    [
        (("eps", "asinh"), ["predictor eps is singular at t = 0", "t_min above 0"]),
        (("eps", "flow"), ["predictor eps is singular at t = 1", "t_max below 1"]),
        (("v", "log_time"), ["time_density log_time has none of its own"]),
        (("edm", "flow"), ["predictor edm is singular at t = 1"]),
        (("v", "log_snr", None, None, "gaussian", (0.1, 1.0)), ["time_density log_snr has no end at t = 1"]),
        (("bounded", "asinh", "ve"), ["network_input ve", "singular at t = 1"]),
        (("bounded", "asinh", None, "vdm"), ["network_time vdm", "singular at t = 0"]),
        (("bounded", "asinh", None, None, "discrete"), ["decoder: discrete"]),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(settings, parts):
    predictor, density, *others = settings
    with pytest.raises(ValueError, match=r"^(interval|decoder): ") as error:
        formulation_interval(predictor, SCALE, density, *others)
    for part in parts:
        assert part in str(error.value)


def test_every_choice_can_be_used_on_an_inner_interval():
    for predictor in PREDICTORS:
        for density in DENSITIES:
            formulation_interval(predictor, SCALE, density, stated=(0.01, 0.9))
    for network_input in INPUTS:
        for network_time in TIMES:
            formulation_interval("v", SCALE, "uniform", network_input, network_time, "discrete", (0.01, 0.9))
