"""Likelihoods of images: the bound, the probability-flow ODE, and what is computed image by image."""
