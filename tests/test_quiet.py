"""What native code prints is hidden while it loads, and shown after all if that fails."""

import logging
import os

import pytest

from dspkd.quiet import quiet_libraries


def test_nothing_reaches_the_terminal(capfd):
    with quiet_libraries():
        os.write(2, b"chatter of a library\n")
        logging.getLogger("library").warning("more chatter")
    logging.getLogger("library").warning("a real warning")
    assert "chatter" not in capfd.readouterr().err


def test_it_is_replayed_if_the_block_raises(capfd):
    with pytest.raises(RuntimeError), quiet_libraries():
        os.write(2, b"why it failed\n")
        raise RuntimeError
    os.write(2, b"afterwards\n")
    assert capfd.readouterr().err == "why it failed\nafterwards\n"


def test_logging_is_as_before(caplog):
    with quiet_libraries():
        pass
    logging.getLogger("library").warning("a real warning")
    assert "a real warning" in caplog.text


def test_debug_shows_everything(capfd, monkeypatch):
    monkeypatch.setenv("DSPKD_DEBUG", "1")
    with quiet_libraries():
        os.write(2, b"chatter\n")
    assert capfd.readouterr().err == "chatter\n"
