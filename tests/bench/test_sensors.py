"""Texts of boards and phones against numbers worked out by hand."""

# The files in data/sensors are texts in these public formats, with numbers of our own:
#
# tegrastats_nano_jp4 (Jetson Nano), _tx2_jp4 (Jetson TX2) and _agx_xavier_jp4 (Jetson AGX Xavier), JetPack 4: NVIDIA
# Tegra Linux Driver Package Development Guide 32.x, "tegrastats Utility"; which rail is the input:
# github.com/rbonghi/jetson_stats issue 51.
# tegrastats_xavier_nx_jp5 (Jetson Xavier NX), _agx_orin_jp5 (Jetson AGX Orin) and _orin_nano_jp6 (Jetson Orin Nano):
# NVIDIA Jetson Linux Developer Guide 35.x and 36.x, "tegrastats Utility"; the rails of the Orins are the labels in
# arch/arm64/boot/dts/nvidia/tegra234-p3701.dtsi and tegra234-p3767.dtsi of Linux.
# tegrastats_agx_orin_jp7 (Jetson AGX Orin) and _thor_jp7 (Jetson Thor), JetPack 7: the forms that
# jtop/tests/test_06_tegra_parse.py of github.com/rbonghi/jetson_stats has, and public logs of such boards.
# thermal_pixel (Google Pixel), _samsung (Galaxy A), _xiaomi and _oneplus (phones with a Snapdragon):
# ThermalManagerService.java and Temperature.java of Android; android.stackexchange.com/questions/246774.
# battery_pixel, _samsung, _xiaomi and _oneplus: BatteryService.java of Android; Samsung's own lines as on
# gh0st.tistory.com/6. Units of current_now: Documentation/ABI/testing/sysfs-class-power of Linux (µA);
# github.com/home-assistant/android issue 2846 and github.com/termux/termux-api pull request 293 (mA);
# github.com/MatteCarra/AccA issue 35 (a Pixel 3a that is plugged in and says 976 µA).
# hwmon: Documentation/hwmon/ina3221.rst and ina238.rst of Linux.
# getprop_xiaomi: getprop of Android. nvpmodel_* and nv_tegra_release_*: NVIDIA Jetson Linux Developer Guide.

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dspkd_bench.sensors import (
    L4T,
    Core,
    PhoneIdentity,
    PowerMode,
    Rail,
    accumulated_counter,
    accumulated_power,
    parse_battery,
    parse_getprop,
    parse_hwmon,
    parse_l4t,
    parse_nvpmodel,
    parse_tegrastats,
    parse_thermal_service,
    phone_identity,
    powercap_labels,
    powercap_total,
    total_rail,
)

DATA = Path(__file__).parent / "data" / "sensors"


def text(name: str) -> str:
    return (DATA / f"{name}.txt").read_text(encoding="utf-8")


def tegra(board: str):
    return parse_tegrastats(text(f"tegrastats_{board}"))


# tegrastats


def test_nano_of_jetpack_4():
    sample = tegra("nano_jp4")
    assert (sample.ram_used_mib, sample.ram_total_mib) == (1655, 3956)
    assert sample.cores == (Core(12.0, 102), Core(10.0, 102), None, None)
    assert (sample.gpu_percent, sample.gpu_mhz) == (16.0, (76,))
    assert (sample.emc_percent, sample.emc_mhz) == (3.0, 1600)
    expected = {"PLL": 36.5, "CPU": 39.0, "iwlwifi": 44.0, "GPU": 37.0, "AO": 47.5, "thermal": 38.25}
    assert sample.temperatures_c == expected, "the PMIC's constant is no temperature"
    assert sample.rails_mw == {"POM_5V_IN": (2247, 2189), "POM_5V_GPU": (78, 78), "POM_5V_CPU": (275, 281)}
    assert total_rail(sample.rails_mw, "NVIDIA Jetson Nano Developer Kit") == (("POM_5V_IN",), 2247.0)


