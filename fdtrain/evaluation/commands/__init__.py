"""The subcommands of tools/evaluate.py: each module has ``add_arguments(parser)`` and ``run(arguments)``."""
