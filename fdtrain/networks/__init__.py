"""Networks ``f(x, t, label)``: images ``(B, C, H, W)`` and times ``(B,)`` in [0, 1] to a tensor like ``x``."""
