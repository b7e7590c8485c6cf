"""What a board or a phone says of its power, heat and battery: text in, frozen values out, nothing is run or read here.

The text comes from `tegrastats`, hwmon folders, `nvpmodel -q` and /etc/nv_tegra_release of a Jetson, from the powercap
zones of a PC, and from
`dumpsys thermalservice`, `dumpsys battery`, power_supply files and `getprop` of a phone.

Units are in the names: mV, mA, mW, mJ, °C, MHz, MiB. What is not in a text is None or left out; a text that is not what
it should be is a ValueError that says what was expected. A reading that is known not to be one (the sentinel of a zone
that is off, the constant of a zone that has no sensor, a voltage among temperatures) is left out, so that no number
stands for something else.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

__all__ = [
    "L4T",
    "Battery",
    "Core",
    "PhoneIdentity",
    "PowerMode",
    "Rail",
    "TegraSample",
    "ThermalStatus",
    "accumulated_counter",
    "accumulated_power",
    "parse_battery",
    "parse_getprop",
    "parse_hwmon",
    "parse_l4t",
    "parse_nvpmodel",
    "parse_tegrastats",
    "parse_thermal_service",
    "phone_identity",
    "powercap_labels",
    "powercap_total",
    "total_rail",
]

INTEGER = re.compile(r"[+-]?[0-9]{1,18}")
NUMBER = re.compile(r"[+-]?[0-9]{1,9}(?:\.[0-9]{1,9})?(?:[eE][+-]?[0-9]{1,2})?")
# No sensor of a board or a phone that runs can be outside of this. -256 °C is a Tegra zone that is powered down.
COLDEST_C, HOTTEST_C = -60.0, 200.0


def _whole(text: str, what: str) -> int:
    """Raises ValueError if it is not a whole number in ASCII digits (int() alone would take more)."""
    if not INTEGER.fullmatch(text.strip()):
        raise ValueError(f"{what}: expected a whole number, got {text.strip()[:40]!r}")
    return int(text)


def _plausible_c(celsius: float) -> bool:
    return COLDEST_C < celsius < HOTTEST_C


# tegrastats ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Core:
    percent: float
    mhz: int | None


@dataclass(frozen=True, slots=True)
class TegraSample:
    """One line of tegrastats."""

    ram_used_mib: int
    ram_total_mib: int
    cores: tuple[Core | None, ...]
    """None is a core that is off. Empty if the line has no CPU field."""
    gpu_percent: float | None
    gpu_mhz: tuple[int, ...]
    """One clock per graphics cluster, empty if none is printed."""
    emc_percent: float | None
    emc_mhz: int | None
    temperatures_c: dict[str, float]
    rails_mw: dict[str, tuple[int, int]]
    """{name: (now, average since tegrastats started)}; a sensor near zero may read below it."""


RAM = re.compile(r"(?<![A-Za-z0-9])RAM ([0-9]{1,8})/([0-9]{1,8})MB(?![A-Za-z0-9])")
CPU = re.compile(r"(?<![A-Za-z0-9])CPU \[([^\[\]\n]*)\](?:@([0-9]{1,6}))?", re.IGNORECASE)
CORE = re.compile(r"([0-9]{1,3})%(?:@([0-9]{1,6}))?")
# Each of "0%", "0%@76", "12%@[1300,1300]" and, where the load is not counted, "@[1574,1574,1574]".
CLOCKS = r"@(?:([0-9]{1,6})|\[([0-9]{1,6}(?:,[0-9]{1,6}){0,15})\])"
LOAD = r"(?<![A-Za-z0-9_])%s(?:_FREQ)? (?:([0-9]{1,3})%%)?(?:" + CLOCKS + r")?(?=\s|$)"
GPU = re.compile(LOAD % "GR3D")
EMC = re.compile(LOAD % "EMC")
# JetPack 7 appends the peak: cpu@52.968C/53.1C.
TEMPERATURE = re.compile(
    r"(?<!\S)([A-Za-z][A-Za-z0-9_.-]*)@(-?[0-9]{1,4}(?:\.[0-9]{1,6})?)C(?:/-?[0-9.]{1,12}C)?(?!\S)"
)
# JetPack 4 prints 2000/2000 and means mW; 5 and 6 print 4000mW/4100mW; 7 appends the peak.
MW = r"(-?[0-9]{1,8})"
RAIL = re.compile(rf"(?<!\S)([A-Z][A-Z0-9_]*) (?:{MW}mW/{MW}mW(?:/-?[0-9]{{1,8}}mW)?|{MW}/{MW})(?!\S)")
# The PMIC's zone is made of two alarm bits, so without an alarm it says a constant: 100 °C, or 50 °C in later releases
# (MAX77620_NORMAL_OPERATING_TEMP in drivers/thermal/max77620_thermal.c of Linux).
PMIC_CONSTANTS_C = (50.0, 100.0)


def parse_tegrastats(line: str) -> TegraSample:
    """One line of JetPack 4 to 7, with or without a time in front. ValueError without its RAM field."""
    line = line.strip()
    ram = RAM.search(line)
    if ram is None or "\n" in line:
        raise ValueError(f"expected one line of tegrastats with 'RAM <used>/<total>MB', got {line[:60]!r}")
    used, total = int(ram[1]), int(ram[2])
    if used > total:
        raise ValueError(f"tegrastats: expected no more RAM in use than there is, got {ram[0]!r}")
    gpu_percent, gpu_mhz = _load(GPU, line)
    emc_percent, emc_mhz = _load(EMC, line)
    return TegraSample(
        ram_used_mib=used,
        ram_total_mib=total,
        cores=_cores(line),
        gpu_percent=gpu_percent,
        gpu_mhz=gpu_mhz,
        emc_percent=emc_percent,
        emc_mhz=emc_mhz[0] if emc_mhz else None,
        temperatures_c=_tegra_temperatures(line),
        rails_mw={m[1]: (int(m[2] or m[4]), int(m[3] or m[5])) for m in RAIL.finditer(line)},
    )


def _cores(line: str) -> tuple[Core | None, ...]:
    field = CPU.search(line)
    if field is None:
        return ()
    shared = int(field[2]) if field[2] else None
    return tuple(_core(text.strip(), shared) for text in field[1].split(","))


def _core(text: str, shared_mhz: int | None) -> Core | None:
    if text == "off":
        return None
    match = CORE.fullmatch(text)
    if match is None:
        raise ValueError(f"tegrastats: expected a core as '<load>%', '<load>%@<MHz>' or 'off', got {text[:40]!r}")
    return Core(float(match[1]), int(match[2]) if match[2] else shared_mhz)


def _load(pattern: re.Pattern[str], line: str) -> tuple[float | None, tuple[int, ...]]:
    field = pattern.search(line)
    if field is None:
        return None, ()
    clocks = field[2] or field[3]
    return float(field[1]) if field[1] else None, tuple(int(mhz) for mhz in clocks.split(",")) if clocks else ()


def _tegra_temperatures(line: str) -> dict[str, float]:
    found = {match[1]: float(match[2]) for match in TEMPERATURE.finditer(line)}
    return {
        name: celsius
        for name, celsius in found.items()
        if _plausible_c(celsius) and not (name.lower() == "pmic" and celsius in PMIC_CONSTANTS_C)
    }


# The board's input ---------------------------------------------------------------------------------------------------

AGX_XAVIER = ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")
# VIN_SYS_5V0 is the 5 V branch beside the two core rails, not the input they come from, so it is one of three addends.
# VDDQ_VDD2_1V8AO is fed with 5 V too (its steps of 20 mA are 99 mW), so it is taken to be in VIN_SYS_5V0 already.
AGX_ORIN = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
# A word of the board's model, and the rails whose sum is its input. The first that is found applies.
BOARDS: tuple[tuple[str, tuple[tuple[str, ...], ...]], ...] = (
    ("agx orin", (AGX_ORIN,)),
    ("agx xavier", (AGX_XAVIER,)),
    ("orin nano", (("VDD_IN",),)),
    ("orin nx", (("VDD_IN",),)),
    ("xavier nx", (("VDD_IN",),)),
    ("tx2", (("VDD_IN",),)),
    ("nano", (("POM_5V_IN",), ("VDD_IN",))),
)
BY_NAMES = (("VDD_IN",), ("POM_5V_IN",), AGX_ORIN, AGX_XAVIER)
# Thor's VIN is probably its input, but no document that says so was found.
NOT_KNOWN = ("thor",)


def total_rail(
    rails: Mapping[str, float | tuple[float, float]], board_hint: str | None = None
) -> tuple[tuple[str, ...], float] | None:
    """The names of the rails that make up the board's input, and their sum now in mW; None if that is not known.

    `rails` is TegraSample.rails_mw, or {name: mW}. `board_hint` is a model such as "NVIDIA Jetson AGX Orin Developer
    Kit"; a board that is named there is taken at its own rails or not at all. Without a known name the rails' own names
    decide. None also if a single rail says more than what should be its input: such a label is wrong.

    On AGX modules there is no sensor of the input: the sum leaves out the carrier board and the regulators' losses.

    Source: the sensors' labels in arch/arm64/boot/dts/nvidia/tegra234-p3701.dtsi (AGX Orin) and tegra234-p3767.dtsi
    (Orin NX and Nano) of Linux; for POM_5V_IN and the sum of AGX Xavier, NVIDIA's answers in its developer forum
    (topics 73608 and 81016).
    """
    now = {name: value[0] if isinstance(value, tuple) else value for name, value in rails.items()}
    names = next((names for names in _candidates(board_hint) if all(name in now for name in names)), None)
    if names is None:
        return None
    total = float(sum(now[name] for name in names))
    if len(names) == 1 and any(value > total for value in now.values()):
        return None
    return names, total


def _candidates(board_hint: str | None) -> tuple[tuple[str, ...], ...]:
    hint = (board_hint or "").lower().replace("-", " ").replace("_", " ")
    if any(word in hint for word in NOT_KNOWN):
        return ()
    return next((names for board, names in BOARDS if board in hint), BY_NAMES)


# hwmon ---------------------------------------------------------------------------------------------------------------

# The channels that are a supply. In an INA3221, in4 to in6 are voltages across the shunts and curr4 is a sum; in the
# INA2xx, in0 is the voltage across the shunt (Documentation/hwmon/ina3221.rst, ina238.rst and ina2xx.rst of Linux).
CHANNELS = {
    "ina3221": (1, 2, 3),
    **dict.fromkeys(("ina219", "ina220", "ina226", "ina228", "ina230", "ina231", "ina237", "ina238"), (1,)),
}
NOT_CONNECTED = "NC"


@dataclass(frozen=True, slots=True)
class Rail:
    """Signs are the sensor's own: below zero is current the other way round."""

    name: str
    mv: int | None
    ma: int | None
    mw: float


