"""Compile the C++ measuring program against the executorch wheel, and gather all that a device needs to run it.

    kit = build_runner(Path("runner"), machine="aarch64", wheel=Path("executorch-1.5.1-...-aarch64.whl"))
    # copy kit.files into one folder of the device, run kit.command there, its models and settings appended

The wheel has C++ headers and shared libraries that need no torch. For this machine they are those of the installed
executorch; for another they come from that machine's wheel of the same version:

    pip download --no-deps --only-binary=:all: --platform manylinux_2_28_aarch64 executorch==VERSION

Those libraries are made for glibc, which a phone does not have: Android's own C library is bionic. So the kit carries
the compiler's glibc and its loader, and the program is started through that loader, which needs nothing of the
phone's but the kernel. A program of Android's own would need ExecuTorch built from source with the Android NDK, since
the wheel's libraries do not link with it; that is not supported here.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

from dspkd.data.pixels import default_cache_dir
from dspkd.errors import DeviceError, MissingDependencyError, OutputError, UsageError
from dspkd.fileio import atomic_dir, atomic_file, canonical_json, ensure_dir, sha256_bytes, sha256_file

__all__ = ["MACHINES", "RunnerKit", "build_runner", "look_for_parts"]

BINARY = "dspkd_runner"
SOURCE = Path(__file__).parent / "runner" / "runner.cpp"
WHEEL_VARIABLE = "DSPKD_EXECUTORCH_WHEEL"
LIBRARIES = (
    "libexecutorch.so",
    "libexecutorch_threadpool.so",
    "libexecutorch_kernels_optimized.so",
    "libexecutorch_kernels_quantized.so",
    "libexecutorch_backend_xnnpack.so",
)
SYSTEM_LIBRARIES = (
    "libc.so.6",
    "libm.so.6",
    "libstdc++.so.6",
    "libgcc_s.so.1",
    "libpthread.so.0",
    "libdl.so.2",
)
# The definitions that the wheel's own CMake package asks for.
DEFINITIONS = ("C10_USING_CUSTOM_GENERATED_MACROS", "ET_EVENT_TRACER_ENABLED", "ET_USE_THREADPOOL")
FLAGS = ("-std=c++17", "-O2", "-Wall", "-Wextra")
COMPILE_SECONDS = 300


@dataclass(frozen=True, slots=True)
class _Machine:
    loader: str
    elf: int
    """e_machine of an ELF header."""


MACHINES = {"x86_64": _Machine("ld-linux-x86-64.so.2", 62), "aarch64": _Machine("ld-linux-aarch64.so.1", 183)}


@dataclass(frozen=True, slots=True)
class RunnerKit:
    """A folder with the program, the runtime's libraries, and the C library that they were linked with."""

    machine: str
    runtime: str
    """As the program names it, e.g. "executorch 1.5.1"."""
    files: tuple[Path, ...]
    """All to be copied into one folder under their own names."""
    command: tuple[str, ...]
    """Starts the program in that folder."""
    executables: tuple[str, ...]
    """The names of the files that need the permission to execute."""


def build_runner(out: Path, *, machine: str, wheel: Path | None = None, compiler: str | None = None) -> RunnerKit:
    """Write the kit for `machine` ("x86_64" or "aarch64") into the folder `out`, replacing an earlier kit.

    `wheel` is a .whl file or a folder that one was unpacked into, by default $DSPKD_EXECUTORCH_WHEEL; it is not used
    for this machine's own kind unless given. `compiler` is a g++ or clang++ for that machine. The compiled program is
    kept in dspkd's cache. Raises MissingDependencyError without executorch, compiler or wheel, and DeviceError if they
    do not fit together.
    """
    _check_machine(machine)
    if out.exists() and not (out.is_dir() and ((out / BINARY).exists() or not any(out.iterdir()))):
        raise OutputError(f"{out} exists and is no earlier runner", hint="choose another folder")
    version = _installed_version()
    with _package(machine, wheel) as package:
        _check_package(package, machine, version)
        tool = _find_compiler(machine, compiler)
        binary = _cached_binary(package, machine, version, tool)
        loader = MACHINES[machine].loader
        parts = [binary, *(package / "lib" / name for name in LIBRARIES)]
        parts += [_of_compiler(tool, name) for name in (loader, *SYSTEM_LIBRARIES)]
        _copy_parts(out, [BINARY, *LIBRARIES, loader, *SYSTEM_LIBRARIES], parts)
    return RunnerKit(
        machine,
        f"executorch {version}",
        tuple(out / name for name in (BINARY, *LIBRARIES, loader, *SYSTEM_LIBRARIES)),
        (f"./{loader}", "--library-path", ".", f"./{BINARY}"),
        (BINARY, loader),
    )


