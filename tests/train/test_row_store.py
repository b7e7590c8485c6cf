"""Rows are whole or absent, whatever happens to the file: damage, a full disk, a kill, other writers."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from dspkd.train.row_store import RowStore

ROWS, ROW_BYTES = 1000, 24


def open_store(folder, identity="it"):
    return RowStore(folder / "x.rows", rows=ROWS, row_bytes=ROW_BYTES, identity=identity)


def content(rows):
    """What belongs into each row: never all zeros."""
    return (np.arange(ROW_BYTES) * 7 + rows[:, None] * 13 + 1).astype(np.uint8)


def put(store, rows):
    rows = np.array(rows)
    store.write(rows, content(rows))


def check(store):
    """Every row that is there is right; how many are."""
    rows = np.arange(ROWS)
    found, present = store.read(rows)
    assert np.array_equal(found[present], content(rows)[present])
    return int(present.sum())


def test_what_was_written_is_read_and_nothing_else(tmp_path):
    store = open_store(tmp_path)
    assert check(store) == 0
    put(store, [3, 999, 500])
    put(store, [4])
    found, present = open_store(tmp_path).read(np.array([999, 5, 3, 4]))
    assert present.tolist() == [True, False, True, True]
    assert np.array_equal(found[[0, 2, 3]], content(np.array([999, 3, 4])))
    assert not found[1].any()


@pytest.mark.parametrize("place", [0, 1, 500, 4000, -1])
def test_a_changed_byte_is_noticed_wherever_it_is(tmp_path, place):
    put(open_store(tmp_path), np.arange(ROWS))
    path = tmp_path / "x.rows"
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)
    store = open_store(tmp_path)
    lost = ROWS - check(store)
    assert 0 < lost <= store.rows_per_block
    assert len(store.damaged) == 1
    put(store, np.arange(ROWS))
    assert check(store) == ROWS


def test_rows_of_another_file_are_not_taken(tmp_path):
    put(open_store(tmp_path), np.arange(ROWS))
    assert check(open_store(tmp_path, identity="another")) == 0


def test_a_file_that_was_cut_is_made_anew(tmp_path):
    store = open_store(tmp_path)
    put(store, np.arange(ROWS))
    check(store)
    os.truncate(tmp_path / "x.rows", 100)
    assert check(store) == 0
    put(store, [1])
    assert check(store) == 1


def test_a_full_disk_is_an_error_and_leaves_no_wrong_row(tmp_path, monkeypatch):
    put(open_store(tmp_path), np.arange(0, ROWS, 2))
    real, calls = os.pwrite, iter(range(100))

    def fills_up(file, data, place):
        if next(calls) < 3:
            return real(file, data, place)
        real(file, data[: len(data) // 2], place)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fills_up)
    with pytest.raises(OSError, match="No space"):
        put(open_store(tmp_path), np.arange(ROWS))
    monkeypatch.undo()
    assert check(open_store(tmp_path)) >= ROWS // 2 - open_store(tmp_path).rows_per_block


def test_short_writes_are_gone_on_with(tmp_path, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: real(file, data[:100], place))
    put(open_store(tmp_path), np.arange(ROWS))
    assert check(open_store(tmp_path)) == ROWS


def writes_every_fourth(folder, first):
    store = open_store(folder)
    for row in range(first, ROWS, 4):
        put(store, [row])


def test_four_writers_lose_none_of_each_others_rows(tmp_path):
    """They write into the same blocks all the time."""
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=writes_every_fourth, args=(tmp_path, first)) for first in range(4)]
    for writer in writers:
        writer.start()
    reader = open_store(tmp_path)
    while any(writer.is_alive() for writer in writers):
        check(reader)
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0] * 4
    assert check(reader) == ROWS
    assert not reader.damaged


WRITER = """
import numpy as np, pathlib, sys
sys.path.insert(0, sys.argv[2])
from test_row_store import ROWS, open_store, put
store = open_store(pathlib.Path(sys.argv[1]))
print("ready", flush=True)
while True:
    put(store, np.random.permutation(ROWS)[:200])
"""


def test_a_killed_writer_leaves_whole_rows_and_no_lock(tmp_path):
    for _ in range(3):
        command = [sys.executable, "-c", WRITER, str(tmp_path), os.path.dirname(__file__)]  # noqa: PTH120
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout.readline() == "ready\n"
        time.sleep(0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        store = open_store(tmp_path)
        check(store)
        put(store, np.arange(ROWS))
        assert check(open_store(tmp_path)) == ROWS