def test_tx2_of_jetpack_4():
    sample = tegra("tx2_jp4")
    assert sample.cores == (Core(5.0, 345), None, None, Core(1.0, 345), Core(0.0, 345), Core(2.0, 348))
    assert sample.temperatures_c["Tdiode"] == 31.25 and "PMIC" not in sample.temperatures_c
    assert sample.rails_mw["VDD_4V0_WIFI"] == (0, 19) and len(sample.rails_mw) == 6
    assert total_rail(sample.rails_mw, "quill") == (("VDD_IN",), 1876.0)
    assert total_rail(sample.rails_mw, "NVIDIA Jetson TX2 Developer Kit") == (("VDD_IN",), 1876.0)


def test_agx_xavier_has_rails_and_temperatures_of_one_name():
    sample = tegra("agx_xavier_jp4")
    assert (sample.gpu_percent, sample.gpu_mhz, sample.emc_percent, sample.emc_mhz) == (7.0, (), 0.0, None)
    assert (sample.temperatures_c["GPU"], sample.rails_mw["GPU"]) == (32.0, (310, 155))
    assert (sample.temperatures_c["CPU"], sample.rails_mw["CPU"]) == (33.5, (216, 216))
    names = ("GPU", "CPU", "SOC", "CV", "VDDRQ", "SYS5V")
    # 310 + 216 + 864 + 0 + 144 + 1889
    assert total_rail(sample.rails_mw, "Jetson-AGX") == (names, 3423.0)
    assert total_rail(sample.rails_mw, "NVIDIA Jetson AGX Xavier") == (names, 3423.0)


def test_xavier_nx_of_jetpack_5():
    sample = tegra("xavier_nx_jp5")
    assert (sample.gpu_percent, sample.gpu_mhz) == (12.0, (510,))
    assert sample.rails_mw == {"VDD_IN": (4123, 4090), "VDD_CPU_GPU_CV": (622, 610), "VDD_SOC": (1204, 1199)}
    assert total_rail(sample.rails_mw) == (("VDD_IN",), 4123.0)


def test_agx_orin_sums_three_rails_and_drops_zones_that_are_off():
    sample = tegra("agx_orin_jp5")
    assert (sample.gpu_percent, sample.gpu_mhz) == (14.0, (407, 408))
    assert sample.cores[2:5] == (Core(100.0, 2201), Core(0.0, 2201), None)
    off = {"CV0", "CV1", "CV2", "GPU"}
    assert off.isdisjoint(sample.temperatures_c) and sample.temperatures_c["tj"] == 51.031
    names = ("VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0")
    # 3342 + 1909 + 3717, without the 397 that come out of the 5 V
    assert total_rail(sample.rails_mw, "NVIDIA Jetson AGX Orin Developer Kit") == (names, 8968.0)
    assert total_rail(sample.rails_mw) == (names, 8968.0)


def test_orin_nano_of_jetpack_6():
    sample = tegra("orin_nano_jp6")
    assert (sample.gpu_percent, sample.gpu_mhz, sample.emc_mhz) == (26.0, (305,), 2133)
    assert [core.mhz for core in sample.cores if core] == [1510, 1510, 729, 729, 729, 729]
    assert sample.temperatures_c["soc2"] == 45.343
    hint = "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super"
    assert total_rail(sample.rails_mw, hint) == (("VDD_IN",), 4900.0)


def test_jetpack_7_appends_peaks():
    sample = tegra("agx_orin_jp7")
    assert sample.temperatures_c == {"cpu": 52.968, "soc2": 48.406, "gpu": 47.625}
    assert sample.rails_mw["VDD_GPU_SOC"] == (5139, 4800)
    assert total_rail(sample.rails_mw)[1] == 13907.0


def test_thor_counts_no_load_shares_a_clock_and_reads_below_zero():
    sample = tegra("thor_jp7")
    assert sample.cores == (Core(0.0, 2601), Core(5.0, 2601), None)
    assert (sample.gpu_percent, sample.gpu_mhz) == (None, (1574, 1574, 1574))
    assert (sample.emc_percent, sample.emc_mhz) == (None, 4266)
    assert sample.rails_mw["VDD_GPU"] == (-392, -390)
    assert total_rail(sample.rails_mw, "NVIDIA Jetson AGX Thor Developer Kit") is None