def parse_hwmon(files: Mapping[str, str]) -> list[Rail]:
    """The supplies of one hwmon folder, {file name: content}: inN_input in mV, currN_input in mA, powerN_input in µW.

    A channel is left out if it is disabled, labelled as not connected, or lacks what its power needs. ValueError if the
    chip is not a known power monitor or a content is not a whole number.
    """
    chip = files.get("name", "").strip()
    if chip not in CHANNELS:
        raise ValueError(f"hwmon: expected 'name' to be one of {', '.join(sorted(CHANNELS))}, got {chip[:40]!r}")
    rails = (_rail(files, chip, number) for number in CHANNELS[chip])
    return [rail for rail in rails if rail is not None]


def _rail(files: Mapping[str, str], chip: str, number: int) -> Rail | None:
    label = files.get(f"in{number}_label", "").strip()
    if files.get(f"in{number}_enable", "1").strip() == "0" or label == NOT_CONNECTED:
        return None
    mv, ma, uw = (_channel(files, f"{kind}{number}_input") for kind in ("in", "curr", "power"))
    mw = _milliwatts(mv, ma, uw)
    single = len(CHANNELS[chip]) == 1
    return None if mw is None else Rail(label or (chip if single else f"{chip}_{number}"), mv, ma, mw)


def _channel(files: Mapping[str, str], name: str) -> int | None:
    """None also for an empty file: that is what is left of a channel that answers 'no data'."""
    text = files.get(name, "").strip()
    return _whole(text, f"hwmon {name}") if text else None


