"""Test bits/dim of Gaussian mixtures on a data set of few pixels: what a density without a network reaches.

    fdtrain pack digits data/digits
    python benchmarks/mixture.py data/digits

Full covariances, fitted by scikit-learn to training images with uniform dequantisation; the density of the dequantised
test images is a bound on the likelihood of their levels, as the networks' is (docs/method.md). Some training images are
held out to choose the regularisation of the covariances; test images choose nothing but the number that is shown last.
"""

import argparse

import numpy as np
from sklearn.mixture import GaussianMixture

from fdtrain.data.split import Split

DRAWS = 20
"""Dequantisations of each image: of the training images as more data, of the others for the mean."""


def dequantised(split: Split, draws: int, seed: int) -> np.ndarray:
    """``(draws, images, dims)`` in units of a level."""
    pixels = split.batch(range(len(split)))[0].numpy().reshape(len(split), -1)
    return pixels + np.random.default_rng(seed).random((draws, *pixels.shape))


def bits(mixture: GaussianMixture, images: np.ndarray) -> tuple[float, float]:
    """Mean bits/dim over ``(draws, images, dims)``, and its standard error over images."""
    draws, count, dims = images.shape
    values = -mixture.score_samples(images.reshape(-1, dims)).reshape(draws, count).mean(0) / (dims * np.log(2))
    return float(values.mean()), float(values.std(ddof=1) / count**0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--components", type=int, nargs="+", default=[10, 20, 30])
    parser.add_argument("--regularisation", type=float, nargs="+", default=[0.01, 0.03, 0.1, 0.3])
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    train, test = (dequantised(Split(arguments.data, split), DRAWS, i) for i, split in enumerate(("train", "test")))
    held_out = train.shape[1] // 5
    found = []
    for components in arguments.components:

        def fitted(images: np.ndarray, regularisation: float, components: int = components) -> GaussianMixture:
            images = images[:5].reshape(-1, images.shape[-1])
            mixture = GaussianMixture(components, reg_covar=regularisation, random_state=arguments.seed, max_iter=200)
            return mixture.fit(images)

        chosen = min(
            arguments.regularisation,
            key=lambda value: bits(fitted(train[:, held_out:], value), train[:, :held_out])[0],
        )
        mean, error = bits(fitted(train, chosen), test)
        found.append(mean)
        print(f"{components} components, {chosen:g} level^2 added: {mean:.3f} +- {error:.3f} bits/dim", flush=True)
    print(f"the best: {min(found):.3f} bits/dim")


if __name__ == "__main__":
    main()