def test_total_is_not_guessed():
    orin = tegra("agx_orin_jp5").rails_mw
    assert total_rail({"VIN_SYS_5V0": (3717, 3700)}) is None
    assert total_rail({}) is None
    assert total_rail({name: value for name, value in orin.items() if name != "VDD_CPU_CV"}) is None
    assert total_rail(orin, "NVIDIA Jetson Orin Nano") is None, "rails of another board than the one that is named"
    assert total_rail({"VDD_IN": (4900, 5000)}, "NVIDIA Jetson AGX Orin") is None
    assert total_rail({"POM_5V_IN": (3227, 3086), "POM_5V_GPU": (8949, 8742)}) is None, "a part above the whole"


def test_total_of_a_hwmon_folder():
    folder = {"name": "ina3221", "in1_label": "VDD_IN", "in1_input": "5000", "curr1_input": "1200"}
    assert total_rail({rail.name: rail.mw for rail in parse_hwmon(folder)}) == (("VDD_IN",), 6000.0)


def test_absent_fields_are_none_and_cut_ones_are_left_out():
    sample = parse_tegrastats("RAM 100/200MB (lfb 1x4MB) CPU [1%@729,0%@72")
    assert (sample.cores, sample.gpu_percent, sample.gpu_mhz) == ((), None, ())
    assert (sample.emc_percent, sample.temperatures_c, sample.rails_mw) == (None, {}, {})
    cut = parse_tegrastats("RAM 100/200MB GR3D_FREQ off cpu@45.5 VDD_SOC 10mW/20mW VDD_IN 4900mW/50")
    assert (cut.gpu_percent, cut.temperatures_c, cut.rails_mw) == (None, {}, {"VDD_SOC": (10, 20)})


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("", "RAM"),
        ("sh: tegrastats: not found", "RAM"),
        ("IRAM 0/252kB(lfb 252kB)", "RAM"),
        ("RAM 300/200MB", "no more RAM in use"),
        ("RAM 1/2MB\nRAM 1/2MB", "one line"),
        ("RAM 1/2MB CPU [1%@729,busy]", "core"),
    ],
)
def test_a_line_that_is_none(line, says):
    with pytest.raises(ValueError, match=says):
        parse_tegrastats(line)


# hwmon


def test_ina3221_of_orin_nano():
    folder = {
        "name": "ina3221\n",
        "in1_label": "VDD_IN\n",
        "in1_input": "4960\n",
        "curr1_input": "987\n",
        "in1_enable": "1\n",
        "in2_label": "VDD_CPU_GPU_CV\n",
        "in2_input": "4952\n",
        "curr2_input": "-8\n",
        "in3_label": "VDD_SOC\n",
        "in3_input": "4952\n",
        "curr3_input": "300\n",
        "in3_enable": "0\n",
        "in4_input": "5\n",
        "curr4_input": "1000\n",
    }
    # 4960 mV × 987 mA = 4 895 520 µW; 4952 mV × -8 mA = -39 616 µW; 3 is off, and 4 is no supply
    expected = [Rail("VDD_IN", 4960, 987, 4895.52), Rail("VDD_CPU_GPU_CV", 4952, -8, -39.616)]
    assert parse_hwmon(folder) == expected


def test_channels_without_a_connection_or_data_are_left_out():
    folder = {"name": "ina3221", "in1_label": "NC", "in1_input": "0", "curr1_input": "0"}
    assert parse_hwmon(folder) == []
    assert parse_hwmon({"name": "ina3221", "in2_label": "VDD_IN", "in2_input": "5000", "curr2_input": ""}) == []


def test_ina238_has_a_power_of_its_own_in_microwatts():
    folder = {
        "name": "ina238",
        "in0_input": "2",
        "in1_input": "19800",
        "curr1_input": "1500",
        "power1_input": "29640000",
    }
    assert parse_hwmon(folder) == [Rail("ina238", 19800, 1500, 29640.0)]
    assert parse_hwmon(folder | {"curr1_input": "-1500"})[0].mw == -29640.0
    del folder["power1_input"]
    # 19.8 V × 1.5 A
    assert parse_hwmon(folder)[0].mw == 29700.0


