"""Silence for libraries that talk while they load, so that what is left on the terminal is worth reading."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_libraries"]


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """Keep off the terminal what libraries say while they load or compile: native code's lines (file descriptor 2),
    Python's warnings and logging below ERROR, and what they print.

    The lines of native code are shown after all if the block raises. `DSPKD_DEBUG=1` shows everything, on stderr.
    """
    if os.environ.get("DSPKD_DEBUG"):
        with contextlib.redirect_stdout(sys.stderr):
            yield
        return
    previous = logging.root.manager.disable
    logging.disable(max(previous, logging.WARNING))
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), _native_stderr_held_back():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(previous)


@contextmanager
def _native_stderr_held_back() -> Iterator[None]:
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # a process without a stderr has nothing to be kept silent
        yield
        return
    with tempfile.TemporaryFile() as sink:
        os.dup2(sink.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            sys.stderr.flush()
            os.dup2(kept, 2)
            os.close(kept)
            if failed:
                sink.seek(0)
                os.write(2, sink.read())