def _milliwatts(mv: int | None, ma: int | None, uw: int | None) -> float | None:
    if uw is not None:
        # The chips' power register has no sign, their current has one.
        return math.copysign(uw / 1000, ma) if ma is not None and ma < 0 else uw / 1000
    return None if mv is None or ma is None else mv * ma / 1000


# Android: heat -------------------------------------------------------------------------------------------------------

STATUS_NAMES = ("NONE", "LIGHT", "MODERATE", "SEVERE", "CRITICAL", "EMERGENCY", "SHUTDOWN")
# android.os.Temperature. Left out: -1 (unknown, its unit is any), 6 to 8 (a battery's volts, milliamperes and percent).
TEMPERATURE_TYPES = {
    0: "CPU",
    1: "GPU",
    2: "BATTERY",
    3: "SKIN",
    4: "USB_PORT",
    5: "POWER_AMPLIFIER",
    9: "NPU",
    10: "TPU",
    11: "DISPLAY",
    12: "MODEM",
    13: "SOC",
    14: "WIFI",
    15: "CAMERA",
    16: "FLASHLIGHT",
    17: "SPEAKER",
    18: "AMBIENT",
    19: "POGO",
}
SERVICE_STATUS = re.compile(r"^[ \t]*Thermal Status:[ \t]*(.*)$", re.MULTILINE)
ZONE = re.compile(r"Temperature\{mValue=([^,{}\n]+), mType=(-?[0-9]{1,4}), mName=([^,{}\n]+), mStatus=([0-9])\}")


