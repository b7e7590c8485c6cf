"""What a machine has for dspkd, what it lacks, and the command that mends it.

    with open_device("local") as device:
        machine = examine(device)
    checks = check_machine(machine, "local", artifacts=[])

`examine` asks the machine through `doctor_probe.py`; everything after it is pure. A check is "missing" only if the
base job needs it: train, distill, export to ONNX and bench here; running a model on a device; or running one of the
given artifacts. What is merely optional is "not needed", and still says how to get it.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from typing import Any

from dspkd.adb_device import AdbDevice
from dspkd.artifact import Artifact
from dspkd.devices import Device
from dspkd.errors import DeviceError, MissingDependencyError
from dspkd.litert_converter import CONVERTER_PYTHON, HOW_TO_INSTALL, converter_python, has_converter
from dspkd.runtimes import first_line
from dspkd_bench import doctor_probe
from dspkd_bench.check import Check, numbers, older
from dspkd_bench.doctor_phone import examine_phone, phone_checks
from dspkd_bench.sensors import L4T, parse_l4t

__all__ = ["Check", "check_machine", "examine", "read_probe"]

PROBE_SECONDS = 120.0
OLDEST_PYTHON = "3.8"
ROOM_BYTES = {"local": 2 << 30, "device": 256 << 20}
EXTRAS = ("onnx", "report", "hair", "executorch", "litert", "openvino", "ethos-u", "tensorrt-rtx", "tensorrt")
NEEDED_EXTRAS = ("onnx",)
# What the extras of executorch add, which the metadata of dspkd does not say.
EXTRA_PACKAGES = {"openvino": {"openvino": "2025.1"}, "ethos-u": {"ethos-u-vela": "5.1"}}
RUNTIME_PACKAGES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "executorch", "ai-edge-litert", "tensorrt", "pycuda", "cuda-python",
)  # fmt: skip
PORTABLE = "executorch.extension.pybindings.portable_lib"
LITERT = "ai_edge_litert.interpreter"
# torch takes seconds to load, so what needs it shares a process.
LOCAL_IMPORTS = (("torchvision", PORTABLE), ("onnxruntime", "openvino", "tensorrt", LITERT))
DEVICE_IMPORTS = (
    ("numpy", "onnxruntime", LITERT),
    ("tensorrt", "pycuda.driver", "cuda.bindings.runtime", "openvino"),
    (PORTABLE,),
)
TOOLS = ("ssh", "adb", "aarch64-linux-gnu-g++", "trtexec", "tegrastats", "nvpmodel")
MODULES = {
    "torchvision": "torchvision",
    "onnxruntime": "onnxruntime",
    "executorch": PORTABLE,
    "ai-edge-litert": LITERT,
    "openvino": "openvino",
}
GOVERNOR_FIX = "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor"
HOST_TOOLS = {
    "ssh": ("sudo apt-get install openssh-client", "boards"),
    "adb": ("sudo apt-get install adb", "phones"),
    "aarch64-linux-gnu-g++": ("sudo apt-get install g++-aarch64-linux-gnu", "phones"),
}
DEVICE_FIXES = {
    "onnxruntime": "python3 -m pip install numpy onnxruntime",
    "executorch": "python3 -m pip install executorch torch",
    "ai-edge-litert": "python3 -m pip install ai-edge-litert",
    "openvino": "python3 -m pip install openvino",
}
# By the first number of Linux for Tegra: the JetPack, and the oldest and newest TensorRT that came with one of it.
JETPACKS: dict[int, tuple[int, str, str | None]] = {
    32: (4, "5.0", "8.2"),
    34: (5, "8.4", "8.4"),
    35: (5, "8.4", "8.6"),
    36: (6, "8.6", "10.3"),
    38: (7, "10.13", None),
    39: (7, "10.13", None),
}


def examine(device: Device) -> dict[str, Any]:
    """Run the probe on an open device. DeviceError without a Python of at least 3.8, or if no answer comes back.

    A phone is asked by its own commands instead.
    """
    if isinstance(device, AdbDevice):
        return examine_phone(device)
    about = device.describe()
    if older(about["python"], OLDEST_PYTHON):
        raise DeviceError(
            f"{device.url} has Python {about['python']}, and {OLDEST_PYTHON} is needed",
            hint="install a newer one there, and name its command in DSPKD_DEVICE_PYTHON",
        )
    local = device.url == "local"
    names = {*RUNTIME_PACKAGES, "openvino"} | ({*_base_packages(), *_extra_names()} if local else set())
    wanted = {"packages": sorted(names), "imports": LOCAL_IMPORTS if local else DEVICE_IMPORTS, "tools": TOOLS}
    device.push(Path(doctor_probe.__file__), "doctor_probe.py")
    done = device.run_python(["doctor_probe.py", json.dumps(wanted)], timeout=PROBE_SECONDS)
    if done.returncode != 0:
        raise DeviceError(f"{device.url}: the probe ended early: {done.last_line}", hint="repair its Python")
    more = {"litert_converter": _converter()} if local else {}
    return {**read_probe(done.stdout, device.url), "command": device.python, **more}


def read_probe(text: str, url: str) -> dict[str, Any]:
    """The probe's answer is the last line. DeviceError for anything else."""
    line = (text.strip().splitlines() or [""])[-1]
    try:
        value = json.loads(line)
    except ValueError:
        value = None
    keys = {"python", "machine", "packages", "imports", "tools", "free_bytes", "temporary_folder", "governor"}
    if not isinstance(value, dict) or value.get("probe") != doctor_probe.PROTOCOL or not keys <= value.keys():
        raise DeviceError(
            f"{url}: what came back is not of the probe: {line[:80]!r}",
            hint="its Python or its login scripts print something else on stdout",
        )
    return value