@pytest.mark.parametrize(
    "folder", [{}, {"name": "coretemp"}, {"name": "ina238", "in1_input": "5 V", "curr1_input": "1"}]
)
def test_a_folder_that_is_no_power_monitor(folder):
    with pytest.raises(ValueError, match=r"expected 'name'|in1_input: expected a whole number"):
        parse_hwmon(folder)


# thermalservice


def test_pixel_without_what_is_no_temperature():
    heat = parse_thermal_service(text("thermal_pixel"))
    assert (heat.status, heat.name, heat.source, heat.overridden) == (1, "LIGHT", "hal", False)
    assert heat.temperatures == {
        "TPU": (61.000004, "NPU", 0),
        "BIG": (64.0, "CPU", 0),
        "VIRTUAL-SKIN": (39.485527, "SKIN", 1),
    }


def test_samsung_is_read_from_the_hal_not_from_the_cache():
    heat = parse_thermal_service(text("thermal_samsung").replace("\n", "\r\n"))
    assert (heat.status, heat.name) == (0, "NONE")
    assert heat.temperatures["AP"] == (45.6, "CPU", 0)
    assert heat.temperatures["PA"] == (35.7, "POWER_AMPLIFIER", 0)
    assert len(heat.temperatures) == 5


def test_xiaomi_leaves_the_battery_monitor_out():
    heat = parse_thermal_service(text("thermal_xiaomi"))
    assert (heat.status, heat.name) == (3, "SEVERE")
    assert set(heat.temperatures) == {"battery", "skin", "nsp1", "GPU0", "CPU5"}
    assert heat.temperatures["skin"] == (45.136, "SKIN", 3)


def test_oneplus_without_a_hal_has_the_cache_and_a_status_set_by_hand():
    heat = parse_thermal_service(text("thermal_oneplus"))
    assert (heat.status, heat.name, heat.source, heat.overridden) == (4, "CRITICAL", "cached", True)
    assert heat.temperatures == {"shell_max": (38.5, "SKIN", 0)}


def test_every_status_has_its_name():
    names = [parse_thermal_service(f"Thermal Status: {number}").name for number in range(7)]
    assert names == ["NONE", "LIGHT", "MODERATE", "SEVERE", "CRITICAL", "EMERGENCY", "SHUTDOWN"]
    assert parse_thermal_service("Thermal Status: 0").source is None


@pytest.mark.parametrize("dump", ["", "Can't find service: thermalservice", "Thermal Status: 7", "Thermal Status: hot"])
def test_a_thermal_dump_that_is_none(dump):
    with pytest.raises(ValueError, match="Thermal Status"):
        parse_thermal_service(dump)


# battery


def test_pixel_on_battery_says_microamperes_below_zero():
    battery = parse_battery(text("battery_pixel"), {"current_now": "-523437\n", "voltage_now": "4163750\n"})
    assert (battery.level_percent, battery.temperature_c, battery.voltage_mv) == (84.0, 32.6, 4163)
    assert (battery.ac_powered, battery.usb_powered, battery.wireless_powered) == (False, False, False)
    assert (battery.status, battery.on_battery, battery.overridden) == ("DISCHARGING", True, False)
    assert battery.discharge_ma == pytest.approx(523.437)
    assert "-523437" in battery.current_source and "µA" in battery.current_source


def test_xiaomi_says_the_same_above_zero():
    battery = parse_battery(text("battery_xiaomi"), {"current_now": "412000"})
    assert battery.discharge_ma == 412.0
    assert battery.dock_powered is None and battery.on_battery is True


def test_samsung_says_milliamperes():
    battery = parse_battery(text("battery_xiaomi"), {"current_now": "-642"})
    assert battery.discharge_ma == 642.0 and "mA" in battery.current_source


def test_samsung_that_charges_is_ambiguous():
    battery = parse_battery(text("battery_samsung"))
    assert (battery.status, battery.usb_powered, battery.on_battery) == ("CHARGING", True, False)
    assert (battery.temperature_c, battery.voltage_mv) == (29.8, 4063)
    assert battery.discharge_ma is None
    assert "dumpsys 'current now' 321" in battery.current_source and "may be µA or mA" in battery.current_source