@dataclass(frozen=True, slots=True)
class ThermalStatus:
    status: int
    """0 to 6, of the whole phone."""
    name: str
    temperatures: dict[str, tuple[float, str, int]]
    """{name: (°C, type, status of this sensor)}"""
    source: str | None
    """"hal" for measured now, "cached" for the last that was reported, None if there are none."""
    overridden: bool
    """The status was set by hand (`cmd thermalservice override-status`)."""


def parse_thermal_service(text: str) -> ThermalStatus:
    """`dumpsys thermalservice` of Android 10 and later. ValueError without a 'Thermal Status' of 0 to 6."""
    found = SERVICE_STATUS.search(text)
    if found is None:
        raise ValueError("expected the output of dumpsys thermalservice with 'Thermal Status: <0 to 6>'")
    status = _whole(found[1], "Thermal Status")
    if not 0 <= status < len(STATUS_NAMES):
        raise ValueError(f"Thermal Status: expected 0 to 6, got {status}")
    now = _zones(_section(text, "Current temperatures from HAL:"))
    cached = {} if now else _zones(_section(text, "Cached temperatures:"))
    source = "hal" if now else "cached" if cached else None
    overridden = re.search(r"^[ \t]*IsStatusOverride: true\b", text, re.MULTILINE) is not None
    return ThermalStatus(status, STATUS_NAMES[status], now or cached, source, overridden)


def _section(text: str, heading: str) -> list[str]:
    """The lines after the heading, up to the first that is no sensor."""
    lines = iter(text.splitlines())
    for line in lines:
        if line.strip() == heading:
            break
    section = []
    for line in lines:
        if not line.strip().startswith("Temperature{"):
            break
        section.append(line.strip())
    return section


def _zones(lines: Sequence[str]) -> dict[str, tuple[float, str, int]]:
    zones = {}
    for line in lines:
        zone = ZONE.fullmatch(line)
        if zone is None or int(zone[2]) not in TEMPERATURE_TYPES or not NUMBER.fullmatch(zone[1]):
            continue
        if _plausible_c(float(zone[1])):
            zones[zone[3].strip()] = float(zone[1]), TEMPERATURE_TYPES[int(zone[2])], int(zone[4])
    return zones


# Android: battery ----------------------------------------------------------------------------------------------------

BATTERY_HEADING = "Current Battery Service state:"
BATTERY_STATUS = {1: "UNKNOWN", 2: "CHARGING", 3: "DISCHARGING", 4: "NOT_CHARGING", 5: "FULL"}
# One or two cells in series.
LEAST_MV, MOST_MV = 2500, 10_000
# More than 20 A is in no phone, so a larger number cannot be mA.
MOST_MA = 20_000
# A phone that is awake draws more than 30 mA and less than 10 A. Between 10 000 and 20 000 both units are far-fetched.
AWAKE_MA = range(30, 10_001)