def check_machine(machine: Mapping[str, Any], url: str, artifacts: Sequence[Artifact]) -> list[Check]:
    """All checks of what `examine` found; the artifacts are those that shall run there."""
    if "phone" in machine:
        return list(phone_checks(machine, url, artifacts))
    runtimes = {runtime for artifact in artifacts for runtime in _runtimes(artifact.card.target)}
    if url == "local":
        checks = [*_local_checks(machine, runtimes)]
    else:
        checks = [_there(check, machine, url) for check in _device_checks(machine, runtimes)]
    return [*checks, *(check for artifact in artifacts for check in _artifact_checks(artifact, machine, url))]


def _runtimes(target: str) -> tuple[str, ...]:
    """The runtimes that an artifact of the target needs; none for those that no Python runs."""
    known = {
        "onnx": ("onnxruntime",),
        "tensorrt": ("tensorrt",),
        "executorch": ("executorch",),
        "executorch-openvino": ("executorch", "openvino"),
        "litert": ("ai-edge-litert",),
    }
    return known.get(target, ())


def _local_checks(machine: Mapping[str, Any], runtimes: set[str]) -> Iterator[Check]:
    yield Check("Python", "ok", f"{machine['python']} on {machine['machine']}")
    yield _package_check("dspkd's packages", _base_packages(), machine, needed=True, fix="pip install dspkd")
    for extra in EXTRAS:
        packages = _extra_packages(extra)
        needed = extra in NEEDED_EXTRAS or not runtimes.isdisjoint({*packages} - {"executorch"})
        needed = needed or (extra == "executorch" and "executorch" in runtimes)
        yield _package_check(f"dspkd[{extra}]", packages, machine, needed=needed, fix=f"pip install 'dspkd[{extra}]'")
    if "litert_converter" in machine:
        yield _converter_check(machine["litert_converter"])
    for tool, (fix, purpose) in HOST_TOOLS.items():
        path = machine["tools"].get(tool)
        yield Check(tool, "ok", path) if path else Check(tool, "not needed", f"not found; only for {purpose}", fix)
    yield from _jetson_checks(machine)
    if "tensorrt" in runtimes:
        yield from _driver_checks(machine)
    yield _disk_check(machine, ROOM_BYTES["local"])
    yield _governor_check(machine)


