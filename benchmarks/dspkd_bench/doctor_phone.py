"""What a phone has for dspkd: what `doctor.py` says of a machine with Python, asked by a phone's own commands.

A phone runs ExecuTorch programs with the C++ runner, which is compiled on this machine. So what the runner is made of
is looked for here.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from dspkd.adb_device import AdbDevice
from dspkd.artifact import Artifact
from dspkd.errors import DspkdError
from dspkd_bench.check import Check, older
from dspkd_bench.phone import FIXED_PERFORMANCE_API, PhoneState, read_identity, read_state
from dspkd_bench.runner_build import MACHINES, look_for_parts

__all__ = ["examine_phone", "phone_checks"]

ANSWER_SECONDS = 20
ENOUGH_BYTES = 256 << 20
TARGET = "executorch"
FREE_KIB = re.compile(r"\s(\d+)\s+\d+%\s")
MEMORY_KIB = re.compile(r"^MemTotal:\s*(\d+)", re.MULTILINE)


def examine_phone(device: AdbDevice) -> dict[str, Any]:
    """Everything that `phone_checks` judges; DeviceError only if the phone does not answer."""
    machine = device.describe()["machine"]
    return {
        "phone": {**asdict(read_identity(device)), **asdict(read_state(device))},
        "machine": machine,
        "memory_kib": _number(device, ["cat", "/proc/meminfo"], MEMORY_KIB),
        "free_kib": _number(device, ["df", "-P", "-k", "."], FREE_KIB),
        "cores": _number(device, ["nproc"], re.compile(r"^(\d+)$", re.MULTILINE)),
        "runner": _runner(machine),
    }


def _number(device: AdbDevice, argv: Sequence[str], pattern: re.Pattern[str]) -> int | None:
    found = pattern.search(device.run(argv, timeout=ANSWER_SECONDS).stdout)
    return int(found[1]) if found else None


def _runner(machine: str) -> dict[str, str | None]:
    """The version of ExecuTorch that a runner for the phone can be made of here, or why none can be made."""
    try:
        return {"executorch": look_for_parts(machine), "error": None, "hint": None}
    except DspkdError as error:
        return {"executorch": None, "error": error.message, "hint": error.hint}


def phone_checks(machine: Mapping[str, Any], url: str, artifacts: Sequence[Artifact]) -> Iterator[Check]:
    phone = machine["phone"]
    yield Check("phone", "ok", ", ".join(filter(None, (phone["model"], phone["soc"]))) or "no known maker")
    yield _android_check(phone)
    yield _processor_check(machine)
    yield _runner_check(machine)
    yield _disk_check(machine, url)
    yield _mode_check(phone)
    yield from _state_checks(phone, url)
    for artifact in artifacts:
        yield _artifact_check(artifact, machine)


def _android_check(phone: Mapping[str, Any]) -> Check:
    if phone["android"] is None:
        return Check("Android", "warning", "it does not say which")
    level, abi = phone["api_level"], phone["abi"]
    return Check("Android", "ok", f"{phone['android']}, API level {level or 'unknown'}, {abi or 'unknown ABI'}")


def _processor_check(machine: Mapping[str, Any]) -> Check:
    kind, cores, memory = machine["machine"], machine["cores"], machine["memory_kib"]
    parts = [kind, f"{cores} cores" if cores else "", f"{memory / 2**20:.1f} GiB memory" if memory else ""]
    text = ", ".join(filter(None, parts))
    if kind in MACHINES:
        return Check("processor", "ok", text)
    return Check("processor", "missing", f"{text}: there is a runner for {' and '.join(MACHINES)} only")


def _runner_check(machine: Mapping[str, Any]) -> Check:
    runner, kind = machine["runner"], machine["machine"]
    if runner["error"] is None:
        return Check("runner", "ok", f"can be compiled here for {kind}, of executorch {runner['executorch']}")
    if kind not in MACHINES:
        return Check("runner", "not needed", "there is none for this processor")
    return Check("runner", "missing", runner["error"], runner["hint"])


def _disk_check(machine: Mapping[str, Any], url: str) -> Check:
    free = machine["free_kib"]
    if free is None:
        return Check("disk", "warning", "the free space is not known")
    text = f"{free / 2**20:.1f} GiB free"
    if free * 1024 >= ENOUGH_BYTES:
        return Check("disk", "ok", text)
    return Check("disk", "warning", f"{text}, {ENOUGH_BYTES / 2**30:.2g} wanted", _adb(url, "ls -l /data/local/tmp"))


def _mode_check(phone: Mapping[str, Any]) -> Check:
    level = phone["api_level"] or 0
    if level < FIXED_PERFORMANCE_API:
        return Check("fixed performance", "not needed", f"Android has it from API level {FIXED_PERFORMANCE_API} on")
    return Check("fixed performance", "ok", "is switched on while measuring, if this phone has and allows it")


def _state_checks(phone: Mapping[str, Any], url: str) -> Iterator[Check]:
    state = PhoneState(**{key: phone[key] for key in PhoneState.__dataclass_fields__})
    heat = state.thermal_status
    if heat not in (None, "NONE"):
        yield Check("heat", "warning", f"thermal status {heat}: let it cool down")
    else:
        yield Check("heat", "ok", f"thermal status {heat or 'not known'}")
    if state.battery_saver:
        fix = _adb(url, "settings put global low_power 0")
        yield Check("battery", "warning", f"{state.battery_text}; battery saver is on", fix)
    else:
        yield Check("battery", "ok", state.battery_text)


def _artifact_check(artifact: Artifact, machine: Mapping[str, Any]) -> Check:
    name, here = str(artifact.path), machine["runner"]["executorch"]
    if artifact.card.target != TARGET:
        fix = f"dspkd export STUDENT --target {TARGET} --precision {artifact.card.precision}"
        return Check(name, "missing", f"a phone runs {TARGET} programs, this is for {artifact.card.target}", fix)
    made = artifact.card.tools.get(TARGET)
    if made is not None and here is not None and older(here, made):
        fix = shlex.join(["pip", "install", f"{TARGET}=={made.partition('+')[0]}"])
        return Check(name, "warning", f"made by executorch {made}, the runner is of {here} and may refuse it", fix)
    return Check(name, "ok", f"runs on executorch {here}" if here else f"needs a runner for {machine['machine']}")


def _adb(url: str, command: str) -> str:
    adb, serial = os.environ.get("ADB", "adb"), url.removeprefix("adb:")
    return shlex.join([adb, "-s", serial, "shell", command])
