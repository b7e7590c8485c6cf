"""Silence for libraries that talk on stderr while they load, so that what is left on the terminal is worth reading."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["quiet_native_code"]


@contextmanager
def quiet_native_code() -> Iterator[None]:
    """Keep log lines of native code (file descriptor 2) and of Python's logging below ERROR from the terminal.

    What was written is shown after all if the block raises. `DSPKD_DEBUG=1` switches the silence off.
    """
    if os.environ.get("DSPKD_DEBUG"):
        yield
        return
    previous = logging.root.manager.disable
    logging.disable(max(previous, logging.WARNING))
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # a process without a stderr has nothing to be kept silent
        kept = -1
    with tempfile.TemporaryFile() as sink:
        if kept >= 0:
            os.dup2(sink.fileno(), 2)
        failed = True
        try:
            yield
            failed = False
        finally:
            logging.disable(previous)
            sys.stderr.flush()
            if kept >= 0:
                os.dup2(kept, 2)
                os.close(kept)
                if failed:
                    sink.seek(0)
                    os.write(2, sink.read())
