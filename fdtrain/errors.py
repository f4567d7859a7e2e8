"""The one exception a user is meant to read, and how entry points show it."""

import atexit
import gc
import logging
import os
import sys
import time
import traceback
from collections.abc import Callable

from fdtrain.console import lose_what_fails
from fdtrain.credentials import masked

LONGEST = 4000
"""Characters of a user's error."""


def check_at_least(options: object, least: int, *names: str) -> None:
    """Raise UserError if a command's option that is given, or one of its values, is less than ``least``."""
    for name in names:
        value = getattr(options, name)
        if value is not None and min(value if isinstance(value, list) else [value]) < least:
            raise UserError(f"--{name} must be at least {least}.")


def excerpt(value: object, longest: int = 200) -> str:
    """What a user, a stranger's file or a server says, for a message: one line, bounded, without the credentials that a
    URL may hold, and nothing that moves the cursor."""
    # Cut first: what is shown must not cost what is hidden.
    text = value[: 4 * longest] if isinstance(value, str | bytes) else str(value)
    text = text.decode(errors="replace") if isinstance(text, bytes) else text
    text = " ".join(masked(text).split())
    text = printable(text)
    return text if len(text) <= longest else f"{text[: longest - 3]}..."


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


class UserError(Exception):
    """What is wrong, where, and what to do about it, in one line: whatever a library's message brings along.

    A list of messages gives a line to each.
    """

    code = 2
    """The process's exit code."""

    def __init__(self, message: object):
        messages = message if isinstance(message, list) else [message]
        super().__init__("\n".join(excerpt(line, LONGEST) for line in messages))


class LostPeer(Exception):
    """Another process of the run has not come, and this one cannot go on without it."""

    code = 1


class Preempted(Exception):
    """The run was asked to end, and has saved; what it says tells where, and how to go on."""

    code = 75
    """On which schedulers requeue (EX_TEMPFAIL of sysexits.h)."""


class NotSaved(Exception):
    """The run has ended, and its last checkpoint could not be written."""

    code = 74
    """EX_IOERR of sysexits.h."""


EXTRAS = {
    "train": ("deepspeed", "ema_pytorch", "tensorboard", "webdataset"),
    "eval": ("matplotlib", "jinja2"),
    "export": ("diffusers", "onnx", "onnxscript", "onnxruntime", "huggingface_hub"),
    "digits": ("sklearn",),
    "hub": ("datasets",),
    "s3": ("s3fs",),
    "gcs": ("gcsfs",),
}
"""The modules that each extra of the package brings (setup.py)."""


def missing(module: str) -> str:
    """What to do where a module is not installed."""
    extras = [extra for extra, modules in EXTRAS.items() if module.partition(".")[0] in modules]
    install = f': pip install "fdtrain[{extras[0]}]"' if extras else ""
    return (
        f"{sys.executable} has no {module}. Run this with .venv/bin/python, which `make environment` (or `make demo`) "
        f"makes, or install it into this Python{install}."
    )


class _Printable(logging.Formatter):
    """Names in messages come from files: nothing in them moves the cursor or turns the line round."""

    def format(self, record: logging.LogRecord) -> str:
        return "\n".join(map(printable, super().format(record).split("\n")))


def log_to_console() -> None:
    """Show the messages of the library on stderr, as lines that begin with "fdtrain: ", as long as it takes them.

    Rank 0 shows all of them, other ranks warnings, with their number.
    """
    lose_what_fails("stderr")
    rank = int(os.environ.get("RANK", "0"))
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Printable(f"fdtrain: (rank {rank}) %(message)s" if rank else "fdtrain: %(message)s"))
    logger = logging.getLogger("fdtrain")
    logger.handlers = [handler]
    logger.setLevel(logging.WARNING if rank else logging.INFO)


def tell_error(message: str) -> None:
    rank = os.environ.get("RANK", "0")
    who = f" (rank {rank})" if rank != "0" else ""
    print(f"fdtrain: error{who}: {message}", file=sys.stderr, flush=True)


def exit_code(main: Callable[[], None]) -> int:
    """Run ``main``; a :class:`UserError` becomes one line on stderr and exit code 2. Bugs keep their trace.

    One line is enough, from the rank that knows most; when it ends, the launcher ends the others. An error
    that all ranks meet is told by rank 0; a rank that is still there some seconds later has one of its own.
    A rank of several that fails does not return.
    """
    log_to_console()
    # At the interpreter's end all of torch would be searched for garbage, which takes a second.
    atexit.register(gc.freeze)
    rank, local_rank, world_size = (
        int(os.environ.get(*of)) for of in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"))
    )
    try:
        main()
        return 0
    except (UserError, NotSaved, LostPeer) as error:
        message, code = str(error), error.code
        patience = 0 if rank == 0 or isinstance(error, LostPeer) else 4 if local_rank == 0 else 8
    except Preempted as news:
        if rank == 0:
            print(f"fdtrain: {news}", file=sys.stderr, flush=True)
        return news.code
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("fdtrain"):
            raise
        message, code, patience = missing(error.name or str(error)), UserError.code, 0
    except Exception:
        # The texts of other libraries' errors may hold URLs.
        print(masked(traceback.format_exc()), file=sys.stderr, flush=True)
        message, code, patience = "", 1, 0
    time.sleep(patience)
    if message:
        tell_error(message)
    if world_size > 1:
        # The interpreter's end waits for threads of the process group that wait for the others, or for the device.
        lose_what_fails("stdout")
        os._exit(code)
    return code
