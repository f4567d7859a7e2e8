"""Checkpoints: their layout on the disk, the fragments they consist of, and writing them while training goes on."""