@dataclass(frozen=True, slots=True)
class Battery:
    level_percent: float | None
    temperature_c: float | None
    voltage_mv: int | None
    """In steps of 1000 where the phone only says whole volts and sysfs is not readable."""
    ac_powered: bool | None
    usb_powered: bool | None
    wireless_powered: bool | None
    dock_powered: bool | None
    status: str | None
    """UNKNOWN, CHARGING, DISCHARGING, NOT_CHARGING or FULL."""
    overridden: bool
    """Values were set by hand (`dumpsys battery set` or `unplug`) and do not follow the phone."""
    discharge_ma: float | None
    """What leaves the battery, never below zero; None where that, or the unit, is not certain."""
    current_source: str
    """What was read, and what was assumed or why it was not used."""

    @property
    def on_battery(self) -> bool | None:
        """Whether no charger is connected; None if that is not known, or was set by hand."""
        flags = (self.ac_powered, self.usb_powered, self.wireless_powered, self.dock_powered)
        if self.overridden or all(flag is None for flag in flags):
            return None
        return not any(flags)


def parse_battery(dumpsys_text: str, sysfs: Mapping[str, str] | None = None) -> Battery:
    """`dumpsys battery`, and the files of /sys/class/power_supply/battery that could be read, {name: content}.

    From sysfs it takes current_now, voltage_now and status. Source: BatteryService.java of Android for the first (its
    temperature is in tenths of a degree), Documentation/ABI/testing/sysfs-class-power of Linux for the second (µA and
    µV; some Samsung phones say mA, and the sign of the current differs between vendors). ValueError without the
    heading of dumpsys battery, or if a number is not one.
    """
    if BATTERY_HEADING not in dumpsys_text:
        raise ValueError(f"expected the output of dumpsys battery with {BATTERY_HEADING!r}")
    fields, files = _battery_fields(dumpsys_text), sysfs or {}
    overridden = "UPDATES STOPPED" in dumpsys_text
    status = _battery_status(fields, files, overridden)
    discharge, source = _discharge(fields, files, status)
    return Battery(
        level_percent=_level(fields),
        temperature_c=_battery_celsius(fields),
        voltage_mv=_battery_mv(fields, files),
        ac_powered=_flag(fields, "AC powered"),
        usb_powered=_flag(fields, "USB powered"),
        wireless_powered=_flag(fields, "Wireless powered"),
        dock_powered=_flag(fields, "Dock powered"),
        status=status,
        overridden=overridden,
        discharge_ma=discharge,
        current_source=source,
    )


def _battery_fields(text: str) -> dict[str, str]:
    """The first of each name counts: vendors append sections of their own that may say a name again."""
    fields: dict[str, str] = {}
    for line in text.split(BATTERY_HEADING, 1)[1].splitlines():
        name, colon, value = line.partition(":")
        if colon:
            fields.setdefault(name.strip(), value.strip())
    return fields


def _field(fields: Mapping[str, str], name: str) -> int | None:
    return _whole(fields[name], name) if fields.get(name) else None


def _flag(fields: Mapping[str, str], name: str) -> bool | None:
    text = fields.get(name)
    if text is not None and text not in ("true", "false"):
        raise ValueError(f"{name}: expected true or false, got {text[:40]!r}")
    return None if text is None else text == "true"


def _level(fields: Mapping[str, str]) -> float | None:
    level, scale = _field(fields, "level"), _field(fields, "scale")
    scale = 100 if scale is None else scale
    return None if level is None or not 0 <= level <= scale or scale == 0 else 100 * level / scale


def _battery_celsius(fields: Mapping[str, str]) -> float | None:
    tenths = _field(fields, "temperature")
    return None if tenths is None or not _plausible_c(tenths / 10) else tenths / 10


def _battery_mv(fields: Mapping[str, str], files: Mapping[str, str]) -> int | None:
    """dumpsys says mV; a few vendors say µV, or whole volts: then the µV of sysfs are better."""
    said, measured = _field(fields, "voltage"), _field(files, "voltage_now")
    in_sysfs = measured // 1000 if measured is not None and _is_mv(measured / 1000) else None
    if said is None:
        return in_sysfs
    if _is_mv(said):
        return said
    if _is_mv(said / 1000):
        return said // 1000
    return in_sysfs if in_sysfs is not None or not _is_mv(said * 1000) else said * 1000


