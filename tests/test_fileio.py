"""Files are whole or not there, whatever happens in between; manifests notice every edit."""

import json
import os
from pathlib import Path

import pytest

from dspkd.errors import OutputError, VerificationError
from dspkd.fileio import (
    atomic_dir,
    atomic_file,
    canonical_json,
    ensure_dir,
    read_sealed_json,
    seal,
    sha256_bytes,
    sha256_file,
    write_json,
    write_sealed_json,
    write_text,
)


class Interrupted(BaseException):
    """Like KeyboardInterrupt, no Exception."""


def test_a_file_appears_whole(tmp_path):
    path = tmp_path / "deep" / "x.txt"
    with atomic_file(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent and temporary.suffix == ".txt"
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["x.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [ValueError, Interrupted])
@pytest.mark.parametrize("old", [None, "old"])
def test_an_exception_leaves_the_old_file(tmp_path, error, old):
    path = tmp_path / "x.txt"
    if old:
        path.write_text(old)
    with pytest.raises(error), atomic_file(path) as temporary:
        temporary.write_text("half")
        raise error
    assert [p.read_text() for p in tmp_path.iterdir()] == ([old] if old else [])


def test_a_folder_appears_whole(tmp_path):
    path = tmp_path / "out"
    with atomic_dir(path) as temporary:
        (temporary / "a").write_text("1")
        assert not path.exists()
    with atomic_dir(path) as temporary:
        (temporary / "b").write_text("2")
        assert (path / "a").exists()
    assert [p.name for p in path.iterdir()] == ["b"]  # replaced, not merged
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [ValueError, Interrupted])
def test_an_exception_leaves_the_old_folder(tmp_path, error):
    path = tmp_path / "out"
    path.mkdir()
    (path / "a").write_text("old")
    with pytest.raises(error), atomic_dir(path) as temporary:
        (temporary / "a").write_text("half")
        raise error
    assert (path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), Interrupted()])
def test_a_failing_rename_leaves_the_old_folder(tmp_path, monkeypatch, error):
    """Where the system cannot exchange two folders in one step."""
    monkeypatch.setattr("dspkd.fileio._exchange", lambda one, other: False)
    path = tmp_path / "out"
    path.mkdir()
    (path / "a").write_text("old")
    rename = Path.replace

    def failing(self, target):
        if self.suffix == ".part":
            raise error
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", failing)
    with pytest.raises((OutputError, Interrupted)), atomic_dir(path) as temporary:
        (temporary / "a").write_text("new")
    assert (path / "a").read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_without_an_exchange_a_folder_is_replaced_too(tmp_path, monkeypatch):
    monkeypatch.setattr("dspkd.fileio._exchange", lambda one, other: False)
    test_a_folder_appears_whole(tmp_path)


def test_what_a_kill_left_half_written_is_cleared_up_by_the_next_call(tmp_path):
    (tmp_path / ".out.abc.part").mkdir()
    (tmp_path / ".other.abc.part").mkdir()
    with atomic_dir(tmp_path / "out") as temporary:
        (temporary / "a").write_text("new")
    assert {p.name for p in tmp_path.iterdir()} == {"out", ".other.abc.part"}


def test_what_a_kill_between_the_renames_leaves_is_cleared_up(tmp_path):
    left = tmp_path / ".out.old"
    left.mkdir()
    (left / "a").write_text("older")
    with atomic_dir(tmp_path / "out") as temporary:
        (temporary / "a").write_text("new")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_file_is_not_swept_away_by_a_folder(tmp_path):
    path = tmp_path / "out"
    path.write_text("precious")
    with pytest.raises(OutputError, match="out: it is a file"), atomic_dir(path):
        pass
    assert path.read_text() == "precious"


