"""The run: engine, loop, checkpoints, log. Knows the method only through the model and the objective."""
