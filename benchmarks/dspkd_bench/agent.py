"""The program that measures models on a device: one file, the standard library, and the runtime that is there.

    python3 agent.py spec.json             measure all of its models
    python3 agent.py spec.json INDEX PID   load and run one of them in a process of its own: the cold start, memory;
                                           it ends with its parent, which is process PID
    python3 agent.py --beside COMMAND...   run another program that says the same events, and read the power sensors
                                           meanwhile, of which it knows nothing; pass on what it says

It is pushed into a folder of its own beside the models and prints events, one JSON object a line, as `recording.py`
takes them: start, alive, cold, loaded, failed, output, times, state, sensors, power, sustained, end. What has been
measured is flushed about once a second, so that a connection that breaks loses no more than that, and between two calls
something is said at least every ALIVE_SECONDS, so that whoever waits can tell slow from hanging. If nobody reads any
more, the program ends. Sensors are read here and understood there: their text is sent as it is.

Python 3.8 and up, no torch, nothing of dspkd. `bench.py` measures with these very functions on this machine. DSPKD_SYS
names the folder where sysfs is mounted if that is not /sys.
"""

from __future__ import annotations

import gc
import json
import math
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

PROTOCOL = 1
SYS = Path(os.environ.get("DSPKD_SYS", "/sys"))
STATE_SECONDS = 1.0
POWER_SECONDS = 0.1
ALIVE_SECONDS = 10.0
# The cold start of one model.
COLD_SECONDS = 300.0
PACKAGES = ("numpy", "onnxruntime", "onnxruntime-gpu", "tensorrt", "ai-edge-litert")
STEADY_WINDOW = 5
STEADY_CHANGE = 0.05
# MLPerf's LoadGen asks for this confidence in its single-stream scenario (early_stopping.cc, tolerance 0).
CONFIDENCE = 0.99


class Rule(NamedTuple):
    """Warm up for `warmup_rounds` and on until the times are steady; then at least `min_rounds`, even if `max_rounds`
    is less, and on until `seconds` have passed, `max_rounds` are done, or the p90 of every subject is known to
    `precision`.
    """

    warmup_rounds: int = 10
    min_rounds: int = 50
    max_rounds: int = 2000
    seconds: float = 20.0
    precision: float | None = None


class Round(NamedTuple):
    """One call of a subject: seconds since the measured part began, and how long it took."""

    name: str
    at_s: float
    ms: float


def early_stopping_rank(n: int, percentile: float = 0.9, confidence: float = CONFIDENCE) -> int | None:
    """Rank (1 is the smallest) among n sorted latencies that the true percentile stays under with `confidence`.

    None if n is too small for any. This is the estimate that MLPerf reports for a single stream: the smallest s for
    which at least s of n calls under the true percentile, each with probability `percentile`, are less probable
    than 1 - confidence.
    """
    allowed, over, tail, rank = 1.0 - confidence, 0, 0.0, None
    while over < n:
        tail += math.exp(
            math.lgamma(n + 1)
            - math.lgamma(over + 1)
            - math.lgamma(n - over + 1)
            + over * math.log(1 - percentile)
            + (n - over) * math.log(percentile)
        )
        if tail > allowed:
            break
        rank = n - over
        over += 1
    return rank


def p90_is_known(times_ms: Sequence[float], precision: float) -> bool:
    """Whether MLPerf's estimate of p90 is within `precision` (a fraction) of the p90 that was seen."""
    rank = early_stopping_rank(len(times_ms))
    if rank is None:
        return False
    ordered = sorted(times_ms)
    seen = ordered[math.ceil(0.9 * len(ordered)) - 1]
    return ordered[rank - 1] <= seen * (1.0 + precision)


def _nothing() -> None:
    pass


def warm_up(
    calls: Mapping[str, Callable[[], object]],
    rule: Rule,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    after_call: Callable[[], None] = _nothing,
) -> int:
    """Run until the time of a round no longer falls; the number of rounds. At most ten times as many as asked for."""
    rounds: list[int] = []
    while len(rounds) < 10 * rule.warmup_rounds:
        if len(rounds) >= rule.warmup_rounds and _is_steady(rounds):
            break
        before = clock_ns()
        for call in calls.values():
            call()
            after_call()
        rounds.append(clock_ns() - before)
    return len(rounds)