def test_a_folder_is_not_swept_away_by_a_file(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_text(tmp_path / "out", "text")
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


@pytest.fixture(params=["below a file", "kernel"])
def unwritable(request, tmp_path):
    """Places where root cannot write either: permission bits would not stop the superuser that tests often are."""
    if request.param == "kernel":
        return Path("/proc/self/dspkd")
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "out"


def test_a_destination_that_cannot_be_written(unwritable):
    for attempt in (
        lambda: ensure_dir(unwritable),
        lambda: write_text(unwritable / "x.txt", "text"),
        lambda: write_json(unwritable / "x.json", {}),
        lambda: atomic_dir(unwritable / "x").__enter__(),
    ):
        with pytest.raises(OutputError, match="cannot write") as caught:
            attempt()
        assert str(unwritable) in caught.value.message
        assert "--out" in caught.value.hint


def test_a_name_that_is_too_long_for_its_temporary_neighbour(tmp_path):
    with pytest.raises(OutputError, match="File name too long"):
        write_text(tmp_path / ("x" * 250), "text")


def test_a_full_disk(tmp_path, monkeypatch):
    path = tmp_path / "x.txt"
    path.write_text("old")

    def full(_handle):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match=r"x\.txt: No space left on device"):
        write_text(path, "new")
    assert [p.read_text() for p in tmp_path.iterdir()] == ["old"]


def test_hashes(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    known = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256_bytes(b"abc") == sha256_file(tmp_path / "x") == known


def test_canonical_json():
    assert canonical_json({"b": [1, 2.5], "a": "é"}) == b'{"a":"\\u00e9","b":[1,2.5]}'
    with pytest.raises(ValueError):
        canonical_json(float("nan"))


CARD = {"kind": "card", "schema_version": 1, "name": "é", "score": 0.1 + 0.2, "small": 1e-05, "list": [1, {"a": None}]}


@pytest.fixture
def sealed(tmp_path):
    write_sealed_json(tmp_path / "card.json", CARD)
    return tmp_path / "card.json"


def read(path, version=1):
    return read_sealed_json(path, kind="card", schema_version=version)


def test_sealed_round_trip(sealed):
    value = read(sealed)
    assert value.pop("content_sha256") == seal(CARD)["content_sha256"]
    assert value == CARD


def test_the_seal_does_not_depend_on_the_order_of_keys():
    assert seal(CARD) == seal(dict(reversed(CARD.items())))
    assert seal(seal(CARD)) == seal(CARD)


def test_every_byte_counts(sealed):
    """Also a space, and a digit that no float can hold: what is not what was written is refused."""
    data = sealed.read_bytes()
    for position in range(len(data)):
        for flip in (0x01, 0x20):
            broken = bytearray(data)
            broken[position] ^= flip
            sealed.write_bytes(broken)
            with pytest.raises(VerificationError, match=r"card\.json"):
                read(sealed)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "1e999"])
def test_numbers_that_json_does_not_know(sealed, number):
    sealed.write_text(sealed.read_text().replace("1e-05", number))
    with pytest.raises(VerificationError, match=r"card\.json cannot be read as JSON"):
        read(sealed)


def test_an_edit_and_a_removed_seal(sealed):
    value = json.loads(sealed.read_text())
    write_json(sealed, {**value, "score": 0.9})
    with pytest.raises(VerificationError, match="was edited after it was written"):
        read(sealed)
    del value["content_sha256"]
    write_json(sealed, value)
    with pytest.raises(VerificationError, match="was edited after it was written"):
        read(sealed)


def test_schema_versions(sealed):
    assert read(sealed, version=2)["schema_version"] == 1
    write_sealed_json(sealed, {**CARD, "schema_version": 3})
    with pytest.raises(VerificationError, match=r"schema version 3; this dspkd reads up to 2.*upgrade"):
        read(sealed, version=2)
    for version in (None, "1"):
        write_sealed_json(sealed, {**CARD, "schema_version": version})
        with pytest.raises(VerificationError, match="schema version"):
            read(sealed)


def test_another_kind_or_no_object(sealed):
    with pytest.raises(VerificationError, match="of kind 'card', expected 'split'"):
        read_sealed_json(sealed, kind="split", schema_version=1)
    sealed.write_text("[1]\n")
    with pytest.raises(VerificationError, match="of kind 'list'"):
        read(sealed)


def test_missing_and_unreadable_manifests(tmp_path):
    with pytest.raises(VerificationError, match=r"card\.json does not exist.*is not a dspkd card folder"):
        read(tmp_path / "card.json")
    for content in (b"{", b"\xff\xfe", b""):
        (tmp_path / "card.json").write_bytes(content)
        with pytest.raises(VerificationError, match=r"card\.json cannot be read as JSON"):
            read(tmp_path / "card.json")
    with pytest.raises(VerificationError, match="cannot be read"):
        read(tmp_path)