def _converter() -> dict[str, Any]:
    """Of the Python that exports to LiteRT."""
    try:
        return {"python": converter_python(), "there": has_converter(), "error": None}
    except (OSError, subprocess.TimeoutExpired) as error:
        return {"python": converter_python(), "there": False, "error": first_line(error)}


def _converter_check(found: Mapping[str, Any]) -> Check:
    name, python = "LiteRT's converter", found["python"]
    if found["error"]:
        return Check(name, "warning", f"{CONVERTER_PYTHON} names {python}: {found['error']}", HOW_TO_INSTALL)
    if found["there"]:
        return Check(name, "ok", python)
    return Check(name, "not needed", f"{python} has no litert-torch; only for --target litert", HOW_TO_INSTALL)


def _device_checks(machine: Mapping[str, Any], runtimes: set[str]) -> Iterator[Check]:
    yield Check("Python", "ok", f"{machine['python']} on {machine['machine']}, {machine.get('os') or 'unknown system'}")
    if not machine.get("pip"):
        yield Check("pip", "warning", "not found", "sudo apt-get install python3-pip")
    yield _import_check("numpy", "numpy", machine, needed=True, fix="python3 -m pip install numpy")
    yield from _runtime_checks(machine, runtimes)
    yield from _jetson_checks(machine)
    yield _disk_check(machine, ROOM_BYTES["device"])
    yield _governor_check(machine)


def _runtime_checks(machine: Mapping[str, Any], runtimes: set[str]) -> Iterator[Check]:
    """Each runtime that is there or needed; if there is none at all, onnxruntime is what is missing."""
    imports = machine["imports"]
    works = [name for name in ("onnxruntime", "tensorrt", PORTABLE, LITERT) if _works(imports.get(name))]
    for name, fix in DEVICE_FIXES.items():
        needed = name in runtimes or (name == "onnxruntime" and not works and not runtimes)
        yield _import_check(name, MODULES[name], machine, needed=needed, fix=fix)
    tensorrt_fix = "python3 -m pip install tensorrt"
    if _l4t(machine) is not None:
        tensorrt_fix = "sudo apt-get install python3-libnvinfer"
    if machine.get("nvidia_driver") or _l4t(machine) is not None or "tensorrt" in runtimes:
        yield _import_check("tensorrt", "tensorrt", machine, needed="tensorrt" in runtimes, fix=tensorrt_fix)
    else:
        yield Check("tensorrt", "not needed", "there is no NVIDIA driver")
    if _works(imports.get("tensorrt")):
        yield _cuda_check(machine)
    if "tensorrt" in runtimes:
        yield from _driver_checks(machine)


def _driver_checks(machine: Mapping[str, Any]) -> Iterator[Check]:
    """For what runs on TensorRT."""
    if not machine.get("nvidia_driver"):
        yield Check("NVIDIA driver", "missing", "no driver found", "sudo apt-get install nvidia-driver")


def _jetson_checks(machine: Mapping[str, Any]) -> Iterator[Check]:
    """TensorRT is built for the CUDA and the driver of its JetPack; another one may not load, or not see the GPU."""
    release = _l4t(machine)
    if release is None:
        return
    found = f"L4T {release.release}"
    known = JETPACKS.get(int(release.release.partition(".")[0]))
    if known is None:
        yield Check("Jetson", "ok", f"{found}: a JetPack unknown to this dspkd")
        return
    jetpack, oldest, newest = known
    said = f"{found}: JetPack {jetpack}, TensorRT {_span(oldest, newest)}"
    here = _version_of("tensorrt", machine)
    if here is None or _within(here, oldest, newest):
        yield Check("Jetson", "ok", said)
    else:
        fix = "sudo apt-get install --reinstall nvidia-jetpack python3-libnvinfer"
        yield Check("Jetson", "warning", f"{said}; there is {here}", fix)


def _span(oldest: str, newest: str | None) -> str:
    return f"{oldest} or later" if newest is None else oldest if oldest == newest else f"{oldest} to {newest}"


