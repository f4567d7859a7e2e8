"""The one exception a user is meant to read, and how entry points show it."""

import os
import sys
import time
import traceback
from collections.abc import Callable

from fdtrain.credentials import masked


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one line, and without the credentials that a URL may hold."""

    def __init__(self, message: object):
        super().__init__(masked(str(message)))


class LostPeer(Exception):
    """Another process of the run has ended, and this one cannot go on without it.

    Args:
        named: the message says all there is to say, and is empty if the other process does; else it may.
    """

    def __init__(self, message: str, named: bool = False):
        super().__init__(message)
        self.named = named


class Preempted(Exception):
    """The run was asked to end, and has saved; what it says tells where, and how to go on."""


EXIT_CODE = 2
LOST_PEER_CODE = BUG_CODE = 1
HOLD_BACK_SECONDS = 12
"""That a rank which only lost a peer leaves to that peer to say why."""
PREEMPTED_CODE = 75
"""Of a run that was asked to end and can go on: what schedulers requeue on (EX_TEMPFAIL of sysexits.h)."""


def exit_code(main: Callable[[], None]) -> int:
    """Run ``main``; a :class:`UserError` becomes one line on stderr and exit code 2. Bugs keep their trace.

    A run that ended because it was asked to returns 75, which launch scripts requeue on.

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
        speaks = error.named and str(error)
        message, code, patience = error, LOST_PEER_CODE, 0 if speaks else HOLD_BACK_SECONDS
    except Preempted as news:
        if rank == 0:
            print(f"fdtrain: {news}", file=sys.stderr, flush=True)
        return PREEMPTED_CODE
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fdtrain"):
            raise
        print(
            f"fdtrain: error: {sys.executable} has no {error.name}. Run this with .venv/bin/python, which "
            "`make environment` (or `make demo`) makes, or install it into this Python.",
            file=sys.stderr,
            flush=True,
        )
        return EXIT_CODE
    except Exception:
        # The texts of other libraries' errors may hold URLs.
        print(masked(traceback.format_exc()), file=sys.stderr, flush=True)
        return BUG_CODE
    time.sleep(patience)
    who = f" (rank {rank})" if rank else ""
    if str(message):
        print(f"fdtrain: error{who}: {message}", file=sys.stderr, flush=True)
    return code
