"""Distances between sets of images by their features."""
