"""Cells carried out one after the other, each by its own command in a process of its own.

A process of its own, because a crash or a lack of memory in one cell must not end the others. Any number of `dspkd
compare` may work on one output folder, on one machine or on several with a common disk: each takes the cells that
nobody holds. A cell is held by a lock on a file (flock), which the system lets go when its holders are dead. The cell's
process inherits it, so a cell whose `dspkd compare` was killed stays held for as long as it works on.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dspkd.compare.plan import Cell, Plan
from dspkd.compare.spec import comparison_toml
from dspkd.config import RunConfig, load_toml, parse_run_config, to_toml
from dspkd.errors import ConfigError, DspkdError, ModelError, OutputError
from dspkd.fileio import ensure_dir, write_json, write_text
from dspkd.student import is_student_dir, load_card
from dspkd.train.reporter import Reporter

__all__ = [
    "carry_out",
    "differing_keys",
    "is_finished",
    "prepare",
    "read_failures",
    "run_process",
    "write_comparison",
    "write_recipes",
]

PATIENCE = 60.0
"""Seconds that an interrupted cell has for ending by itself, and between two messages while waiting for others."""
Start = Callable[[Cell, int, Path], int]
"""Carries out a cell, with the descriptor of its lock and the file for what it prints; gives its exit code."""


@contextmanager
def _lock(path: Path, *, wait: bool = False) -> Iterator[int | None]:
    """Hold `path`: the descriptor, or None if another process holds it and `wait` is False.

    The file stays: whoever removed it would take it from those who have it open already.
    """
    ensure_dir(path.parent)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield None
            return
        except OSError as error:
            raise OutputError(
                f"{path} cannot be locked: {error.strerror}", hint="choose an --out on a disk that knows file locks"
            ) from error
        yield descriptor
    finally:
        os.close(descriptor)


def prepare(plan: Plan, reporter: Reporter, *, pixels: bool = True) -> None:
    """What all cells need: the split, each cell's recipe and, with `pixels`, the decoded images.

    Raises DataError for images that cannot be read, ConfigError if the folder holds a comparison on another split.
    """
    with _lock(plan.bookkeeping / "prepare.lock", wait=True):
        table = _write_split(plan, reporter)
        write_recipes(plan)
        # With other settings than the runs that are being made, a dry run is no record of them.
        if pixels or not (plan.out / "comparison.toml").is_file():
            write_comparison(plan)
        if pixels:
            _decode(plan, table, reporter)


def write_comparison(plan: Plan) -> None:
    write_text(plan.out / "comparison.toml", comparison_toml(plan.comparison))


def write_recipes(plan: Plan) -> None:
    for cell in plan.cells:
        text = to_toml(cell.config)
        if not cell.recipe.is_file() or cell.recipe.read_text(encoding="utf-8") != text:
            write_text(cell.recipe, text)


def _write_split(plan: Plan, reporter: Reporter) -> Any:
    from dspkd.data.sources import read_table
    from dspkd.data.split import load_split, save_split
    from dspkd.train.prepare import new_split

    data = plan.comparison.data
    given = [plan.teacher_folders[name] for name, spec in plan.comparison.teachers.items() if spec.run is not None]
    for folder in given:
        if not is_student_dir(folder):
            raise ModelError(f"teacher {folder} holds no finished run", hint="check `run` of the teacher in the file")
    table = read_table(data.root, classes=load_card(given[0]).classes if given else None)
    sources = [path for path in (data.split, *(folder / "split.json" for folder in given)) if path and path.is_file()]
    if data.split is not None and not data.split.is_file():
        raise ConfigError(f"data.split {data.split} does not exist", hint="leave it out to make a new split")
    split = load_split(sources[0], table) if sources else new_split(table, data, progress=reporter.progress)
    if plan.split.is_file() and load_split(plan.split, table).sha256 != split.sha256:
        raise ConfigError(
            f"{plan.out} holds a comparison on another split than the one that is asked for now",
            hint="choose another --out, or give the settings of [data] that it was begun with",
        )
    if not plan.split.is_file():
        save_split(split, plan.split)
    return table


def _decode(plan: Plan, table: Any, reporter: Reporter) -> None:
    """Before any cell, so that an image that cannot be read is told at once and not by every cell."""
    from dspkd.data.split import load_split
    from dspkd.models import pretrained_preprocess
    from dspkd.preprocess import Preprocess
    from dspkd.train.prepare import PreparedData, run_cleaning

    data = PreparedData(table, load_split(plan.split, table), plan.comparison.data.cache_dir)
    # Mean and standard deviation, which networks do not share, change nothing about the pixels.
    forms: dict[Preprocess, None] = {}
    for config in (cell.config for cell in plan.cells):
        interpolation = pretrained_preprocess(config.model, config.size).interpolation
        given = config.teacher is not None and is_student_dir(config.teacher)
        cleaning = run_cleaning(config, load_card(config.teacher) if given and config.teacher else None)
        forms[Preprocess(size=config.size, interpolation=interpolation, cleaning=cleaning)] = None
    if len(cleanings := {str(preprocess.cleaning): None for preprocess in forms}) > 1:
        raise ConfigError(
            f"the cells would not see the same pictures: {', '.join(cleanings)}",
            hint="write what the teachers were fitted with into [training.preprocess]",
        )
    for preprocess in forms:
        data.decode(preprocess, reporter)


# A cell's state -----------------------------------------------------------------------------------

# A folder may have been moved since, and the same images may lie elsewhere: hashes in the cards tell what they are.
_PLACES = {"out": ..., "device": ..., "teacher": ..., "data": {"root", "split", "workers", "cache_dir"}}


def differing_keys(folder: Path, config: RunConfig) -> list[str]:
    """The keys in which the run in `folder` was made otherwise than `config` says, places aside."""
    path = folder / "config.toml"
    stored, wanted = (
        c.model_dump(mode="json", exclude=_PLACES)  # type: ignore[arg-type]
        for c in (parse_run_config(load_toml(path), origin=str(path)), config)
    )
    for values in (stored, wanted):
        if values.get("weights"):
            values["weights"] = Path(values["weights"]).name
    return sorted(key for key in {*stored, *wanted} if stored.get(key) != wanted.get(key))


def is_finished(cell: Cell) -> bool:
    """Whether its run is there. Raises OutputError if it was made by another recipe than the file now gives."""
    if not is_student_dir(cell.config.out):
        return False
    if differing := differing_keys(cell.config.out, cell.config):
        raise OutputError(
            f"runs/{cell.name} was made with other settings than the file has now ({', '.join(differing)})",
            hint="remove that folder to make it again, or choose another --out",
        )
    return True


def read_failures(plan: Plan) -> dict[str, str]:
    """What each cell that failed, and has not been finished since, said; by the cell's name."""
    found = {}
    for cell in plan.cells:
        if record := _read_failure(cell):
            found[cell.name] = str(record["error"])
    return found