@pytest.mark.parametrize("raw", ["1250000", "-1250000", "976"])
def test_charging_tells_no_direction(raw):
    battery = parse_battery(text("battery_samsung"), {"current_now": raw})
    assert battery.discharge_ma is None and raw in battery.current_source


@pytest.mark.parametrize("raw", ["0", "12", "15000", "-15000", "20000001"])
def test_a_current_that_may_be_either_unit_or_none(raw):
    battery = parse_battery(text("battery_pixel"), {"current_now": raw})
    assert battery.discharge_ma is None and raw in battery.current_source


@pytest.mark.parametrize(
    ("raw", "discharge"), [("30", 30.0), ("10000", 10_000.0), ("20000", 20.0), ("20000000", 20_000.0)]
)
def test_the_limits_of_plausible_currents(raw, discharge):
    assert parse_battery(text("battery_pixel"), {"current_now": raw}).discharge_ma == discharge


def test_direction_needs_a_status():
    full = text("battery_pixel").replace("status: 3", "status: 5")
    battery = parse_battery(full, {"current_now": "-523437"})
    assert (battery.status, battery.discharge_ma) == ("FULL", None) and "direction" in battery.current_source


def test_oneplus_with_values_set_by_hand_is_taken_at_the_kernels_word():
    dump = text("battery_oneplus")
    alone = parse_battery(dump, {"current_now": "350"})
    assert alone.overridden and alone.status is None and alone.discharge_ma is None and alone.on_battery is None
    files = {"current_now": "350", "status": "Discharging\n", "voltage_now": "3912000"}
    battery = parse_battery(dump, files)
    assert (battery.status, battery.discharge_ma) == ("DISCHARGING", 350.0)
    assert (battery.level_percent, battery.temperature_c) == (60.0, 28.5)


@pytest.mark.parametrize(
    ("said", "files", "mv"),
    [
        ("4", {}, 4000),
        ("4", {"voltage_now": "3912000"}, 3912),
        ("4163000", {}, 4163),
        ("8650", {}, 8650),
        ("13", {}, None),
        ("0", {"voltage_now": "7"}, None),
    ],
)
def test_volts_in_the_units_of_vendors(said, files, mv):
    dump = text("battery_pixel").replace("voltage: 4163", f"voltage: {said}")
    assert parse_battery(dump, files).voltage_mv == mv


def test_a_name_that_a_vendor_repeats_counts_once():
    assert parse_battery(text("battery_pixel") + "VENDOR:\n  level: 5\n  voltage: 1\n").level_percent == 84.0


def test_zero_is_not_taken_for_a_measured_current():
    battery = parse_battery(text("battery_pixel"), {"current_now": "0"})
    assert battery.discharge_ma is None and "without the sensor" in battery.current_source


def test_what_a_battery_does_not_say_is_none():
    battery = parse_battery("Current Battery Service state:\n  level: 300\n  temperature: -9999\n")
    values = dataclasses.asdict(battery)
    assert (values.pop("current_source"), values.pop("overridden")) == ("no current_now", False)
    assert set(values.values()) == {None} and battery.on_battery is None


@pytest.mark.parametrize(
    ("dump", "files", "says"),
    [
        ("", {}, "Current Battery Service state"),
        ("Current Battery Service state:\n level: many", {}, "level: expected a whole number"),
        ("Current Battery Service state:\n AC powered: 1", {}, "AC powered: expected true or false"),
        ("Current Battery Service state:\n status: 9", {}, "expected 1 to 5"),
        (
            "Current Battery Service state:",
            {"current_now": "Permission denied"},
            "current_now: expected a whole number",
        ),
    ],
)
def test_a_battery_dump_that_is_none(dump, files, says):
    with pytest.raises(ValueError, match=says):
        parse_battery(dump, files)


# identities


