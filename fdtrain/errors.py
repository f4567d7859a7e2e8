"""The one exception a user is meant to read, and how entry points show it."""

import os
import sys
import time
from collections.abc import Callable


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one line."""


class LostPeer(Exception):
    """Another process of the run has ended, and this one cannot go on without it."""


EXIT_CODE = 2


def exit_code(main: Callable[[], None]) -> int:
    """Run ``main``; a :class:`UserError` becomes one line on stderr and exit code 2. Bugs keep their trace.

    One line is enough, from the rank that knows most; when it ends, the launcher ends the others. An error
    that all ranks meet is told by rank 0; a rank that is still there some seconds later has one of its own;
    and one that only lost a peer speaks last, if nobody has said why.
    """
    rank, local_rank = (int(os.environ.get(name, "0")) for name in ("RANK", "LOCAL_RANK"))
    try:
        main()
        return 0
    except UserError as error:
        message, code, patience = error, EXIT_CODE, 0 if rank == 0 else 4 if local_rank == 0 else 8
    except LostPeer as error:
        message, code, patience = error, 1, 12
    time.sleep(patience)
    who = f" (rank {rank})" if rank else ""
    print(f"fdtrain: error{who}: {message}", file=sys.stderr, flush=True)
    return code
