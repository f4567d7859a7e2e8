"""The data of the curves: samples against the number of evaluations, the bound against time (docs/evaluation.md)."""

from torch import Tensor


def rms(x: Tensor, reference: Tensor) -> float:
    """Root mean square of the difference over images and dimensions; images range over [-1, 1]."""
    return (x - reference).square().mean().sqrt().item()


def by_stratum(values: Tensor, edges: Tensor) -> dict:
    """Means, standard errors and variances over images of estimates ``(images, strata)``, stratum by stratum.

    ``variance_within`` is what stratified times leave of one image's estimate, ``variance_iid`` what independent ones
    do: it has the variance of the strata's means besides.
    """
    images = len(values)
    mean, variance = values.mean(0), values.var(0)
    within = variance.mean().item()
    return {
        "t_edges": edges.tolist(),
        "mean": mean.tolist(),
        "error": (variance / images).sqrt().tolist(),
        "variance": variance.tolist(),
        "variance_within": within,
        "variance_iid": within + mean.var(correction=0).item(),
    }