def _within(version: str, oldest: str, newest: str | None) -> bool:
    """8.2.1 is within 7.1 to 8.2."""
    here = numbers(version)[:2]
    return numbers(oldest) <= here and (newest is None or here <= numbers(newest))


def _cuda_check(machine: Mapping[str, Any]) -> Check:
    """TensorRT's module alone cannot hand pictures to the GPU."""
    for name in ("cuda.bindings.runtime", "pycuda.driver"):
        if _works(machine["imports"].get(name)):
            return Check("CUDA for Python", "ok", name.partition(".")[0])
    return Check("CUDA for Python", "warning", "neither cuda-python nor pycuda", "python3 -m pip install pycuda")


def _works(found: Mapping[str, Any] | None) -> bool:
    return found is not None and found["error"] is None


def _version_of(name: str, machine: Mapping[str, Any]) -> str | None:
    found = machine["imports"].get(MODULES.get(name, name)) or {}
    packages = machine["packages"]
    return packages.get(name) or packages.get(f"{name}-gpu") or found.get("version")


def _import_check(name: str, module: str, machine: Mapping[str, Any], *, needed: bool, fix: str) -> Check:
    found = machine["imports"].get(module)
    version = _version_of(name, machine)
    if found is None:
        return Check(name, "missing" if needed else "not needed", "not installed", fix)
    if found["error"] is not None:
        text = f"{version or 'there, but'} does not import: {found['error']}"
        return Check(
            name, "missing" if needed else "warning", text, f"{fix} --force-reinstall" if "pip" in fix else fix
        )
    providers = f" ({', '.join(found['providers'])})" if found.get("providers") else ""
    return Check(name, "ok", f"{version or 'imports'}{providers}")


def _package_check(
    name: str, packages: Mapping[str, str | None], machine: Mapping[str, Any], *, needed: bool, fix: str
) -> Check:
    """Packages by their metadata, and those whose libraries often do not fit also by importing them."""
    absent, faults, broken = [], [], []
    for package, oldest in packages.items():
        version = _version_of(package, machine)
        found = machine["imports"].get(MODULES.get(package, package))
        if version is None:
            absent.append(package)
        elif oldest is not None and older(version, oldest):
            faults.append(f"{package} is {version}, {oldest} is needed")
        elif found is not None and found["error"] is not None:
            faults.append(f"{package} {version} does not import: {found['error']}")
            broken.append(package)
    if absent:
        return Check(name, "missing" if needed else "not needed", f"not installed: {', '.join(absent)}", fix)
    if faults:
        # An installed version counts as enough for pip, so it has to be told.
        mend = shlex.join(["pip", "install", "--force-reinstall", *broken])
        upgrade = fix.replace("pip install", "pip install --upgrade", 1)
        return Check(name, "missing" if needed else "warning", "; ".join(faults), mend if broken else upgrade)
    shown = list(packages) if len(packages) <= 3 else ["torch", "torchvision"]
    return Check(name, "ok", ", ".join(f"{package} {_version_of(package, machine)}" for package in shown))


def _requirements() -> Iterator[tuple[str, str | None, str | None]]:
    """name, oldest version and extra of each requirement of the installed dspkd."""
    try:
        lines = requires("dspkd") or []
    except PackageNotFoundError as error:
        raise MissingDependencyError("dspkd itself is not installed", hint="pip install -e .") from error
    for line in lines:
        name = re.match(r"[A-Za-z0-9._-]+", line)
        oldest = re.search(r">=([0-9.]+)", line)
        extra = re.search(r"extra == ['\"]([^'\"]+)", line)
        if name is not None:
            yield name.group(), oldest.group(1) if oldest else None, extra.group(1) if extra else None


def _base_packages() -> dict[str, str | None]:
    return {name: oldest for name, oldest, extra in _requirements() if extra is None}


def _extra_packages(wanted: str) -> dict[str, str | None]:
    found = {name: oldest for name, oldest, extra in _requirements() if extra == wanted}
    return {**found, **EXTRA_PACKAGES.get(wanted, {})}