def _is_mv(value: float) -> bool:
    return LEAST_MV <= value <= MOST_MV


def _battery_status(fields: Mapping[str, str], files: Mapping[str, str], overridden: bool) -> str | None:
    """The kernel's word where dumpsys says what somebody has set."""
    kernel = files.get("status", "").strip().upper().replace(" ", "_")
    if overridden or "status" not in fields:
        return kernel if kernel in BATTERY_STATUS.values() else None
    number = _field(fields, "status")
    if number is not None and number not in BATTERY_STATUS:
        raise ValueError(f"battery status: expected 1 to 5, got {number}")
    return None if number is None else BATTERY_STATUS[number]


def _discharge(fields: Mapping[str, str], files: Mapping[str, str], status: str | None) -> tuple[float | None, str]:
    """(mA out of the battery or None, what was read and assumed)."""
    raw, origin = _field(files, "current_now"), "sysfs current_now"
    if raw is None:
        # Samsung's own line, for phones whose sysfs the shell may not read.
        raw, origin = _field(fields, "current now"), "dumpsys 'current now'"
    if raw is None:
        return None, "no current_now"
    read = f"{origin} {raw}, status {status or 'not known'}"
    ma, unit = _magnitude_ma(abs(raw), status)
    if ma is None:
        return None, f"{read}: {unit}"
    if status != "DISCHARGING":
        # A phone that charges from a weak port may still empty its battery, so "charging" is no direction.
        return None, f"{read}: {unit}, but only the status 'discharging' tells the direction: vendors' signs differ"
    return ma, f"{read}: {unit}, its sign not used: discharging leaves the battery"


def _magnitude_ma(size: int, status: str | None) -> tuple[float | None, str]:
    """(mA, which unit was assumed and why), or (None, why it is not certain). Android's contract is µA."""
    if size == 0:
        return None, "0 is also what a phone without the sensor says"
    if MOST_MA <= size <= 1000 * MOST_MA:
        return size / 1000, "taken as µA"
    if size > 1000 * MOST_MA:
        return None, "not a current of a phone in µA or mA"
    if status == "DISCHARGING" and size in AWAKE_MA:
        return float(size), "taken as mA: in µA it would be less than a phone that is awake draws"
    return None, "may be µA or mA"


# Identities ----------------------------------------------------------------------------------------------------------

PROPERTY = re.compile(r"\[([^\]]+)\]: \[(.*)")
POWER_MODE = re.compile(r"NV Power Mode:[ \t]*([A-Za-z0-9_.+-]+)[ \t]*(?:\r?\n[ \t]*([0-9]{1,4})[ \t]*(?=\r|\n|$))?")
L4T_RELEASE = re.compile(r"^# R([0-9]{1,3}) \(release\), REVISION: ([0-9]{1,4}(?:\.[0-9]{1,4}){0,2})(?![0-9.])", re.M)
JETPACK_OF_L4T = {32: 4, 34: 5, 35: 5, 36: 6, 38: 7, 39: 7}


@dataclass(frozen=True, slots=True)
class PhoneIdentity:
    model: str | None
    """Maker and model, as "samsung SM-S911B"."""
    soc: str | None
    """Maker and model, as "QTI SM8550"; before Android 12 the board platform alone."""
    android: str | None
    api_level: int | None
    abi: str | None


@dataclass(frozen=True, slots=True)
class PowerMode:
    name: str
    number: int | None


@dataclass(frozen=True, slots=True)
class L4T:
    release: str
    jetpack: int | None
    """None for a release whose JetPack is not known here."""


def parse_getprop(text: str) -> dict[str, str]:
    """All of `getprop`, {name: value}; a value may have several lines. ValueError if there is none."""
    properties: dict[str, str] = {}
    name, value = None, [""]
    for line in text.replace("\r\n", "\n").split("\n"):
        start = PROPERTY.fullmatch(line)
        if start is not None:
            name, value = start[1], [start[2]]
        else:
            value.append(line)
        if name is not None and line.endswith("]"):
            properties[name] = "\n".join(value)[:-1]
            name = None
    if not properties:
        raise ValueError("expected the output of getprop with lines as '[name]: [value]'")
    return properties