def _is_steady(rounds: Sequence[int]) -> bool:
    if len(rounds) < 2 * STEADY_WINDOW:
        return True
    earlier, later = sorted(rounds[-2 * STEADY_WINDOW : -STEADY_WINDOW]), sorted(rounds[-STEADY_WINDOW:])
    middle = STEADY_WINDOW // 2
    return later[middle] >= (1.0 - STEADY_CHANGE) * earlier[middle]


def measure_rounds(
    calls: Mapping[str, Callable[[], object]],
    rule: Rule,
    clock_ns: Callable[[], int] = time.perf_counter_ns,
    after_call: Callable[[], None] = _nothing,
) -> Iterator[list[Round]]:
    """Every subject once per round, a list of Round each, in an order drawn anew for every round: what ran just before
    has filled the caches, and would otherwise be the same neighbour every time. The draws are the same in every run.

    The garbage collector is off while it runs. Stop reading and it stops.
    """
    names, draw = list(calls), random.Random(0)
    times: dict[str, list[float]] = {name: [] for name in names}
    with _no_garbage_collection():
        started = clock_ns()
        # Looking at the precision again only after a fifth more calls keeps the chance of stopping by luck small.
        look_at = rule.min_rounds
        for number in range(max(rule.min_rounds, rule.max_rounds)):
            if number >= rule.min_rounds and (clock_ns() - started) / 1e9 >= rule.seconds:
                return
            if rule.precision is not None and number >= look_at:
                look_at = math.ceil(1.2 * number)
                if all(p90_is_known(values, rule.precision) for values in times.values()):
                    return
            draw.shuffle(names)
            done = []
            for name in names:
                before = clock_ns()
                calls[name]()
                after = clock_ns()
                times[name].append((after - before) / 1e6)
                done.append(Round(name, (before - started) / 1e9, (after - before) / 1e6))
                after_call()
            yield done


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()


# The device's state ---------------------------------------------------------------------------------


def read_text(path: Any) -> str | None:
    """None if it cannot be read."""
    try:
        return Path(path).read_text(errors="replace").strip()
    except OSError:
        return None


def read_state() -> dict[str, Any]:
    """Clocks in kHz, governors, temperatures in degrees Celsius, load; what cannot be read is left out."""
    cores = sorted((SYS / "devices/system/cpu").glob("cpu[0-9]*/cpufreq"))
    clocks = [read_text(core / "scaling_cur_freq") for core in cores]
    temperatures = {}
    for zone in sorted((SYS / "class/thermal").glob("thermal_zone*")):
        value = read_text(zone / "temp")
        if value and value.lstrip("-").isdigit() and int(value) > -100000:
            temperatures[read_text(zone / "type") or zone.name] = int(value) / 1000.0
    return {
        "load1": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "clocks_khz": [int(value) for value in clocks if value and value.isdigit()],
        "governor": sorted({value for value in (read_text(core / "scaling_governor") for core in cores) if value}),
        "temperatures_c": temperatures,
    }


def describe() -> dict[str, Any]:
    """Processor, cores, system, and what a Jetson says of its release and power mode. No host name, no user."""
    info = read_text("/proc/cpuinfo") or ""
    named = [
        line.partition(":")[2].strip() for line in info.splitlines() if line.startswith(("model name", "Hardware"))
    ]
    board = (read_text("/proc/device-tree/model") or "").rstrip("\0") or None
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None
    return {
        "cpu": "".join(named[:1]) or board,
        "board": board,
        "cores": len(cores) if cores else os.cpu_count(),
        "affinity": cores,
        "os": " ".join((platform.system(), platform.release())),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "l4t": read_text("/etc/nv_tegra_release"),
        "nvpmodel": ask("nvpmodel", "-q"),
        "packages": _versions(),
    }