def _extra_names() -> set[str]:
    return {name for extra in EXTRAS for name in _extra_packages(extra)}


def _disk_check(machine: Mapping[str, Any], enough: int) -> Check:
    text = f"{machine['free_bytes'] / 2**30:.1f} GiB free in {machine['temporary_folder']}"
    if machine["free_bytes"] >= enough:
        return Check("disk", "ok", text)
    folder = shlex.quote(machine["temporary_folder"])
    return Check("disk", "warning", f"{text}, {enough / 2**30:.2g} wanted", f"du -xsh {folder}/* | sort -h")


def _governor_check(machine: Mapping[str, Any]) -> Check:
    governor = machine["governor"]
    if governor is None:
        return Check("governor", "not needed", "this system shows none")
    if governor == "performance":
        return Check("governor", "ok", governor)
    fix = GOVERNOR_FIX + (" && sudo jetson_clocks" if _l4t(machine) is not None else "")
    return Check("governor", "warning", f"{governor}: times vary with the clock", fix)


def _l4t(machine: Mapping[str, Any]) -> L4T | None:
    try:
        return parse_l4t(machine.get("nv_tegra_release") or "")
    except ValueError:
        return None


def _artifact_checks(artifact: Artifact, machine: Mapping[str, Any], url: str) -> Iterator[Check]:
    """Whether what made a model fits what shall run it."""
    if artifact.card.target == "tensorrt":
        yield from _engine_checks(artifact, machine, url)
        return
    if not _runtimes(artifact.card.target):
        reason = artifact.card.certificate.get("not_run", "no runtime of this dspkd runs it")
        yield Check(str(artifact.path), "not needed", reason)
    for runtime in _runtimes(artifact.card.target):
        made_by = artifact.card.details.get("converter", artifact.card.tools)
        made, here = made_by.get(runtime), _version_of(runtime, machine)
        if made is None or here is None or runtime == "onnxruntime":  # ONNX files carry a version of their own
            continue
        name, text = f"{artifact.path} on {runtime}", f"made by {made}, the runtime is {here}"
        if older(here, made):
            python = "pip" if url == "local" else "python3 -m pip"
            fix = f"{python} install '{runtime}=={made.partition('+')[0]}'"
            yield _there(Check(name, "warning", f"{text}, which is older and may refuse it", fix), machine, url)
        else:
            yield Check(name, "ok", text)


def _engine_checks(artifact: Artifact, machine: Mapping[str, Any], url: str) -> Iterator[Check]:
    details, here = artifact.card.details, _version_of("tensorrt", machine)
    if here is None:
        return
    oldest, built = details.get("oldest_tensorrt"), details.get("build", {}).get("tensorrt")
    name = f"{artifact.path} on tensorrt"
    if oldest is not None and older(here, oldest):
        yield Check(name, "warning", f"needs TensorRT {oldest} or later, there is {here}")
    elif built is not None and "." in built and numbers(built)[:3] != numbers(here)[:3]:  # trtexec says it undotted
        text = f"the engine is of TensorRT {built}, there is {here}, which cannot load it"
        fix = f"dspkd export STUDENT --target tensorrt --precision {artifact.card.precision} --device {url}"
        yield Check(name, "warning", text, fix)
    else:
        yield Check(name, "ok", f"TensorRT {here}" + ("" if built else "; the engine is still to be built"))


def _there(check: Check, machine: Mapping[str, Any], url: str) -> Check:
    """The same with a command that is given here and runs on the device, with the Python that was examined."""
    if url == "local" or check.fix is None:
        return check
    install = f"{machine.get('command', 'python3')} -m pip install"
    if machine.get("refuses_pip"):
        install += " --user --break-system-packages"
    fix = check.fix.replace("python3 -m pip install", install)
    terminal = "-t " if "sudo" in fix else ""
    return Check(check.name, check.state, check.found, f"ssh {terminal}{url} {shlex.quote(fix)}")
