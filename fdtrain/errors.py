"""The one exception a user is meant to read, and how entry points show it."""

import os
import sys
import time
from collections.abc import Callable


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one line."""


EXIT_CODE = 2


def exit_code(main: Callable[[], None]) -> int:
    """Run ``main``; a :class:`UserError` becomes one line on stderr and exit code 2. Bugs keep their trace.

    Most errors meet every rank at once, and one line is enough: rank 0 speaks and ends, and the launcher
    then ends the others. A rank that is still there after some seconds has an error of its own.
    """
    try:
        main()
    except UserError as error:
        rank, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
        if rank:
            time.sleep(4 if local_rank == 0 else 8)
        who = f" (rank {rank})" if rank else ""
        print(f"fdtrain: error{who}: {error}", file=sys.stderr, flush=True)
        return EXIT_CODE
    return 0