def _versions() -> dict[str, str]:
    """Of the packages that the runtimes come in, without loading them."""
    from importlib.metadata import PackageNotFoundError, version

    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def find_program(name: str) -> str | None:
    """Also where a user who is not root does not look."""
    return shutil.which(name, path=os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin")))


def ask(name: str, *words: str) -> str | None:
    """What a program of the device prints; None if it has none, or if it fails."""
    program = find_program(name)
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *words], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=10
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else None


def memory_kib(field: str) -> int | None:
    """VmRSS, VmHWM and the like of this process; None where there is no /proc."""
    for line in (read_text("/proc/self/status") or "").splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    return None


# Power ----------------------------------------------------------------------------------------------


class Sensors(NamedTuple):
    """`columns` are read at every sample, `fixed` ({column: text}) was read once. Columns are "hwmon3/in1_input",
    "intel-rapl:0/energy_uj", or "tegrastats" for one of its lines. `denied` are there and may not be read.
    """

    columns: list[str]
    fixed: dict[str, str]
    denied: list[str]


def find_sensors() -> Sensors:
    """The power monitors of hwmon and the energy counters of powercap; where there is none, tegrastats."""
    columns, fixed, denied = [], {}, []
    for folder, changing, constant in _sensor_folders():
        readable = [name for name in changing if read_text(folder / name) is not None]
        columns += [folder.name + "/" + name for name in readable]
        denied += [folder.name + "/" + name for name in changing if not os.access(str(folder / name), os.R_OK)]
        if readable:
            texts = {name: read_text(folder / name) for name in constant}
            fixed.update({folder.name + "/" + name: text for name, text in texts.items() if text is not None})
    if not columns and find_program("tegrastats"):
        columns = ["tegrastats"]
    return Sensors(columns, fixed, denied)


def _sensor_folders() -> Iterator[tuple[Path, list[str], list[str]]]:
    """Each with the files that change and those that do not."""
    for folder in sorted((SYS / "class/hwmon").glob("hwmon*")):
        # TI's INA monitors, which boards have in their supply; other chips measure a part, or nothing of power.
        if (read_text(folder / "name") or "").startswith("ina"):
            changing = [file.name for kind in ("in", "curr", "power") for file in folder.glob(kind + "[1-3]_input")]
            constant = [file.name for kind in ("label", "enable") for file in folder.glob("in[1-3]_" + kind)]
            yield folder, sorted(changing), ["name", *sorted(constant)]
    # Not intel-rapl-mmio, which counts the same energy a second time. AMD's counters have Intel's name here.
    for folder in sorted((SYS / "class/powercap").glob("intel-rapl:*")):
        yield folder, ["energy_uj"], ["name", "max_energy_range_uj"]


