"""Images per second and peak memory of training steps: a textbook loop, the student alone, and both stages.

python benchmarks/train_speed.py [--teacher res2net101_26w_4s] [--student shufflenet_v2_x1_0] [--size 224]
                                 [--batch-size 64] [--rounds 3] [--steps 2] [--threads N] [--device cpu]
                                 [--under "COMMAND"] [--only NAME ...] [--every-method]
python benchmarks/train_speed.py --cache

The textbook loop is the usual one (mdistiller's, for instance): float32, NCHW, ImageFolder and transforms of
torchvision behind a DataLoader, the teacher in eval mode under no_grad in every step, `.item()` in every step. Ours is
what `dspkd distill` does. Both have the same networks, method, generation block, batch, JPEG files (600 x 600)
and number of loader workers. Random weights and random stored answers: neither changes what a step costs.

Every measurement is a process of its own, so that its peak is its own: one step that is not timed, then `--steps`, and
more until eight seconds are full. The ways take turns, and a ratio is taken within a round. CPU time (with that of the
loader's workers) is there because neighbours on the machine move it less. `--under` stands before each process
(taskset, flock, nice). `--every-method` adds those beside DSP-KD's own stages, at the price of as many processes again.
What the rates come to for the paper's recipe stands below the table: images x epochs / (images/s), with nothing but
training in it. `--cache` fills a teacher cache as large as the paper's recipe needs and says how
large it is and how long it takes to open. Prints Markdown.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision import transforms
from torchvision.datasets import ImageFolder

from dspkd.config import AugmentConfig
from dspkd.data.pixels import cached_pixels
from dspkd.data.sources import read_table
from dspkd.data.synthetic import make_synthetic_set
from dspkd.data.table import Table
from dspkd.data.views import VIEWS_PER_EPOCH, TrainingViews, ViewLoader, resident
from dspkd.distill import METHODS, StepInputs
from dspkd.distill.base import LOGITS
from dspkd.models import Architecture, FeatureTaps, pretrained_preprocess
from dspkd.preprocess import Preprocess
from dspkd.student import Student, StudentCard
from dspkd.train.draws import Draws, most_draws
from dspkd.train.prepare import training_size
from dspkd.train.reporter import Reporter
from dspkd.train.task import StageTask, method_context
from dspkd.train.teacher_answers import TeacherAnswers
from dspkd.train.teacher_cache import Slots, TeacherCache
from dspkd_bench.environment import describe_environment

SECONDS = 8.0
PICTURE_SIDE, DRAWN_SIDE = 600, 150
# Stored answers have to be read, and are many times the size of what a step reads.
BATCHES_OF_PICTURES = 6
STAGES: dict[str, tuple[str, dict[str, Any]]] = {
    "alone": ("cross_entropy", {}),
    "stage 2": ("norm_kd", {}),
    "stage 1": ("hf_masked_generation", {"generator_width": "full"}),
    "stage 1, 256 wide": ("hf_masked_generation", {"generator_width": 256}),
}
# The paper's recipe (section 4): all of ISIC 2019, so many epochs in each of two stages.
RECIPE_IMAGES, RECIPE_EPOCHS = 25_331, 120


@dataclass(frozen=True)
class Way:
    stage: str
    how: str
    precision: str = "float32"

    @property
    def name(self) -> str:
        return f"{self.stage}: {self.how}" + ("" if self.precision == "float32" else f", {self.precision}")

    @property
    def textbook(self) -> str:
        return f"{self.stage}: textbook"


WAYS = [
    *(Way(stage, how) for stage in STAGES for how in ("textbook", "ours") if stage == "alone"),
    *(Way(stage, how) for stage in STAGES if stage != "alone" for how in ("textbook", "online", "cached")),
    *(Way(stage, how, "bfloat16") for stage in ("stage 2", "stage 1, 256 wide") for how in ("online", "cached")),
]
OTHERS = {
    name: (name, {})
    for name, method in METHODS.items()
    if method.needs_teacher and name not in {own for own, _ in STAGES.values()}
}
EVERY_WAY = [*WAYS, *(Way(stage, how) for stage in OTHERS for how in ("textbook", "online", "cached"))]


def measured(way: Way, args: argparse.Namespace, folder: Path) -> dict[str, float]:
    """Run the steps of one way in this process."""
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    step = textbook_steps(way, args, folder) if way.how == "textbook" else our_steps(way, args, folder)
    next(step)
    started, busy, count = time.perf_counter(), _cpu_seconds(), 0
    while count < args.steps or (not args.once and time.perf_counter() - started < SECONDS):
        next(step)
        count += 1
    _wait(args.device)
    seconds, images = time.perf_counter() - started, count * args.batch_size
    return {
        "images_per_s": images / seconds,
        "images_per_cpu_s": images / max(_cpu_seconds() - busy, 1e-9),
        "peak_gib": _peak_bytes(args.device) / 2**30,
    }


def textbook_steps(way: Way, args: argparse.Namespace, folder: Path) -> Iterator[None]:
    student, teacher, method = _networks(way, args, torch.contiguous_format)
    device = torch.device(args.device)
    student.to(device)
    method.to(device)
    preprocess = pretrained_preprocess(args.teacher, args.size)
    config = AugmentConfig()
    jitter = config.color_jitter
    transform = transforms.Compose(
        [
            transforms.RandomResizedCrop(args.size, scale=(config.crop_scale, 1.0), ratio=(1.0, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ColorJitter(jitter, jitter, jitter),
            transforms.ToTensor(),
            transforms.Normalize(preprocess.mean, preprocess.std),
        ]
    )
    pictures = ImageFolder(str(folder / "classes"), transform)
    endless = RandomSampler(pictures, replacement=True, num_samples=10_000_000)
    loader = DataLoader(
        pictures, args.batch_size, sampler=endless, num_workers=args.workers, pin_memory=device.type == "cuda"
    )
    trained = [p for p in (*student.parameters(), *method.parameters()) if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9, weight_decay=5e-4)
    own = FeatureTaps(student, method.student_taps)
    theirs: FeatureTaps | None = None
    if teacher is not None:
        teacher.model.to(device).eval()
        theirs = FeatureTaps(teacher.model, method.teacher_taps)
    for images, labels in loader:
        images, labels = images.to(device), labels.to(device)
        logits = student(images)
        teacher_logits = None
        if teacher is not None:
            with torch.no_grad():
                teacher_logits = teacher.model(images)
        losses = method(
            StepInputs(labels, logits, own.take(), teacher_logits, theirs.take() if theirs is not None else {})
        )
        optimizer.zero_grad()
        losses["loss"].backward()
        optimizer.step()
        losses["loss"].item()
        yield


def our_steps(way: Way, args: argparse.Namespace, folder: Path) -> Iterator[None]:
    student, teacher, method = _networks(way, args, torch.channels_last)
    device = torch.device(args.device)
    preprocess = pretrained_preprocess(args.teacher, args.size)
    task = StageTask(student, preprocess, method, teacher, memory_format=torch.channels_last).to(device)
    task.place_teacher(device)
    task.train()
    table = read_table(folder / "set")
    views, sampler = _views(table, args, folder)
    loader = ViewLoader(views, sampler, batch_size=args.batch_size, workers=args.workers)
    if way.how == "cached" and method.teacher_reads is None:
        raise SystemExit(f"{way.stage}: the teacher's answers cannot be stored for this method")
    answers = _answers(task, views, sampler, folder) if way.how == "cached" else None
    trained = [p for p in task.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9, weight_decay=5e-4, fused=True)
    mixed = torch.autocast(device.type, torch.bfloat16, enabled=way.precision == "bfloat16")
    # The views of epoch 0 again and again: those that are stored.
    for batch in itertools.chain.from_iterable(itertools.repeat(loader)):
        optimizer.zero_grad(set_to_none=True)
        known = answers.of(batch) if answers is not None else None
        with mixed:
            losses = task(batch.pixels, batch.labels, 0.5, known)
        losses["loss"].backward()
        optimizer.step()
        yield
        if answers is not None and answers.asked:
            raise SystemExit("the teacher was asked although its answers are stored")


def _networks(way: Way, args: argparse.Namespace, memory_format: torch.memory_format) -> tuple[nn.Module, Any, Any]:
    name, settings = (STAGES | OTHERS)[way.stage]
    method_class = METHODS[name]
    architecture, classes = Architecture(args.student), tuple("ABCDEFGH")
    student = architecture.build(len(classes)).to(memory_format=memory_format)  # type: ignore[call-overload]
    teacher = None
    if method_class.needs_teacher:
        of_teacher = Architecture(args.teacher)
        preprocess = pretrained_preprocess(args.teacher, args.size)
        card = StudentCard(role="baseline", architecture=of_teacher.name, classes=classes, preprocess=preprocess)
        teacher = Student(of_teacher.build(len(classes)).eval().requires_grad_(False), card, Path())
    context = method_context(student, architecture, len(classes), args.size, teacher, maps=method_class.needs_maps)
    return student, teacher, method_class.build(method_class.Settings(**settings), context)


def _views(table: Table, args: argparse.Namespace, folder: Path) -> tuple[TrainingViews, Draws]:
    form = Preprocess(size=training_size(args.size))
    pixels = cached_pixels(table, form, for_training=True, cache_dir=folder / "pixels")
    ids = [sample.image_id for sample in table.samples]
    device = torch.device(args.device)
    there = resident(pixels, device)
    views = TrainingViews(there, table.labels, ids, size=args.size, seed=0, config=AugmentConfig(), device=device)
    return views, Draws(np.arange(len(table)), table.labels, balance=0.0, seed=0)


def _answers(task: StageTask, views: TrainingViews, sampler: Draws, folder: Path) -> TeacherAnswers:
    """From a cache that holds all of epoch 0; written by the first process that needs it."""
    blank = torch.zeros((1, 3, views.size, views.size), dtype=torch.uint8, device=views.device)
    shapes = {name: tuple(value.shape[1:]) for name, value in task.ask_teacher(blank).items()}
    cache = TeacherCache(
        folder / "answers", {"made of": "random numbers"}, Slots.of(most_draws(sampler)), dtype="float32"
    )
    keys = list(sampler)
    positions, ids = (np.array(column, dtype=np.int64) for column in zip(*keys, strict=True))
    generator = np.random.default_rng(0)
    for name, shape in shapes.items():
        if not cache.read(name, shape, positions[:1], ids[:1])[1].all():
            for start in range(0, len(keys), 64):
                part = slice(start, start + 64)
                values = generator.standard_normal((len(positions[part]), *shape), dtype=np.float32)
                cache.write(name, positions[part], ids[part], values)

    def ask(_: Tensor) -> dict[str, Tensor]:
        raise SystemExit("the teacher was asked although its answers are stored")

    return TeacherAnswers(cache, ask, shapes, Reporter(), whole_batches=True)


def _cpu_seconds() -> float:
    """Of this process and of a DataLoader's workers, which are its children."""
    ticks = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if os.getpid() in (int(stat.parent.name), int(fields[1])):
                ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _peak_bytes(device: str) -> int:
    """Of this process; a DataLoader's workers are not in it."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    # getrusage would also know the peak of the process that started this one.
    status = Path("/proc/self/status").read_text()
    return int(status.partition("VmHWM:")[2].split()[0]) * 1024


def make_pictures(folder: Path, count: int, size: int) -> None:
    """JPEGs in the layout of ISIC 2019 and as class folders, decoded once for our loader."""
    make_synthetic_set(folder / "set", lesions=count, size=DRAWN_SIDE)
    table = read_table(folder / "set")
    for sample in table.samples:
        large = Image.open(sample.path).resize((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC)
        large.save(sample.path, quality=92)
        place = folder / "classes" / table.classes[sample.label]
        place.mkdir(parents=True, exist_ok=True)
        (place / sample.path.name).symlink_to(sample.path.resolve())
    form = Preprocess(size=training_size(size))
    cached_pixels(table, form, for_training=True, cache_dir=folder / "pixels")


def print_cache_figures(images: int = 25_331, views: int = 120, classes: int = 8) -> None:
    """Logits in 16 bits of all images of ISIC 2019 in the views of one stage of the paper."""
    slots = Slots.of(np.ones(images, np.int64))
    positions = np.arange(images)
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def opened() -> TeacherCache:
            return TeacherCache(folder, {"made of": "random numbers"}, slots, dtype="float16")

        cache = opened()
        for view in range(views):
            values = generator.standard_normal((images, classes)).astype(np.float16)
            cache.write(LOGITS, positions, np.full(images, view * VIEWS_PER_EPOCH), values)
        size = sum(path.stat().st_size for path in folder.iterdir())
        drawn = generator.integers(0, images, (views, 64))
        times = {"open and read one batch": list[float](), "open and read a batch of every view": list[float]()}
        for _ in range(5):
            for name, of_views in zip(times, (1, views), strict=True):
                started = time.perf_counter()
                cache = opened()
                for view in range(of_views):
                    ids = np.full(64, view * VIEWS_PER_EPOCH)
                    assert cache.read(LOGITS, (classes,), drawn[view], ids)[1].all()
                times[name].append(time.perf_counter() - started)
    print(f"{images} images, {views} views, {classes} logits in 16 bits: {size / 1e6:.2f} MB\n")
    print("| | ms, median of 5 [range] |")
    print("|---|---|")
    for name, seconds in times.items():
        print(f"| {name} | {spread([1000 * value for value in seconds], 1)} |")


def in_own_process(way: Way, flags: list[str], folder: Path, under: str) -> dict[str, float] | None:
    """None if the process ended without an answer, for want of memory for instance."""
    command = [*shlex.split(under), sys.executable, __file__, *flags, "--measure", way.name, "--folder", str(folder)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    values: dict[str, float] | None = json.loads(done.stdout) if done.returncode == 0 else None
    return values


def spread(values: list[float], digits: int) -> str:
    return f"{statistics.median(values):.{digits}f} [{min(values):.{digits}f}, {max(values):.{digits}f}]"


def print_table(rounds: list[dict[str, dict[str, float]]]) -> None:
    def ratios(name: str, other: str, unit: str = "images_per_s") -> str:
        pairs = [(r[name], r[other]) for r in rounds if name in r and other in r and r[other][unit]]
        return spread([a[unit] / b[unit] for a, b in pairs], 2) if pairs else ""

    print(
        "| step | images/s [rounds] | / textbook, same stage | the same in CPU time | / student alone, ours | "
        "the same in CPU time | peak memory, GiB |"
    )
    print("|---|---|---|---|---|---|---|")
    for way in EVERY_WAY:
        values = [r[way.name] for r in rounds if way.name in r]
        if values:
            cells = [
                way.name,
                spread([v["images_per_s"] for v in values], 1),
                *(ratios(way.name, way.textbook, unit) for unit in ("images_per_s", "images_per_cpu_s")),
                *(ratios(way.name, "alone: ours", unit) for unit in ("images_per_s", "images_per_cpu_s")),
                f"{max(v['peak_gib'] for v in values):.2f}",
            ]
            print(f"| {' | '.join(cells)} |")


def print_recipe(rounds: list[dict[str, dict[str, float]]]) -> None:
    images = RECIPE_IMAGES * RECIPE_EPOCHS
    lines = []
    for first in ("stage 1", "stage 1, 256 wide"):
        for how, precision in [(way.how, way.precision) for way in WAYS if way.stage == "stage 2"]:
            names = [Way(stage, how, precision).name for stage in (first, "stage 2")]
            hours = [
                sum(images / r[name]["images_per_s"] for name in names) / 3600 for r in rounds if r.keys() >= {*names}
            ]
            if hours:
                lines.append(f"| {' + '.join(names)} | {spread(hours, 2)} |")
    if lines:
        print(f"\nThe paper's recipe, {RECIPE_IMAGES} images, {RECIPE_EPOCHS} epochs a stage, by these rates:\n")
        print("| stages | hours [rounds] |\n|---|---|", *lines, sep="\n")


def main() -> None:
    parser = argparse.ArgumentParser(description="Images per second and memory of training steps.")
    parser.add_argument("--teacher", default="res2net101_26w_4s")
    parser.add_argument("--student", default="shufflenet_v2_x1_0")
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=2)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--once", action="store_true", help="exactly --steps steps: for the memory alone")
    parser.add_argument("--under", default="", help="a command that each measuring process runs under")
    parser.add_argument("--only", nargs="+", metavar="NAME", help=", ".join(way.name for way in EVERY_WAY))
    parser.add_argument("--every-method", action="store_true", help="those beside DSP-KD's own stages too")
    parser.add_argument("--cache", action="store_true", help="the size and the opening of a cache instead")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.cache:
        print_cache_figures()
        return
    known = EVERY_WAY if args.only or args.every_method or args.measure else WAYS
    ways = {way.name: way for way in known if not args.only or way.name in args.only}
    if args.measure:
        with contextlib.redirect_stdout(sys.stderr):
            values = measured(ways[args.measure], args, args.folder)
        print(json.dumps(values), flush=True)
        # A DataLoader in the middle of an endless epoch would be waited for.
        os._exit(0)
    names = ("teacher", "student", "size", "batch_size", "steps", "threads", "workers", "device")
    flags = [word for name in names for word in (f"--{name.replace('_', '-')}", str(getattr(args, name)))]
    flags += ["--once"] if args.once else []
    flags += ["--every-method"] if args.every_method else []
    where = torch.cuda.get_device_name() if args.device == "cuda" else describe_environment(args.threads)["cpu"]
    print(
        f"{args.teacher} -> {args.student}, {args.size} px, batch {args.batch_size}, {where}, {args.threads} threads, "
        f"{args.workers} loader workers, torch {torch.__version__}, {args.rounds} rounds\n",
        flush=True,
    )
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        make_pictures(folder, BATCHES_OF_PICTURES * args.batch_size // 2, args.size)
        rounds: list[dict[str, dict[str, float]]] = []
        for number in range(args.rounds):
            rounds.append({})
            for way in ways.values():
                if (values := in_own_process(way, flags, folder, args.under)) is not None:
                    rounds[-1][way.name] = values
                    print(f"round {number + 1}, {way.name}: {values}", file=sys.stderr, flush=True)
        print_table(rounds)
        print_recipe(rounds)


if __name__ == "__main__":
    main()