def look_for_parts(machine: str) -> str:
    """The version of executorch that a runner for `machine` would have. Raises as `build_runner` does for what is not
    here; nothing is unpacked or compiled, so a part that does not fit is not noticed.
    """
    _check_machine(machine)
    version = _installed_version()
    if not _is_here(machine) and not (wheel := _wheel_of_environment(machine)).exists():
        raise _no_wheel(wheel)
    _find_compiler(machine, None)
    return version


def _check_machine(machine: str) -> None:
    if machine not in MACHINES:
        raise UsageError(f"there is no runner for {machine!r}", hint=f"choose from {', '.join(MACHINES)}")


def _is_here(machine: str) -> bool:
    return machine == platform.machine() and platform.system() == "Linux"


def _copy_parts(out: Path, names: Sequence[str], parts: Sequence[Path]) -> None:
    with atomic_dir(out) as folder:
        for name, part in zip(names, parts, strict=True):
            # The contents of links, not the links: a device does not have what they point to.
            shutil.copyfile(part, folder / name)
            (folder / name).chmod(0o755)


# The wheel ------------------------------------------------------------------------------------------


def _installed_version() -> str:
    try:
        return distribution("executorch").version.partition("+")[0]
    except PackageNotFoundError as error:
        raise MissingDependencyError(
            "building the runner needs executorch: the device gets the same version",
            hint="pip install 'dspkd[executorch]'",
        ) from error


@contextmanager
def _package(machine: str, wheel: Path | None) -> Iterator[Path]:
    """The folder `executorch` with headers and libraries for `machine`; what is unpacked for it is removed again."""
    if wheel is None:
        if _is_here(machine):
            yield Path(str(distribution("executorch").locate_file("executorch")))
            return
        wheel = _wheel_of_environment(machine)
    if wheel.is_dir():
        yield wheel / "executorch" if (wheel / "executorch").is_dir() else wheel
        return
    with tempfile.TemporaryDirectory(prefix="dspkd-wheel-") as folder:
        _unpack(wheel, Path(folder))
        yield Path(folder) / "executorch"


def _wheel_of_environment(machine: str) -> Path:
    if chosen := os.environ.get(WHEEL_VARIABLE):
        return Path(chosen)
    raise MissingDependencyError(
        f"a runner for {machine} needs executorch's wheel for {machine}",
        hint=f"pip download --no-deps --only-binary=:all: --platform manylinux_2_28_{machine} "
        f"executorch=={_installed_version()}, and name the file in {WHEEL_VARIABLE}",
    )


def _no_wheel(wheel: Path) -> MissingDependencyError:
    return MissingDependencyError(f"there is no executorch wheel at {wheel}", hint=f"check {WHEEL_VARIABLE}")


def _unpack(wheel: Path, folder: Path) -> None:
    if not wheel.is_file():
        raise _no_wheel(wheel)
    try:
        with zipfile.ZipFile(wheel) as archive:
            needed = ("executorch/include/", "executorch/lib/", "executorch/version.py")
            archive.extractall(folder, [name for name in archive.namelist() if name.startswith(needed)])
    except (zipfile.BadZipFile, EOFError, OSError) as error:
        raise DeviceError(f"{wheel} cannot be unpacked: {error}", hint="download the wheel again") from error


