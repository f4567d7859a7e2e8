"""The subcommands of ``fdtrain evaluate``: each module has ``add_arguments(parser)`` and ``run(arguments)``."""