def test_getprop_with_values_of_several_lines():
    props = parse_getprop(text("getprop_xiaomi").replace("\n", "\r\n"))
    assert props["persist.sys.note"] == "first line\nsecond line [with a bracket] of it"
    assert props["ro.vendor.empty"] == "" and len(props) == 11
    assert phone_identity(props) == PhoneIdentity("Xiaomi 2210132G", "QTI SM8550", "14", 34, "arm64-v8a")


def test_a_property_that_is_cut_is_left_out():
    assert parse_getprop("[a]: [1\n[b]: [2]\nnoise]\n[c]: [3") == {"b": "2"}


def test_an_older_phone_has_a_board_platform_alone():
    assert phone_identity({"ro.board.platform": "sdm845"}) == PhoneIdentity(None, "sdm845", None, None, None)
    assert phone_identity({}) == PhoneIdentity(None, None, None, None, None)
    with pytest.raises(ValueError, match=r"ro\.build\.version\.sdk"):
        phone_identity({"ro.build.version.sdk": "new"})


def test_power_modes():
    assert parse_nvpmodel(text("nvpmodel_nano")) == PowerMode("MAXN", 0)
    assert parse_nvpmodel(text("nvpmodel_xavier_nx_verbose")) == PowerMode("MODE_15W_6CORE", 2)
    assert parse_nvpmodel("NV Power Mode: 25W\r\n1\r\n") == PowerMode("25W", 1)
    assert parse_nvpmodel("NV Power Mode: 25W") == PowerMode("25W", None)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("# R32 (release), REVISION: 7.1, GCID: 29818004, BOARD: t210ref, EABI: aarch64", L4T("32.7.1", 4)),
        ("# R34 (release), REVISION: 1.1, GCID: 1", L4T("34.1.1", 5)),
        ("# R35 (release), REVISION: 4.1, GCID: 1", L4T("35.4.1", 5)),
        ("# R38 (release), REVISION: 2.0, GCID: 1", L4T("38.2.0", 7)),
        ("# R39 (release), REVISION: 2.0, GCID: 1", L4T("39.2.0", 7)),
        ("# R28 (release), REVISION: 2.1, GCID: 1", L4T("28.2.1", None)),
        ("# R37 (release), REVISION: 1.0, GCID: 1", L4T("37.1.0", None)),
    ],
)
def test_releases(line, expected):
    assert parse_l4t(line) == expected


def test_release_of_a_whole_file():
    assert parse_l4t(text("nv_tegra_release_orin_nano")) == L4T("36.3.0", 6)


@pytest.mark.parametrize(
    ("parse", "says"), [(parse_getprop, "getprop"), (parse_nvpmodel, "nvpmodel"), (parse_l4t, "nv_tegra_release")]
)
def test_identities_that_are_none(parse, says):
    with pytest.raises(ValueError, match=says):
        parse("command not found")


# energy


def test_energy_of_trapezoids():
    # 1 s from 1 W to 3 W, then 2 s of 3 W
    assert accumulated_power([(5.0, 1000.0), (6.0, 3000.0), (8.0, 3000.0)]) == [0.0, 2000.0, 8000.0]


def test_power_the_other_way_round_is_energy_below_zero():
    assert accumulated_power([(10.0, -100.0), (12.0, -100.0)]) == [0.0, -200.0]


@pytest.mark.parametrize(
    "samples",
    [[], [(0.0, 1.0)], [(1.0, 1.0), (1.0, 1.0)], [(2.0, 1.0), (1.0, 1.0)], [(0.0, math.nan), (1.0, 1.0)]],
)
@pytest.mark.parametrize("accumulate", [accumulated_power, lambda samples: accumulated_counter(samples, 1000)])
def test_energy_needs_samples_in_order(samples, accumulate):
    with pytest.raises(ValueError, match="energy: expected"):
        accumulate(samples)


def test_a_counter_in_microjoules_begins_again_at_its_range():
    # 262 143 328 850 µJ is what a desktop processor says; 1 J a step
    full = 262_143_328_850
    readings = [(0.0, full - 1_500_000), (0.1, full - 500_000), (0.2, 500_000), (0.3, 1_500_000), (0.4, 1_500_000)]
    assert accumulated_counter(readings, full) == [0.0, 1000.0, 2000.0, 3000.0, 3000.0]


