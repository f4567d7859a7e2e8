"""fdtrain: likelihood training of diffusion models on the closed time interval, on DeepSpeed."""

__version__ = "0.1.0"