def phone_identity(props: Mapping[str, str]) -> PhoneIdentity:
    """ValueError if the API level is not a whole number."""
    level = props.get("ro.build.version.sdk", "").strip()
    soc = _joined(props, "ro.soc.manufacturer", "ro.soc.model") if props.get("ro.soc.model") else None
    return PhoneIdentity(
        model=_joined(props, "ro.product.manufacturer", "ro.product.model"),
        soc=soc or props.get("ro.board.platform") or None,
        android=props.get("ro.build.version.release") or None,
        api_level=_whole(level, "ro.build.version.sdk") if level else None,
        abi=props.get("ro.product.cpu.abi") or None,
    )


def _joined(props: Mapping[str, str], *names: str) -> str | None:
    return " ".join(props[name].strip() for name in names if props.get(name, "").strip()) or None


def parse_nvpmodel(text: str) -> PowerMode:
    """`nvpmodel -q`: the mode's name and, on the line after it, its number. ValueError without a name."""
    found = POWER_MODE.search(text)
    if found is None:
        raise ValueError("expected the output of nvpmodel -q with 'NV Power Mode: <name>'")
    return PowerMode(found[1], int(found[2]) if found[2] else None)


def parse_l4t(text: str) -> L4T:
    """/etc/nv_tegra_release. ValueError if its first words are not there."""
    found = L4T_RELEASE.search(text)
    if found is None:
        raise ValueError("expected /etc/nv_tegra_release with '# R<major> (release), REVISION: <minor>'")
    return L4T(f"{int(found[1])}.{found[2]}", JETPACK_OF_L4T.get(int(found[1])))


# Energy --------------------------------------------------------------------------------------------------------------

# A counter that was set back looks like one that ran through nearly all of its range.
MOST_W = 10_000.0


def accumulated_power(samples: Sequence[tuple[float, float]]) -> list[float]:
    """mJ since the first of the samples (seconds, mW) in order, at each of them: the trapezoids between neighbours.

    ValueError for fewer than two samples, times that do not grow, or a number that is not finite.
    """
    _check_samples(samples)
    return list(accumulate(((t1 - t0) * (p0 + p1) / 2 for (t0, p0), (t1, p1) in pairwise(samples)), initial=0.0))


def accumulated_counter(readings: Sequence[tuple[float, int]], range_uj: int) -> list[float]:
    """mJ since the first of the readings (seconds, µJ) of a powercap zone, at each of them.

    `range_uj` is the zone's max_energy_range_uj, after which the counter begins again at 0 (powercap.rst in
    Documentation/power/powercap of Linux). ValueError as for `accumulated_power`, and if the counter jumped: it was set
    back, or more than a whole range was missed.
    """
    _check_samples(readings)
    steps = []
    for (t0, e0), (t1, e1) in pairwise(readings):
        step = e1 - e0 if e1 >= e0 else e1 - e0 + range_uj
        if not 0 <= step <= MOST_W * 1e6 * (t1 - t0):
            raise ValueError(f"powercap: expected a counter that grows, got {e0} and then {e1} of {range_uj}")
        steps.append(step / 1000)
    return list(accumulate(steps, initial=0.0))


def _check_samples(samples: Sequence[tuple[float, float]]) -> None:
    if len(samples) < 2:
        raise ValueError(f"energy: expected at least two samples, got {len(samples)}")
    if not all(math.isfinite(number) for sample in samples for number in sample):
        raise ValueError("energy: expected finite numbers")
    if any(later <= earlier for (earlier, _), (later, _) in pairwise(samples)):
        raise ValueError("energy: expected times that grow from sample to sample")


def powercap_labels(names: Mapping[str, str]) -> dict[str, str]:
    """{zone: label} of {zone: content of its `name`}: "intel-rapl:0:2" is "package-0 dram"."""
    return {
        zone: f"{names[parent]} {name}" if (parent := zone.rpartition(":")[0]) in names else name
        for zone, name in names.items()
    }


def powercap_total(names: Mapping[str, str]) -> tuple[str, ...]:
    """The zones whose sum is the processors' energy and, where it is counted, their memory's: packages and `dram`.

    A package contains `core` and `uncore` and not `dram`. `psys` is a whole laptop and not counted on most machines.
    """
    return tuple(zone for zone, name in names.items() if name.startswith("package") or name == "dram")