@pytest.mark.parametrize("after", [0, 499_999])
def test_a_counter_that_was_set_back_is_no_energy(after):
    with pytest.raises(ValueError, match="expected a counter that grows, got 500000 and then"):
        accumulated_counter([(0.0, 500_000), (0.1, after)], 262_143_328_850)
    with pytest.raises(ValueError, match="expected a counter that grows"):
        accumulated_counter([(0.0, 500_000), (0.1, after)], 0)


def test_zones_of_a_server_and_of_a_laptop():
    server = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "dram",
        "intel-rapl:1": "package-1",
        "intel-rapl:1:0": "dram",
    }
    assert powercap_total(server) == tuple(server)
    assert list(powercap_labels(server).values()) == ["package-0", "package-0 dram", "package-1", "package-1 dram"]
    laptop = {
        "intel-rapl:0": "package-0",
        "intel-rapl:0:0": "core",
        "intel-rapl:0:1": "uncore",
        "intel-rapl:1": "psys",
    }
    assert powercap_total(laptop) == ("intel-rapl:0",)
    assert powercap_labels(laptop)["intel-rapl:0:1"] == "package-0 uncore"


# any text

PIECES = [
    *("0", "9", "-256", "1e9", "9" * 25, "٣", "NaN", "@", "C", "/", "mW", "MB", "%", "off", "true"),
    *(" ", "[", "]", "{", "}", ",", ":", "\n", "\r"),
    "RAM 1/2MB",
    "CPU [",
    "GR3D_FREQ ",
    "EMC_FREQ ",
    "VDD_IN ",
    "cpu@",
    "Thermal Status: ",
    "Current temperatures from HAL:\n",
    "Temperature{mValue=1, mType=0, mName=a, mStatus=0}",
    "Temperature{mValue=",
    ", mType=3, mName=",
    "Current Battery Service state:\n",
    "status: ",
    "level: ",
    "scale: ",
    "voltage: ",
    "temperature: ",
    "current now: ",
    "AC powered: ",
    "[ro.build.version.sdk]: [",
    "]\n",
    "NV Power Mode: ",
    "# R36 (release), REVISION: ",
]
TEXTS = st.one_of(st.text(), st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join))
FILES = st.dictionaries(
    st.sampled_from(["name", "in1_label", "in1_enable", "in1_input", "curr1_input", "power1_input"])
    | st.sampled_from(["current_now", "voltage_now", "status"]),
    TEXTS | st.integers().map(str) | st.sampled_from(["ina3221", "ina238", "Charging", "Discharging"]),
)


def numbers(value: object) -> list[float]:
    """All numbers in what a parser returned."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return numbers([getattr(value, field.name) for field in dataclasses.fields(value)])
    if isinstance(value, dict):
        return numbers(list(value.values()))
    if isinstance(value, (list, tuple)):
        return [number for item in value for number in numbers(item)]
    return [float(value)] if isinstance(value, (int, float)) else []


@settings(max_examples=300, deadline=None)
@given(TEXTS, FILES)
def test_any_text_gives_a_finite_answer_or_a_value_error(dump, files):
    parsers = (
        lambda: parse_tegrastats(dump),
        lambda: total_rail(parse_tegrastats(dump).rails_mw, dump),
        lambda: parse_hwmon(files),
        lambda: parse_thermal_service(dump),
        lambda: parse_battery(dump, files),
        lambda: phone_identity(parse_getprop(dump)),
        lambda: parse_nvpmodel(dump),
        lambda: parse_l4t(dump),
    )
    for parse in parsers:
        try:
            answer = parse()
        except ValueError as error:
            assert "expected" in str(error)
        else:
            assert all(map(math.isfinite, numbers(answer)))


@settings(max_examples=200, deadline=None)
@given(st.text(alphabet=st.characters(exclude_characters="R#NTC[")))
def test_text_without_the_words_of_a_format_never_gives_an_answer(dump):
    for parse in (parse_tegrastats, parse_thermal_service, parse_battery, parse_getprop, parse_nvpmodel, parse_l4t):
        with pytest.raises(ValueError, match="expected"):
            parse(dump)
