"""A phone as the place of a measurement: what it is, its heat and battery before and after, fixed-performance mode.

    with open_device("adb:") as device, watch_phone(device) as phone:
        ...
    phone.as_dict()

Nothing here ends a measurement: what a phone does not say, or says in another way than is known, is None. While it is
measured nothing is asked, since `dumpsys` takes time of the same processor.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any, Literal, TypeVar

from dspkd.adb_device import AdbDevice
from dspkd.devices import Device
from dspkd.errors import DeviceError
from dspkd_bench.sensors import (
    Battery,
    PhoneIdentity,
    ThermalStatus,
    parse_battery,
    parse_getprop,
    parse_thermal_service,
    phone_identity,
)

__all__ = ["Phone", "PhoneState", "read_identity", "read_state", "watch_phone"]

ANSWER_SECONDS = 20
# The first Android with `cmd power set-fixed-performance-mode-enabled`.
FIXED_PERFORMANCE_API = 30
FIXED_PERFORMANCE = ("cmd", "power", "set-fixed-performance-mode-enabled")
Mode = Literal["on", "not allowed", "not supported"]
Parsed = TypeVar("Parsed")


@dataclass(frozen=True, slots=True)
class PhoneState:
    thermal_status: str | None
    """NONE, LIGHT, MODERATE, SEVERE, CRITICAL, EMERGENCY or SHUTDOWN, of the whole phone."""
    temperatures_c: dict[str, float]
    battery_percent: float | None
    battery_c: float | None
    battery_status: str | None
    """UNKNOWN, CHARGING, DISCHARGING, NOT_CHARGING or FULL."""
    powered_by: str | None
    """AC, USB, wireless, dock, or battery."""
    battery_saver: bool | None

    @property
    def throttles(self) -> str | None:
        """Why it is slower than it could be, if it says so itself."""
        if self.thermal_status not in (None, "NONE"):
            return f"thermal status {self.thermal_status}"
        return "battery saver is on" if self.battery_saver else None

    @property
    def battery_text(self) -> str:
        status = (self.battery_status or "").replace("_", " ").lower()
        level = "" if self.battery_percent is None else f"{self.battery_percent:.0f} %"
        heat = "" if self.battery_c is None else f"{self.battery_c:.1f} °C"
        power = f"on {self.powered_by}" if self.powered_by else ""
        return ", ".join(filter(None, (level, heat, status, power))) or "not known"


@dataclass(slots=True)
class Phone:
    identity: PhoneIdentity
    fixed_performance: Mode
    before: PhoneState
    after: PhoneState | None = None
    """None if the connection was lost before."""

    @property
    def energy_text(self) -> str:
        charger = self.before.powered_by
        if charger in (None, "battery"):
            return "not measured: nothing reads the battery's current while a phone measures"
        return f"not measured: the phone was powered by {charger}, so its battery's current is not what it draws"

    @property
    def doubts(self) -> list[str]:
        """Why its times may not be what it can do."""
        states = {"before": self.before, "after": self.after}
        found = [(when, state.throttles) for when, state in states.items() if state is not None]
        return [f"the phone slowed itself down: {why} {when} the measurement" for when, why in found if why]

    def as_dict(self) -> dict[str, Any]:
        """What results.json says of the device."""
        identity = {key: value for key, value in asdict(self.identity).items() if key != "model"}
        return {
            **({"name": self.identity.model} if self.identity.model else {}),
            **identity,
            "fixed_performance": self.fixed_performance,
            "before": asdict(self.before),
            "after": asdict(self.after) if self.after else None,
            "facts": self.facts(),
        }

    def facts(self) -> dict[str, str]:
        level = f" (API level {self.identity.api_level})" if self.identity.api_level else ""
        said = {
            "Phone": self.identity.model,
            "System on a chip": self.identity.soc,
            "Android": f"{self.identity.android}{level}" if self.identity.android else None,
            "ABI": self.identity.abi,
            "Fixed-performance mode": self.fixed_performance,
            "Thermal status": self._both(lambda state: state.thermal_status or "not known"),
            "Battery": self._both(lambda state: state.battery_text),
            "Energy": self.energy_text,
        }
        return {label: text for label, text in said.items() if text is not None}

    def _both(self, text: Callable[[PhoneState], str]) -> str:
        after = text(self.after) if self.after else "not known"
        return f"{text(self.before)} before; {after} after"


@contextmanager
def watch_phone(device: Device) -> Iterator[Phone | None]:
    """None for a device that is not behind adb. Else its fixed-performance mode is switched on, if it has one.

    The phone itself switches the mode off when the device is closed, and also when the connection is cut.
    """
    if not isinstance(device, AdbDevice):
        yield None
        return
    identity = read_identity(device)
    phone = Phone(identity, _fix_performance(device, identity), read_state(device))
    yield phone
    state = read_state(device)
    phone.after = None if state == _UNKNOWN else state


_UNKNOWN = PhoneState(None, {}, None, None, None, None, None)


def read_identity(device: Device) -> PhoneIdentity:
    """All None for what is no Android."""
    return _parsed(device, ["getprop"], lambda text: phone_identity(parse_getprop(text))) or phone_identity({})


def read_state(device: Device) -> PhoneState:
    thermal = _parsed(device, ["dumpsys", "thermalservice"], parse_thermal_service)
    battery = _parsed(device, ["dumpsys", "battery"], parse_battery)
    saver = (_ask(device, ["settings", "get", "global", "low_power"]) or "").strip()
    return PhoneState(
        **_thermal(thermal),
        **_battery(battery),
        battery_saver={"0": False, "1": True}.get(saver),
    )


def _thermal(thermal: ThermalStatus | None) -> dict[str, Any]:
    # A status that was set by hand, and temperatures that are not of now, are no measurements.
    if thermal is None or thermal.overridden:
        return {"thermal_status": None, "temperatures_c": {}}
    now = thermal.temperatures if thermal.source == "hal" else {}
    return {
        "thermal_status": thermal.name,
        "temperatures_c": {name: celsius for name, (celsius, _, _) in now.items()},
    }


def _battery(battery: Battery | None) -> dict[str, Any]:
    if battery is None or battery.overridden:
        return dict.fromkeys(("battery_percent", "battery_c", "battery_status", "powered_by"))
    chargers = {
        "AC": battery.ac_powered,
        "USB": battery.usb_powered,
        "wireless": battery.wireless_powered,
        "dock": battery.dock_powered,
    }
    charger = next((name for name, on in chargers.items() if on), None)
    return {
        "battery_percent": battery.level_percent,
        "battery_c": battery.temperature_c,
        "battery_status": battery.status,
        "powered_by": charger or ("battery" if battery.on_battery else None),
    }


def _fix_performance(device: AdbDevice, identity: PhoneIdentity) -> Mode:
    if (identity.api_level or 0) < FIXED_PERFORMANCE_API:
        return "not supported"
    # Whether the mode was on before cannot be asked. Off is what a phone starts with.
    device.at_end([*FIXED_PERFORMANCE, "false"])
    try:
        done = device.run([*FIXED_PERFORMANCE, "true"], timeout=ANSWER_SECONDS)
    except DeviceError:
        return "not supported"
    said = done.stdout + done.stderr
    if "SecurityException" in said or "ermission" in said:
        return "not allowed"
    return "on" if done.returncode == 0 else "not supported"


def _ask(device: Device, argv: Sequence[str]) -> str | None:
    try:
        done = device.run(argv, timeout=ANSWER_SECONDS)
    except DeviceError:
        return None
    return done.stdout if done.returncode == 0 else None


def _parsed(device: Device, argv: Sequence[str], parse: Callable[[str], Parsed]) -> Parsed | None:
    text = _ask(device, argv)
    try:
        return None if text is None else parse(text)
    except ValueError:
        return None