def _read_failure(cell: Cell) -> dict[str, Any] | None:
    try:
        record: dict[str, Any] = json.loads(cell.failure_record.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    return record


# Working through the cells ------------------------------------------------------------------------


def carry_out(
    plan: Plan,
    reporter: Reporter,
    *,
    start: Start | None = None,
    pause: Callable[[float], None] = time.sleep,
) -> dict[str, str]:
    """Carry out every cell that is not finished; the errors of those that failed, by name.

    Returns when all cells are finished or have failed, wherever that happened: what other processes hold is waited
    for, and taken over if they die. A cell that fails is recorded and left; the next call tries it again.
    """
    return _Worker(plan, reporter, start or run_process).work(pause)


class _Worker:
    def __init__(self, plan: Plan, reporter: Reporter, start: Start) -> None:
        self.plan, self.reporter, self.start = plan, reporter, start
        self.pending = list(plan.cells)
        self.failed: dict[str, str] = {}
        self.began = time.time()
        self.told_at = -PATIENCE

    def work(self, pause: Callable[[float], None]) -> dict[str, str]:
        while self.pending:
            before = len(self.pending)
            for cell in list(self.pending):
                self._take(cell)
            if len(self.pending) == before:
                self._tell_who_is_waited_for()
                pause(1.0)
        return self.failed

    def _take(self, cell: Cell) -> None:
        if cell.needs in self.failed:
            self._settle(cell, f"its teacher could not be fitted ({cell.needs})")
        elif not any(other.name == cell.needs for other in self.pending):
            with _lock(cell.lock) as lock:
                if lock is not None:
                    self._settle(cell, self._outcome(cell, lock))

    def _settle(self, cell: Cell, error: str | None) -> None:
        self.pending.remove(cell)
        if error is not None:
            self.failed[cell.name] = error
            self.reporter.message(f"{cell.name} failed: {error}")

    def _outcome(self, cell: Cell, lock: int) -> str | None:
        """None once the cell is finished, else what went wrong."""
        record = cell.failure_record
        try:
            if is_finished(cell):
                record.unlink(missing_ok=True)
                return None
        except DspkdError as error:
            return str(error)
        known = _read_failure(cell)
        # Another process has just tried it; one that is started later tries again.
        if known is not None and known["at"] >= self.began:
            return str(known["error"])
        return self._run(cell, lock, record)

    def _run(self, cell: Cell, lock: int, record: Path) -> str | None:
        place = f"[{self.plan.cells.index(cell) + 1}/{len(self.plan.cells)}]"
        log = self.plan.out / "logs" / f"{cell.name}.log"
        ensure_dir(log.parent)
        self.reporter.message(f"{place} {cell.name}  (log: {log})")
        started = time.monotonic()
        code = self.start(cell, lock, log)
        error = _describe_failure(code, log) if code else self._what_is_wrong(cell, log)
        if error is None:
            record.unlink(missing_ok=True)
            score = load_card(cell.config.out).metrics["val"]["balanced_accuracy"]
            self.reporter.message(
                f"{place} {cell.name}  {time.monotonic() - started:.0f} s, validation balanced accuracy {score:.3f}"
            )
            return None
        write_json(record, {"error": error, "at": time.time(), "log": log.name})
        return error

    def _what_is_wrong(self, cell: Cell, log: Path) -> str | None:
        """With a cell whose process ended well."""
        try:
            return None if is_finished(cell) else _describe_failure(0, log)
        except DspkdError as error:
            return str(error)

    def _tell_who_is_waited_for(self) -> None:
        if time.monotonic() - self.told_at >= PATIENCE:
            self.told_at = time.monotonic()
            names = ", ".join(cell.name for cell in self.pending[:3])
            more = f" and {len(self.pending) - 3} more" if len(self.pending) > 3 else ""
            self.reporter.message(f"waiting for other processes: {names}{more}")


def run_process(cell: Cell, lock: int, log: Path) -> int:
    """The cell's command in a process of its own, in a session of its own: Ctrl-C reaches it once, from here."""
    with log.open("ab") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", *cell.words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
            start_new_session=True,
        )
        try:
            return process.wait()
        except BaseException:
            _end(process)
            raise


def _end(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGINT)
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _describe_failure(code: int, log: Path) -> str:
    if code < 0:
        name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
        memory = ", as it happens when memory runs out" if -code == signal.SIGKILL else ""
        return f"killed by {name}{memory}"
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    said = lines[-1].removeprefix("dspkd: error: ") if lines else "it printed nothing"
    return f"exit code {code}: {said}"