class PowerSampler:
    """Reads the sensors in a thread, between `start` and `stop`."""

    def __init__(self, sensors: Sensors, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._child: Any = None
        self._rows: deque[tuple[int, list[str | None]]] = deque()
        self._stopped = threading.Event()
        self._files = [_sensor_file(column) for column in sensors.columns if column != "tegrastats"]
        self._thread = threading.Thread(
            target=self._read_files if self._files else self._read_lines, daemon=True, name="power"
        )

    def start(self) -> None:
        if not self._files:
            interval = str(int(POWER_SECONDS * 1000))
            self._child = subprocess.Popen(
                [find_program("tegrastats") or "tegrastats", "--interval", interval],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
            )
        self._thread.start()

    def take(self) -> list[tuple[int, list[str | None]]]:
        """(time in ns, texts of the columns) of what was read since the last call."""
        return [self._rows.popleft() for _ in range(len(self._rows))]

    def stop(self) -> None:
        self._stopped.set()
        if self._child is not None:
            self._child.kill()
            self._child.wait()
        self._thread.join()
        if self._child is not None:
            self._child.stdout.close()

    def _read_files(self) -> None:
        due = self._clock_ns()
        while not self._stopped.wait(max(0.0, (due - self._clock_ns()) / 1e9)):
            before = self._clock_ns()
            row = [read_text(file) for file in self._files]
            after = self._clock_ns()
            self._rows.append(((before + after) // 2, row))
            # Where reading takes longer than the interval, no more is asked of the sensor than it can give.
            due = max(due + int(POWER_SECONDS * 1e9), after)

    def _read_lines(self) -> None:
        for line in self._child.stdout:
            self._rows.append((self._clock_ns(), [line.decode(errors="replace").strip()]))


def _sensor_file(column: str) -> Path:
    return SYS / "class" / ("hwmon" if column.startswith("hwmon") else "powercap") / column


# Runtimes -------------------------------------------------------------------------------------------


class Loaded(NamedTuple):
    """`run` takes float32 in [0, 1], (N, 3, H, W) or NHWC as `layout` says, or uint8 (N, H, W, 3), as `dtype` says, N
    being at most `most`.
    """

    runtime: str
    dtype: str
    run: Callable[[Any], Any]
    most: int | None = None
    layout: str = "NCHW"


PROVIDERS = {
    "cpu": ("CPUExecutionProvider",),
    "cuda": ("CUDAExecutionProvider", "CPUExecutionProvider"),
    "tensorrt": ("TensorrtExecutionProvider", "CUDAExecutionProvider", "CPUExecutionProvider"),
}


def load_onnx(path: str, threads: int, provider: str = "cpu") -> Loaded:
    """`provider` runs what it can of the graph, those after it in PROVIDERS the rest. ValueError if it does not start:
    ONNX Runtime would silently take the next one.
    """
    import onnxruntime

    names = PROVIDERS[provider]
    available = onnxruntime.get_available_providers()
    if names[0] not in available:
        raise ValueError(f"the onnxruntime there has no {names[0]}, only {', '.join(available)}")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=[name for name in names if name in available])
    if session.get_providers()[0] != names[0]:
        raise ValueError(f"{names[0]} does not start there: are its libraries installed?")
    image = session.get_inputs()[0]
    dtype = "uint8" if image.type == "tensor(uint8)" else "float32"
    batch = image.shape[0]
    return Loaded(
        f"onnxruntime {onnxruntime.__version__}" + ("" if provider == "cpu" else f" {names[0]}"),
        dtype,
        lambda value: session.run(["probabilities"], {image.name: value})[0],
        batch if isinstance(batch, int) else None,
    )


def _load_tensorrt(path: str, threads: int, provider: str) -> Loaded:
    import tensorrt_device  # type: ignore[import-not-found]  # pushed beside this file

    engine = tensorrt_device.Engine(Path(path))
    most = engine.max_batch if engine.dynamic else 1
    return Loaded(f"{engine.version} on {engine.gpu}", engine.dtype, engine.run, most)


def _load_litert(path: str, threads: int, provider: str) -> Loaded:
    import ai_edge_litert
    from ai_edge_litert.interpreter import Interpreter

    interpreter = Interpreter(path, num_threads=threads)
    interpreter.allocate_tensors()
    (taken,), (given,) = interpreter.get_input_details(), interpreter.get_output_details()

    def run(value: Any) -> Any:
        interpreter.set_tensor(taken["index"], value)
        interpreter.invoke()
        return interpreter.get_tensor(given["index"])

    dtype = "uint8" if taken["dtype"].__name__ == "uint8" else "float32"
    return Loaded(f"ai-edge-litert {ai_edge_litert.__version__} XNNPACK", dtype, run, 1, "NHWC")


LOADERS: dict[str, Callable[[str, int, str], Loaded]] = {
    "onnx": load_onnx,
    "tensorrt": _load_tensorrt,
    "litert": _load_litert,
}
MODULES = {"onnx": "onnxruntime", "tensorrt": "tensorrt", "litert": "ai_edge_litert.interpreter"}


def _lock() -> int | None:
    """A lock on the folder that work folders lie in, so that two measurements never share the device.

    On the folder itself: it leaves no file behind and goes with the process. None if another one holds it.
    """
    import fcntl

    folder = os.open(str(Path(__file__).resolve().parent.parent), os.O_RDONLY)
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(folder)
        return None
    return folder


class _Nobody(Exception):
    """Nobody reads what is printed any more."""


def _say(event: str, **values: Any) -> None:
    try:
        sys.stdout.write(json.dumps({"event": event, **values}) + "\n")
        sys.stdout.flush()
    except (BrokenPipeError, OSError) as error:
        raise _Nobody from error


class _Model:
    """A model of the spec with its picture."""

    def __init__(self, spec: dict[str, Any], index: int) -> None:
        import numpy

        self._spec, self._threads = spec["models"][index], spec["threads"]
        if self._spec["target"] not in LOADERS:
            raise ValueError(f"this agent runs {' and '.join(LOADERS)}, not {self._spec['target']}")
        # The import is the host language's price and not the model's.
        __import__(MODULES[self._spec["target"]])
        size = self._spec["size"]
        self._pixels = numpy.fromfile(self._spec["picture"], dtype=numpy.uint8).reshape(1, size, size, 3)

    def load(self) -> Loaded:
        return self._load(self._spec["file"])

    def load_batched(self) -> Loaded | None:
        """The file that takes more pictures; None if there is none."""
        return self._load(self._spec["batch_file"]) if self._spec["batch_file"] else None

    def _load(self, file: str) -> Loaded:
        return LOADERS[self._spec["target"]](file, self._threads, self._spec["provider"])

    def input_of(self, loaded: Loaded, batch: int = 1) -> Any:
        import numpy

        pixels = numpy.repeat(self._pixels, batch, axis=0)
        return pixels if loaded.dtype == "uint8" else to_float(pixels, loaded.layout)


def _open(model: _Model, index: int) -> Callable[[], object]:
    """Load, run once, and say how long both took and what came out; the call that is timed later."""
    started = time.perf_counter_ns()
    loaded = model.load()
    ended = time.perf_counter_ns()
    value = model.input_of(loaded)
    first = time.perf_counter_ns()
    answer = loaded.run(value)
    first_ms = (time.perf_counter_ns() - first) / 1e6
    _say("loaded", index=index, runtime=loaded.runtime, load_ms=(ended - started) / 1e6, first_ms=first_ms)
    _say("output", index=index, probabilities=[float(v) for v in answer[0]])
    return lambda: loaded.run(value)


def to_float(pixels: Any, layout: str = "NCHW") -> Any:
    """uint8 (N, H, W, 3) -> contiguous float32 in [0, 1], (N, 3, H, W) or NHWC: what `dspkd.runtimes.to_input` does."""
    import numpy

    turned = pixels if layout == "NHWC" else pixels.transpose(0, 3, 1, 2)
    return numpy.ascontiguousarray(turned, dtype=numpy.float32) / numpy.float32(255.0)


def reset_peak() -> None:
    """Imports may have needed more memory for a moment than they keep; that is not the model's peak."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def measure_cold(spec: dict[str, Any], index: int) -> None:
    """Say load_ms, first_ms and memory in KiB of this process: before, at the peak, and after three runs."""
    model = _Model(spec, index)
    reset_peak()
    before_kib, started = memory_kib("VmRSS"), time.perf_counter_ns()
    loaded = model.load()
    ended = time.perf_counter_ns()
    value = model.input_of(loaded)
    first = time.perf_counter_ns()
    loaded.run(value)
    first_ms = (time.perf_counter_ns() - first) / 1e6
    for _ in range(2):
        loaded.run(value)
    memory = {"before_kib": before_kib, "peak_kib": memory_kib("VmHWM"), "resident_kib": memory_kib("VmRSS")}
    _say("cold", index=index, load_ms=(ended - started) / 1e6, first_ms=first_ms, **memory)


def _measure_cold_apart(file: str, index: int) -> None:
    """In a process of its own. What fails there fails here too, with its reason."""
    try:
        with _child([sys.executable, str(Path(__file__).resolve()), file, str(index), str(os.getpid())]) as child:
            said, _ = child.communicate(timeout=COLD_SECONDS)
        event = json.loads(said.decode(errors="replace").strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, IndexError, ValueError):
        return
    if child.returncode == 0:
        _say(event.pop("event"), **event)


@contextmanager
def _child(command: Sequence[str], *, stderr: Any = subprocess.DEVNULL) -> Iterator[Any]:
    """A process that outlives neither the block nor this process: beside it, a second bench would measure.

    SIGTERM is only caught meanwhile. Python would not come to its handler while a runtime hangs in a call.
    """
    started: list[Any] = []

    def stop(number: int, frame: Any) -> None:
        for child in started:
            child.kill()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        started.append(subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr))
        with started[0]:
            try:
                yield started[0]
            finally:
                started[0].kill()
    finally:
        signal.signal(signal.SIGTERM, before)


def _end_with(parent: int) -> None:
    """Have Linux kill this process when its parent ends in whatever way; elsewhere only the parent itself does it."""
    if sys.platform.startswith("linux"):
        with suppress(ImportError, OSError, AttributeError):
            import ctypes

            set_parent_death_signal = 1
            ctypes.CDLL(None).prctl(set_parent_death_signal, int(signal.SIGKILL))
    if os.getppid() != parent:
        os._exit(1)


def measure(spec: dict[str, Any], file: str) -> None:
    """Load every model of the spec, which is in `file`, say which cannot be, and measure the others."""
    fault = pin(spec["cores"])
    _say("start", protocol=PROTOCOL, program="dspkd-agent", **describe())
    if fault:
        _say("refused", message=fault)
        return
    if _lock() is None:
        _say("busy", message="another dspkd bench is running there")
        return
    models: dict[int, _Model] = {}
    calls: dict[str, Callable[[], object]] = {}
    for index in range(len(spec["models"])):
        with _failures(index):
            if spec["cold"]:
                _measure_cold_apart(file, index)
            _say("alive")
            model = _Model(spec, index)
            calls[str(index)] = _open(model, index)
            models[index] = model
    if calls:
        plan = Plan(Rule(**spec["rule"]), spec["sustained_s"], tuple(spec["batches"]))
        measure_calls(calls, plan, _say, _batched_calls(models, plan))
    _say("end")


@contextmanager
def _failures(index: int, **values: Any) -> Iterator[None]:
    """What is raised is said."""
    try:
        yield
    except _Nobody:
        raise
    except ModuleNotFoundError as error:
        _say("failed", index=index, message=f"the device has no {error.name}", **values)
    except Exception as error:  # each runtime has exceptions of its own
        message = (str(error).strip().splitlines() or [type(error).__name__])[0]
        _say("failed", index=index, message=message, **values)


def _batched_calls(models: Mapping[int, _Model], plan: Plan) -> Iterator[tuple[int, dict[str, Callable[[], object]]]]:
    """For each size of the plan the calls of those that take so many pictures. Loaded only when the first is asked for,
    so that it takes no memory before.
    """
    loaded = {}
    for index, model in models.items() if plan.batches else ():
        with _failures(index, batch=plan.batches[0]):
            _say("alive")
            one = model.load_batched()
            if one is not None:
                loaded[index] = one
    for size in plan.batches:
        calls = {}
        for index, one in loaded.items():
            with _failures(index, batch=size):
                _say("alive")
                calls[str(index)] = batched_call(one.run, models[index].input_of(one, size), one.most)
        yield size, calls


def batched_call(run: Callable[[Any], Any], value: Any, most: int | None) -> Callable[[], object]:
    """After one call, which shows whether it works. ValueError for more pictures than one call takes."""
    if most is not None and len(value) > most:
        raise ValueError(f"one call takes at most {most} pictures")
    run(value)
    return lambda: run(value)


def pin(cores: Sequence[int] | None) -> str | None:
    """Let this process and what it starts run on these cores only; what is wrong with them, if anything."""
    if cores is None:
        return None
    if not hasattr(os, "sched_setaffinity"):
        return "this system cannot keep a process on chosen cores"
    allowed = sorted(os.sched_getaffinity(0))
    if not set(cores) <= set(allowed):
        return f"cores {list(cores)} were asked for, and it may use {allowed}"
    os.sched_setaffinity(0, cores)
    return None


# Measuring ------------------------------------------------------------------------------------------


class Plan(NamedTuple):
    """Interleaved rounds by `rule`; shorter ones for each size of `batches`; then, if `sustained_s`, each subject alone
    for so long after a pause.
    """

    rule: Rule
    sustained_s: float = 0.0
    batches: tuple[int, ...] = ()

    @property
    def batch_rule(self) -> Rule:
        rule = self.rule
        fewer = max(2, rule.warmup_rounds // 4), max(5, rule.min_rounds // 4)
        return Rule(fewer[0], fewer[1], rule.max_rounds, rule.seconds / 2, rule.precision)

    @property
    def pause_s(self) -> float:
        """Long enough to know the power without work and to cool down from the work before."""
        return min(15.0, max(3.0, self.sustained_s / 4))


def measure_calls(
    calls: Mapping[str, Callable[[], object]],
    plan: Plan,
    say: Any,
    batched: Iterable[tuple[int, Mapping[str, Callable[[], object]]]] = (),
    clock_ns: Callable[[], int] = time.perf_counter_ns,
) -> None:
    """Measure by the plan; `calls` are by the subject's index as text, and so are those of `batched` for each size.
    `say(event, **values)` gets the events.

    Times in events are ms since the warm-up ended. Power is sampled only while no interleaved rounds run.
    """
    session = _Session(say, clock_ns)
    session.state("before")
    session.rounds(calls, plan.rule)
    session.state("after")
    for size, calls_of_size in batched:
        if calls_of_size:
            session.rounds(calls_of_size, plan.batch_rule, phase="batches", batch=size)
    if plan.sustained_s:
        with session.power():
            for name, call in calls.items():
                session.sustain(name, call, plan)


class _Session:
    def __init__(self, say: Any, clock_ns: Callable[[], int]) -> None:
        self._tell, self._clock_ns = say, clock_ns
        self._told = clock_ns()
        self._began: int | None = None
        self._sampler: PowerSampler | None = None

    def _say(self, event: str, **values: Any) -> None:
        self._tell(event, **values)
        self._told = self._clock_ns()

    def _keep_in_touch(self) -> None:
        if self._clock_ns() - self._told >= ALIVE_SECONDS * 1e9:
            self._say("alive")

    def _ms(self, ns: int) -> float:
        return 0.0 if self._began is None else (ns - self._began) / 1e6

    def state(self, phase: str, **values: Any) -> None:
        self._say("state", at_ms=self._ms(self._clock_ns()), phase=phase, **values, **read_state())

    def rounds(
        self, calls: Mapping[str, Callable[[], object]], rule: Rule, *, phase: str = "rounds", **values: Any
    ) -> None:
        warm_up(calls, rule, self._clock_ns, self._keep_in_touch)
        waiting: Any = {name: ([], []) for name in calls}
        said = self._clock_ns()
        if self._began is None:
            self._began = said
        offset = self._ms(said)
        for done in measure_rounds(calls, rule, self._clock_ns, self._keep_in_touch):
            for name, at_s, took_ms in done:
                waiting[name][0].append(offset + at_s * 1e3)
                waiting[name][1].append(took_ms)
            if self._clock_ns() - said >= STATE_SECONDS * 1e9:
                self._flush(waiting, **values)
                self.state(phase)
                said = self._clock_ns()
        self._flush(waiting, **values)

    def _flush(self, waiting: Any, **values: Any) -> None:
        for name, (at_ms, took_ms) in waiting.items():
            if took_ms:
                rounded = [[round(value, 5) for value in series] for series in (at_ms, took_ms)]
                self._say("times", index=int(name), at_ms=rounded[0], ms=rounded[1], **values)
            waiting[name] = ([], [])

    @contextmanager
    def power(self) -> Iterator[None]:
        """The power is sampled meanwhile, where there is a sensor."""
        sensors = find_sensors()
        self._say("sensors", **sensors._asdict())
        if not sensors.columns:
            yield
            return
        sampler = PowerSampler(sensors, self._clock_ns)
        sampler.start()
        self._sampler = sampler
        try:
            yield
        finally:
            sampler.stop()
            self._sampler = None

    def _flush_power(self) -> None:
        rows = self._sampler.take() if self._sampler else []
        if rows:
            self._say("power", at_ms=[round(self._ms(at), 3) for at, _ in rows], rows=[row for _, row in rows])

    def sustain(self, name: str, call: Callable[[], object], plan: Plan) -> None:
        """A pause, then one call after the other, with nothing between but the flush of once a second."""
        idle_from = self._clock_ns()
        self._pause(name, plan.pause_s)
        started = self._clock_ns()
        waiting: Any = {name: ([], [])}
        said = started
        with _no_garbage_collection():
            while self._clock_ns() - started < plan.sustained_s * 1e9:
                before = self._clock_ns()
                call()
                after = self._clock_ns()
                waiting[name][0].append(self._ms(before))
                waiting[name][1].append((after - before) / 1e6)
                if after - said >= STATE_SECONDS * 1e9:
                    self._flush(waiting, phase="sustained")
                    self._flush_power()
                    self.state("sustained", index=int(name))
                    said = self._clock_ns()
        self._flush(waiting, phase="sustained")
        self._flush_power()
        self._say("sustained", index=int(name), idle_ms=[self._ms(idle_from), self._ms(started)])

    def _pause(self, name: str, seconds: float) -> None:
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            time.sleep(min(STATE_SECONDS, max(0.0, until - time.monotonic())))
            self._flush_power()
            self.state("idle", index=int(name))


def measure_beside(command: Sequence[str]) -> int:
    """Run a program that says the agent's events by itself, and sample the power after its rounds, where there is a
    sensor. It says in a `began` event where its time 0 lies on the system's monotonic clock. Its exit code, as a shell
    has it.
    """
    machine, began, sampler = describe(), 0, None
    with _child(command, stderr=None) as child:
        try:
            for line in child.stdout:
                if line.startswith(b'{"event":"start"'):
                    event = json.loads(line)
                    _say(event.pop("event"), **{**machine, **event})
                    continue
                _pass_on(line)
                if line.startswith(b'{"event":"began"'):
                    began = json.loads(line)["monotonic_ns"]
                elif sampler is None and line.startswith(b'{"event":"state"') and b'"phase":"after"' in line:
                    sampler = _start_sampling()
                if sampler is not None:
                    _say_power(sampler, began)
        finally:
            if sampler is not None:
                sampler.stop()
        code: int = child.wait()
    return code if code >= 0 else 128 - code


def _pass_on(line: bytes) -> None:
    try:
        sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except OSError as error:
        raise _Nobody from error


def _start_sampling() -> PowerSampler | None:
    """None where there is no sensor."""
    sensors = find_sensors()
    _say("sensors", **sensors._asdict())
    if not sensors.columns:
        return None
    sampler = PowerSampler(sensors, time.monotonic_ns)
    sampler.start()
    return sampler


def _say_power(sampler: PowerSampler, began_ns: int) -> None:
    rows = sampler.take()
    if rows:
        _say("power", at_ms=[round((at - began_ns) / 1e6, 3) for at, _ in rows], rows=[row for _, row in rows])


def main(argv: Sequence[str] | None = None) -> int:
    file, *apart = sys.argv[1:] if argv is None else argv
    # A lost connection may show as a hang-up before it shows as a broken pipe.
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
    # Runtimes leave files in the temporary folder (ONNX Runtime a `.ses`); in this one they are removed with it.
    os.environ["TMPDIR"] = os.environ["XDG_CACHE_HOME"] = str(Path(__file__).resolve().parent)
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        if file == "--beside":
            return measure_beside(apart)
        spec = json.loads(Path(file).read_text())
        if apart:
            index, parent = map(int, apart)
            _end_with(parent)
            measure_cold(spec, index)
        else:
            measure(spec, file)
    except _Nobody:
        # Python would try to flush once more and complain.
        os._exit(1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
