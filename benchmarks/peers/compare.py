"""Our artifacts against the same weights as other runtimes take them from the library (`dspkd_bench.peers`).

python benchmarks/peers/compare.py RUN DATA [--size SIZE] [--seconds S] [--peers NAMES] [--teacher RUN] [--no-profile]

Ours have normalisation and softmax inside, the peers have not; each is there twice, for floats and for bytes as a
camera gives them. int8 is calibrated on the same 128 training images.
Batch 1, one thread. Two answers are given, because they differ: with all models in turn each finds the caches filled by
others; in pairs our fastest and one peer take turns alone, closer to a device that runs one model. --teacher adds the
exports of another network, ours called 20 times in a row for each call of it. The profile says what ExecuTorch's
operators take in our program and in the stock one. Prints Markdown; a peer that is not measured says why.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from executorch_profile import operator_table

from dspkd.cli.sharing import training_images
from dspkd.errors import DspkdError
from dspkd.runtimes import load_model, to_input
from dspkd.student import Student, load_student
from dspkd.train.reporter import Reporter
from dspkd_bench.environment import describe_environment
from dspkd_bench.latency import Series, StopRule, latency_summary, measure_interleaved, ratio_of_medians
from dspkd_bench.peers import PEERS, Source, build_peer, chosen_peers, normalised
from dspkd_export.calibration import Calibration
from dspkd_export.export import TARGETS
from dspkd_export.job import ExportJob

PRECISIONS = ("fp32", "int8")
OURS = {"executorch": "ExecuTorch XNNPACK", "onnx": "ONNX Runtime", "litert": "LiteRT"}
CALIBRATION = 128
IN_A_ROW = 20


@dataclass(frozen=True, slots=True)
class Contender:
    precision: str
    title: str
    whose: str
    runtime: str
    file: Path
    call: Callable[[], object]


def sized(student: Student, size: int | None) -> Student:
    if size is None:
        return student
    preprocess = student.card.preprocess.model_copy(update={"size": size})
    return replace(student, card=student.card.model_copy(update={"preprocess": preprocess}))


def ours(
    student: Student, images: Calibration, folder: Path, target: str, precision: str, takes: str = "floats"
) -> Contender:
    place = folder / f"ours-{target}-{precision}-{takes}"
    place.mkdir()
    job = ExportJob(student, place, precision, calibration=images, takes_bytes=takes == "bytes")
    compiled = TARGETS[target].compile(job)
    file = place / compiled.details.get("static_file", compiled.models[0])
    model = load_model(target, file, threads=1)
    image = model.input_of(images.pixels[:1])
    title = OURS[target] if takes == "floats" else f"{OURS[target]}, {takes}"
    return Contender(precision, title, "ours", model.runtime, file, lambda: model.run(image))


def stock(name: str, precision: str, source: Source) -> Contender:
    export = build_peer(name, precision, source)
    image = export.input_of(source.images[:1])
    return Contender(precision, PEERS[name].title, "stock", export.runtime, export.file, lambda: export.run(image))


def gathered(makers: Iterable[tuple[str, Callable[[], Contender]]]) -> list[Contender]:
    found = []
    for what, make in makers:
        print(f"building {what}", file=sys.stderr)
        try:
            found.append(make())
        except DspkdError as error:
            print(f"Not measured: {what}: {error}\n")
    return found


def contenders(student: Student, images: Calibration, folder: Path, names: Sequence[str]) -> list[Contender]:
    source = Source(student, folder, normalised(student, images.pixels))
    mine = [
        (f"{OURS[t]} {p} from {takes}, ours", lambda chosen=(t, p, takes): ours(student, images, folder, *chosen))
        for t in OURS
        for p in PRECISIONS
        for takes in ("floats", "bytes")
    ]
    theirs = [
        (f"{PEERS[n].title} {p}, stock", lambda n=n, p=p: stock(n, p, source)) for n in names for p in PEERS[n].build
    ]
    return gathered([*mine, *theirs])


def timed(calls: Sequence[Callable[[], object]], seconds: float, least: int = 100) -> list[Series]:
    stop = StopRule(warmup_rounds=20, min_rounds=least, max_rounds=5000, seconds=seconds)
    return list(measure_interleaved({str(i): call for i, call in enumerate(calls)}, stop).values())


def median(series: Series) -> float:
    return float(np.median(series.ms))


def p50(series: Series) -> str:
    summary = latency_summary(series.ms)
    low, high = summary["p50_interval_ms"]
    return f"{summary['p50_ms']:.2f} [{low:.2f}, {high:.2f}]"


def ratio(one: Series, other: Series, digits: int = 2) -> str:
    found = ratio_of_medians(one.ms, other.ms)
    low, high = found["interval"]
    return f"{found['ratio']:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"


def all_in_turn(everyone: Sequence[Contender], seconds: float) -> dict[str, Contender]:
    """Prints the table; gives our fastest of each precision."""
    times = dict(zip((id(c) for c in everyone), timed([c.call for c in everyone], seconds), strict=True))
    rounds = len(next(iter(times.values())).ms)
    print(f"\n## All {len(everyone)} in turn, {rounds} rounds, each in a new order\n")
    print("| precision | runtime | whose | p50, ms [95 %] | / best stock export of that precision |")
    print("|---|---|---|---|---|")
    fastest = {}
    for precision in PRECISIONS:
        rows = sorted((c for c in everyone if c.precision == precision), key=lambda c: median(times[id(c)]))
        best = next((c for c in rows if c.whose == "stock"), None)
        fastest |= {c.precision: c for c in reversed(rows) if c.whose == "ours"}
        for c in rows:
            against = ratio(times[id(c)], times[id(best)]) if best else ""
            print(f"| {precision} | {c.title} | {c.whose} | {p50(times[id(c)])} | {against} |")
    return fastest


def in_pairs(everyone: Sequence[Contender], fastest: dict[str, Contender], seconds: float) -> None:
    print(f"\n## In pairs, our fastest and one stock export at a time, {seconds:.0f} s each\n")
    print("| precision | ours | stock | ours, ms | stock, ms | ours / stock |")
    print("|---|---|---|---|---|---|")
    for precision, mine in fastest.items():
        for peer in (c for c in everyone if c.precision == precision and c.whose == "stock"):
            own, theirs = timed([mine.call, peer.call], seconds)
            print(f"| {precision} | {mine.title} | {peer.title} | {p50(own)} | {p50(theirs)} | {ratio(own, theirs)} |")


def in_a_row(call: Callable[[], object]) -> Callable[[], object]:
    def run() -> None:
        for _ in range(IN_A_ROW):
            call()

    return run


def against_teacher(
    teacher: Student, images: Calibration, folder: Path, fastest: dict[str, Contender], seconds: float
) -> None:
    # A large network answers slowly, and its answers may be those of random weights: two pictures are enough.
    source = Source(teacher, folder, normalised(teacher, images.pixels[:2]))
    forms = gathered(
        [
            *((f"{OURS[t]}, the teacher by us", lambda t=t: ours(teacher, images, folder, t, "fp32")) for t in OURS),
            *(
                (f"{PEERS[n].title}, the teacher", lambda n=n: stock(n, "fp32", source))
                for n in ("onnxruntime", "openvino", "litert")
            ),
        ]
    )
    named = teacher.card.architecture.rpartition("/")[2]
    trained = "" if teacher.card.metrics else ", untrained: its times are real, its answers are none"
    print(f"\n## Beside {named}{trained}\n")
    calls = [c.call for c in forms] + [in_a_row(c.call) for c in fastest.values()]
    series = timed(calls, seconds, least=30)
    own = {
        precision: Series([ms / IN_A_ROW for ms in times.ms])
        for precision, times in zip(fastest, series[len(forms) :], strict=True)
    }
    for precision, times in own.items():
        print(f"Our {precision}, {fastest[precision].title}, {IN_A_ROW} calls in a row: {p50(times)} ms.\n")
    print("| teacher in fp32 | whose | ms | " + " | ".join(f"/ our {precision}" for precision in own) + " |")
    print("|---|---|---|" + "---|" * len(own))
    for form, times in sorted(zip(forms, series, strict=False), key=lambda row: median(row[1])):
        ratios = " | ".join(ratio(times, mine, 1) for mine in own.values())
        print(f"| {form.title} | {form.whose} | {p50(times)} | {ratios} |")


def main(
    run: Path, data: Path, size: int | None, seconds: float, peers: str, teacher: Path | None, profile: bool
) -> None:
    torch.set_num_threads(1)
    names = chosen_peers(peers)
    student = sized(load_student(run), size)
    images = training_images(student, data, CALIBRATION, Reporter())
    card, machine = student.card, describe_environment(1)
    print(f"{card.architecture}, {card.preprocess.size} px, {machine['cpu']}, 1 thread\n")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        everyone = contenders(student, images, folder, names)
        print("Runtimes: " + ", ".join(sorted({c.runtime for c in everyone})) + ".")
        fastest = all_in_turn(everyone, seconds)
        in_pairs(everyone, fastest, seconds / 4)
        if teacher is not None:
            place = folder / "teacher"
            place.mkdir()
            against_teacher(sized(load_student(teacher), size), images, place, fastest, seconds)
        for precision in PRECISIONS if profile else ():
            programs = {c.whose: c for c in everyone if c.precision == precision and c.title == OURS["executorch"]}
            if len(programs) == 2:
                print(f"\n## What ExecuTorch's operators take, {precision}\n")
                print(operator_table({whose: c.file for whose, c in programs.items()}, to_input(images.pixels[:1])))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Our artifacts against stock exports of the same weights.")
    parser.add_argument("run", type=Path)
    parser.add_argument("data", type=Path)
    parser.add_argument("--size", type=int)
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--peers", default="all")
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--no-profile", dest="profile", action="store_false")
    main(*vars(parser.parse_args()).values())
