"""What a machine has to run models with: one file, the standard library, Python 3.8 and up; nothing of dspkd.

    python3 doctor_probe.py '{"packages": ["numpy"], "imports": [["numpy"]], "tools": ["trtexec"]}'

prints one JSON object on one line. Packages are looked up by their metadata. Modules are imported in processes of
their own, so that a library that crashes or hangs is an answer too; those of one list share a process, since they
would otherwise load the same library twice. Nothing stays behind, not even bytecode.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

PROTOCOL = 1
IMPORT_SECONDS = 40.0
MARK = "dspkd-probe "
# Beside PATH, where JetPack and the GPU driver put their programs.
TOOL_FOLDERS = ("/usr/src/tensorrt/bin", "/usr/sbin", "/usr/local/cuda/bin")
IMPORTER = """
import importlib, json, sys
for name in sys.argv[1:]:
    found = {"name": name, "version": None, "error": None}
    try:
        module = importlib.import_module(name)
        version = getattr(module, "__version__", None)
        found["version"] = None if version is None else str(version)
        if name == "onnxruntime":
            found["providers"] = list(module.get_available_providers())
    except Exception as error:
        lines = str(error).strip().splitlines()
        found["error"] = type(error).__name__ + (": " + lines[0] if lines else "")
    print("\\ndspkd-probe " + json.dumps(found), flush=True)
"""
_running: set[subprocess.Popen[str]] = set()


def package_version(name: str) -> str | None:
    try:
        return str(metadata.version(name))
    except Exception:  # a broken record must not end the whole probe
        return None


def is_there(module: str) -> bool:
    """Whether the module's top package can be found; nothing is imported."""
    try:
        return importlib.util.find_spec(module.partition(".")[0]) is not None
    except (ImportError, ValueError):
        return False


def try_imports(names: list[str], scratch: str) -> dict[str, Any]:
    """module -> version and error; after a crash the rest is tried in another process."""
    found: dict[str, Any] = {name: None for name in names if not is_there(name)}
    left = [name for name in names if name not in found]
    while left:
        said, end = _import_process(left, scratch)
        for line in said.splitlines():
            if line.startswith(MARK):
                answer = json.loads(line[len(MARK) :])
                found[answer.pop("name")] = answer
        left = [name for name in left if name not in found]
        if left:
            found[left.pop(0)] = {"version": None, "error": end}
    return found


def _environment(scratch: str) -> dict[str, str]:
    """Libraries leave files behind when imported: torch in the temporary folder, and ONNX Runtime, for what it reports
    to its maker, in the cache folder too, unless told not to."""
    folders = {"TMPDIR": scratch, "XDG_CACHE_HOME": scratch}
    return {**os.environ, **folders, "PYTHONDONTWRITEBYTECODE": "1", "ORT_DISABLE_TELEMETRY": "1"}


def _import_process(names: list[str], scratch: str) -> tuple[str, str]:
    """What it printed, and how it ended."""
    process = subprocess.Popen(
        [sys.executable, "-c", IMPORTER, *names],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        universal_newlines=True,
        errors="replace",
        env=_environment(scratch),
    )
    _running.add(process)
    try:
        said, _ = process.communicate(timeout=IMPORT_SECONDS)
        return said, f"the import ended Python with {_code(process.returncode)}"
    except subprocess.TimeoutExpired:
        process.kill()
        return process.communicate()[0] or "", f"the import took longer than {IMPORT_SECONDS:.0f} s"
    finally:
        _running.discard(process)


def _code(returncode: int) -> str:
    if returncode >= 0:
        return f"exit code {returncode}"
    try:
        return signal.Signals(-returncode).name
    except ValueError:
        return f"signal {-returncode}"


def _stop(number: int, frame: Any) -> None:
    for process in list(_running):
        process.kill()
    os._exit(128 + number)


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace").replace("\0", "").strip() or None
    except OSError:
        return None


def system_name() -> str | None:
    found = re.search(r'^PRETTY_NAME="?([^"\n]+)', _read("/etc/os-release") or "", re.MULTILINE)
    return found.group(1) if found else None


def nvidia_driver() -> str | None:
    """The driver's version, "present" where it does not say, None without one."""
    found = re.search(r"Kernel Module\D*?([0-9][0-9.]+)", _read("/proc/driver/nvidia/version") or "")
    if found:
        return found.group(1)
    # A Jetson's integrated GPU.
    return "present" if any(Path(path).exists() for path in ("/dev/nvhost-gpu", "/dev/nvidiactl")) else None


def refuses_pip() -> bool:
    """A Python that belongs to the system's packages and lets pip install only if told twice (PEP 668)."""
    in_venv = sys.prefix != sys.base_prefix
    return not in_venv and Path(sysconfig.get_path("stdlib"), "EXTERNALLY-MANAGED").exists()


def memory_kib() -> int | None:
    found = re.search(r"^MemTotal:\s*([0-9]+)", _read("/proc/meminfo") or "", re.MULTILINE)
    return int(found.group(1)) if found else None


def find_tool(name: str) -> str | None:
    path = os.pathsep.join([os.environ.get("PATH", os.defpath), *TOOL_FOLDERS])
    return shutil.which(name, path=path)


def probe(wanted: dict[str, Any]) -> dict[str, Any]:
    """`packages`: distribution names; `imports`: lists of modules; `tools`: programs."""
    # Beside this file, since that folder is removed even if the probe is ended.
    with tempfile.TemporaryDirectory(dir=Path(__file__).resolve().parent) as scratch, ThreadPoolExecutor(8) as pool:
        imports = list(pool.map(partial(try_imports, scratch=scratch), wanted.get("imports", [])))
    folder = tempfile.gettempdir()
    return {
        "probe": PROTOCOL,
        "python": platform.python_version(),
        "pip": is_there("pip"),
        "refuses_pip": refuses_pip(),
        "system": platform.system(),
        "machine": platform.machine(),
        "os": system_name(),
        "packages": {name: package_version(name) for name in wanted.get("packages", [])},
        "imports": {name: found for group in imports for name, found in group.items()},
        "tools": {name: find_tool(name) for name in wanted.get("tools", [])},
        "nvidia_driver": nvidia_driver(),
        "nv_tegra_release": _read("/etc/nv_tegra_release"),
        "temporary_folder": folder,
        "free_bytes": shutil.disk_usage(folder).free,
        "memory_kib": memory_kib(),
        "cores": os.cpu_count(),
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
    }


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, _stop)
    print(json.dumps(probe(json.loads(sys.argv[1]) if len(sys.argv) > 1 else {})), flush=True)