def _check_package(package: Path, machine: str, version: str) -> None:
    """DeviceError unless it has all that is linked, for `machine`, in the installed version."""
    missing = [name for name in ("include", *(f"lib/{name}" for name in LIBRARIES)) if not (package / name).exists()]
    if missing:
        raise DeviceError(f"{package} has no {', '.join(missing)}", hint="use an executorch wheel from 1.5 for Linux")
    found = re.search(r'__version__ = "([^"+]*)', _text(package / "version.py"))
    if not found or found[1] != version:
        raise DeviceError(
            f"the wheel is of executorch {found[1] if found else 'of no known version'}, installed here is {version}",
            hint=f"use the wheel of executorch {version}: programs and runtime belong together",
        )
    with (package / "lib" / LIBRARIES[0]).open("rb") as file:
        header = file.read(20)
    if header[:4] != b"\x7fELF" or int.from_bytes(header[18:20], "little") != MACHINES[machine].elf:
        raise DeviceError(f"the wheel is not for {machine}", hint=f"use the one whose name ends in {machine}.whl")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""


# The compiler ---------------------------------------------------------------------------------------


def _find_compiler(machine: str, compiler: str | None) -> str:
    own = _is_here(machine)
    name = compiler or ("g++" if own else f"{machine}-linux-gnu-g++")
    path = shutil.which(name)
    if path is None:
        package = "g++" if own else f"g++-{machine.replace('_', '-')}-linux-gnu"
        raise MissingDependencyError(
            f"there is no C++ compiler {name} for {machine}", hint=f"install one, on Debian: apt install {package}"
        )
    target = _ask(path, "-dumpmachine")
    if "android" in target:
        raise DeviceError(
            f"{name} is a compiler of the Android NDK, and the wheel's libraries do not link with it",
            hint="use a compiler for Linux with glibc; with the NDK, ExecuTorch itself has to be built from source",
        )
    if target.partition("-")[0] != machine:
        raise DeviceError(f"{name} compiles for {target}, not for {machine}", hint="name another compiler")
    return path


def _ask(compiler: str, question: str) -> str:
    try:
        done = subprocess.run([compiler, question], capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError(f"{compiler} {question} fails: {error}", hint="name another compiler") from error
    return done.stdout.strip()


def _of_compiler(compiler: str, name: str) -> Path:
    """The C library's file that the compiler links with."""
    path = Path(_ask(compiler, f"-print-file-name={name}"))
    # A compiler that does not find a file prints its bare name.
    if not path.is_absolute() or not path.is_file():
        raise MissingDependencyError(
            f"{compiler} has no {name}", hint="install the C and C++ libraries that go with it"
        )
    return path


def _cached_binary(package: Path, machine: str, version: str, compiler: str) -> Path:
    """Compiled once for the same source, libraries, flags and compiler."""
    parts = [sha256_file(SOURCE), *(sha256_file(package / "lib" / name) for name in LIBRARIES)]
    key = sha256_bytes(canonical_json([parts, version, FLAGS, DEFINITIONS, compiler, _ask(compiler, "--version")]))
    path = ensure_dir(default_cache_dir()) / f"runner-{machine}-{key[:20]}"
    if not path.is_file():
        with atomic_file(path) as temporary:
            _compile(package, version, compiler, temporary)
    return path


def _compile(package: Path, version: str, compiler: str, binary: Path) -> None:
    include = package / "include"
    c10 = include / "executorch" / "runtime" / "core" / "portable_type" / "c10"
    command = [compiler, *FLAGS, f'-DDSPKD_EXECUTORCH_VERSION="{version}"', *(f"-D{name}" for name in DEFINITIONS)]
    # As system headers, so that warnings are about this program.
    command += ["-isystem", str(include), "-isystem", str(c10), str(SOURCE), "-o", str(binary)]
    # Kernels and backends register themselves when they are loaded; nothing refers to them by name.
    command += ["-Wl,--no-as-needed", *(str(package / "lib" / name) for name in LIBRARIES), "-Wl,-rpath,$ORIGIN"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=COMPILE_SECONDS)
    except (OSError, subprocess.SubprocessError) as error:
        raise DeviceError(f"the runner cannot be compiled: {error}", hint="name another compiler") from error
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["the compiler says nothing"]
        cause = next((line for line in lines if "error" in line or "undefined" in line), lines[-1])
        raise DeviceError(f"the runner cannot be compiled: {cause}", hint="name another compiler, g++ from version 9")
