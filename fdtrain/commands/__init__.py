"""The commands of ``fdtrain``: each module has ``add_arguments(parser)`` and ``run(arguments)``."""
