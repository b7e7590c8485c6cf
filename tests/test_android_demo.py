"""The Android app: what it does to pictures and artifacts is run on a JDK; the rest of it is compiled against the
signatures of what it uses. Nothing here has been on a phone.
"""

import io
import json
import re
import shutil
import subprocess
import zipfile
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from broken_artifacts import edit, rehash, rewrite_golden
from PIL import ExifTags, Image

from dspkd.preprocess import load_rgb, resize_square
from dspkd_export.bounds import BOUNDS

ROOT = Path(__file__).resolve().parents[1]
APP = ROOT / "android_demo/app/src/main"
SOURCES = sorted((APP / "java").rglob("*.java"))
HERE = ROOT / "tests/android"
VECTORS = json.loads((ROOT / "tests/golden/resize.json").read_text(encoding="utf-8"))["vectors"]
ANDROID = "{http://schemas.android.com/apk/res/android}"


def resources():
    """{type: names} of what the XML files declare, as aapt collects them into R."""
    found = {"layout": set(), "id": set(), "string": set()}
    for file in (APP / "res").rglob("*.xml"):
        kind = file.parent.name.split("-")[0]
        if kind == "values":
            for element in ElementTree.parse(file).getroot():
                found.setdefault(element.tag, set()).add(element.get("name"))
        else:
            found.setdefault(kind, set()).add(file.stem)
            found["id"].update(re.findall(r"@\+id/(\w+)", file.read_text(encoding="utf-8")))
    return found


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    """Everything compiled, with every warning of javac an error."""
    if shutil.which("javac") is None or shutil.which("java") is None:
        pytest.skip("no JDK (apt install default-jdk-headless)")
    folder = tmp_path_factory.mktemp("android")
    api = folder / "api"
    for part in (HERE / "api.java.txt").read_text(encoding="utf-8").split("//// ")[1:]:
        name, _, text = part.partition("\n")
        (api / name).parent.mkdir(parents=True, exist_ok=True)
        (api / name).write_text(text, encoding="utf-8")
    fields = "".join(
        f"static final class {kind} {{ "
        + "".join(f"static final int {name} = {i}; " for i, name in enumerate(sorted(names)) if name.isidentifier())
        + "}\n"
        for kind, names in resources().items()
    )
    (api / "R.java").write_text(f"package org.dspkd.demo;\nfinal class R {{\n{fields}}}\n", encoding="utf-8")
    files = [*SOURCES, HERE / "Harness.java", HERE / "Json.java", *sorted(api.rglob("*.java"))]
    command = [
        "javac",
        *["-Xlint:all,-options", "-Werror", "--release", "11", "-encoding", "UTF-8", "-d"],
        folder / "classes",
        *files,
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder / "classes"


@pytest.fixture
def java(classes):
    def call(*arguments, given=b""):
        command = ["java", "-Xshare:auto", "-XX:TieredStopAtLevel=1", "-cp", classes, "org.dspkd.demo.Harness"]
        done = subprocess.run([*command, *map(str, arguments)], input=given, capture_output=True)
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    return call


def test_resizing_gives_the_golden_bytes(java):
    keys = ("width", "height", "seed", "size", "interpolation")
    hashes = java("resize", *(vector[key] for vector in VECTORS for key in keys)).decode().split()
    assert hashes == [vector["sha256"] for vector in VECTORS]


@pytest.mark.parametrize("orientation", range(10))
@pytest.mark.parametrize(("width", "height"), [(7, 4), (4, 7), (5, 5)])
def test_pictures_become_the_squares_of_pillow(java, tmp_path, orientation, width, height):
    """Turned, over white, and cut to the square whose odd remainder is the last column or row of the turned picture."""
    rgba = np.random.default_rng(orientation).integers(0, 256, (height, width, 4), dtype=np.uint8)
    image = Image.fromarray(rgba)
    exif = image.getexif()
    exif[ExifTags.Base.Orientation] = orientation
    image.save(tmp_path / "a.png", exif=exif)
    expected = resize_square(load_rgb(tmp_path / "a.png"), min(width, height), "bilinear")
    padded = np.pad(rgba, ((0, 0), (0, 2), (0, 0)))  # a bitmap's rows may be longer than its pixels
    given = padded.tobytes()
    assert java("square", width, height, 4 * (width + 2), orientation, given=given) == expected.tobytes()


def test_floats_are_those_of_single_precision(java):
    pixels = np.random.default_rng(0).integers(0, 256, (3, 3, 3), dtype=np.uint8)
    planes = json.loads(java("planes", 3, given=pixels.tobytes()))
    expected = pixels.transpose(2, 0, 1).astype(np.float32) / np.float32(255)
    np.testing.assert_array_equal(np.float32(planes), expected.ravel())


@pytest.mark.parametrize("precision", BOUNDS)
def test_the_bounds_are_those_of_verify(java, precision):
    assert float(java("allowed", precision)) == pytest.approx(BOUNDS[precision].golden)


def test_times_are_ranks(java):
    assert java("timing", *(k * 1_000_000 for k in (10, 1, 9, 2, 8, 3, 7, 4, 6, 5))).decode().split() == ["5.0", "9.0"]


def test_an_artifact_is_read(java, tiny_artifacts):
    first, *rest = java("read", tiny_artifacts["executorch"]).decode().splitlines()
    assert first == "ok [RED, GREEN, BLUE] 32 false"
    assert "fp32, 32 px" in rest[0] and "balanced accuracy" in rest[1]


def test_other_answers_than_at_export_are_noticed(java, tiny_artifacts):
    folder = tiny_artifacts["executorch"]
    assert java("check", folder, 0).startswith(b"true largest difference 0.0e+00")
    assert java("check", folder, 9e-5).startswith(b"true")
    assert java("check", folder, 2e-4).startswith(b"false largest difference 2.0e-04, allowed 1e-04")
    assert java("check", folder, "NaN").startswith(b"false")


def replace_golden(folder, content):
    (folder / "golden.npz").write_bytes(content)
    rehash(folder, "golden.npz")


def cut_an_array(folder):
    with zipfile.ZipFile(folder / "golden.npz") as z:
        entries = {name: z.read(name) for name in z.namelist()}
    with zipfile.ZipFile(folder / "golden.npz", "w") as z:
        for name, content in entries.items():
            z.writestr(name, content[:-1] if name == "pixels.npy" else content)
    rehash(folder, "golden.npz")


def with_array(folder, content):
    """golden.npz with these bytes for its pixels."""
    with zipfile.ZipFile(folder / "golden.npz", "w") as z:
        z.writestr("pixels.npy", content)
    rehash(folder, "golden.npz")


def header(shape, major=1):
    text = f"{{'descr': '|u1', 'fortran_order': False, 'shape': {shape}, }}".encode()
    return b"\x93NUMPY" + bytes([major, 0]) + len(text).to_bytes(2 if major == 1 else 4, "little") + text


def changed(folder, change):
    edit(folder, change, reseal=False)


DAMAGE = {
    "no manifest": (lambda f: (f / "artifact.json").unlink(), "artifact.json is missing: copy"),
    "half a manifest": (lambda f: (f / "artifact.json").write_text('{"schema'), "artifact.json cannot be read"),
    "no program": (lambda f: (f / "model.pte").unlink(), "model.pte is missing: copy"),
    "another program": (lambda f: (f / "model.pte").write_bytes(b"x"), "model.pte is not the file that artifact.json"),
    "no pictures": (lambda f: (f / "golden.npz").unlink(), "golden.npz is missing"),
    "no zip": (lambda f: replace_golden(f, b"x" * 100), "cannot be read"),
    "an array cut off": (cut_an_array, "golden.npz: pixels is cut off"),
    "sides whose product wraps": (
        lambda f: with_array(f, header((2**31 - 1, 2**31 - 1, 2**31 - 1, 3))),
        "golden.npz: pixels is damaged",
    ),
    "a side below nothing": (lambda f: with_array(f, header((-1, 8, 8, 3))), "golden.npz: pixels is empty"),
    "a header without end": (
        lambda f: with_array(f, header((1,), major=2)[:8] + b"\xff\xff\xff\x7f"),
        "golden.npz: pixels has no readable header",
    ),
    "pictures as floats": (
        lambda f: rewrite_golden(f, pixels=np.zeros((2, 32, 32, 3), np.float32)),
        "golden.npz: pixels is no uint8 array",
    ),
    "pictures of another size": (
        lambda f: rewrite_golden(f, pixels=np.zeros((1, 8, 8, 3), np.uint8), deployed=np.zeros((1, 3), np.float32)),
        "pictures of 8 px, not of 32",
    ),
    "an answer too few": (
        lambda f: rewrite_golden(f, deployed=np.zeros((1, 3), np.float32)),
        "golden.npz: 1 answers for",
    ),
    "another order of classes": (lambda f: changed(f, lambda m: m["classes"].reverse()), "name different classes"),
    "another target": (lambda f: changed(f, lambda m: m.update(target="onnx")), "this artifact is for onnx; this app"),
    "another schema": (
        lambda f: changed(f, lambda m: m.update(schema_version=9)),
        "schema_version 9; this app reads 2",
    ),
    "another precision": (lambda f: changed(f, lambda m: m.update(precision="int4")), "precision int4 is unknown"),
    "a certificate that failed": (
        lambda f: changed(f, lambda m: m["certificate"].update(passed=False)),
        "certificate of this artifact did not hold",
    ),
    "an interval of one end": (
        lambda f: changed(f, lambda m: m["certificate"]["deployed"]["intervals"].update(balanced_accuracy=[0.5])),
        "cannot be read",
    ),
    "hair removal": (
        lambda f: changed(f, lambda m: m["preprocess"].update(cleaning={"hair_removal": True})),
        "prepared with 'cleaning', which this app cannot do",
    ),
    "another filter": (
        lambda f: changed(f, lambda m: m["preprocess"].update(interpolation="lanczos")),
        "lanczos is unknown",
    ),
    "another crop": (
        lambda f: changed(f, lambda m: m["preprocess"].update(crop="none")),
        "crop is none; this app knows",
    ),
    "another layout": (
        lambda f: changed(f, lambda m: m["input"].update(layout="NHWC")),
        "layout is NHWC; this app knows",
    ),
    "text for a number": (
        lambda f: changed(f, lambda m: m["preprocess"].update(size="32")),
        "artifact.json: preprocess: size is no number",
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_artifact_is_refused_by_name(java, tiny_artifacts, tmp_path, damage):
    folder = tmp_path / "artifact"
    shutil.copytree(tiny_artifacts["executorch"], folder)
    spoil, message = DAMAGE[damage]
    spoil(folder)
    assert message in java("read", folder).decode()


def test_other_inputs_and_precisions_are_known(java, tiny_artifacts, tmp_path):
    folder = tmp_path / "artifact"
    shutil.copytree(tiny_artifacts["executorch"], folder)
    changed(folder, lambda m: (m["input"].update(dtype="uint8", layout="NHWC"), m.update(precision="int8")))
    assert java("read", folder).startswith(b"ok [RED, GREEN, BLUE] 32 true")
    assert java("check", folder, 4e-2).startswith(b"true")
    assert java("check", folder, 6e-2).startswith(b"false")


def zipped(entries):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w") as z:
        for name, content in entries.items():
            z.writestr(name, content)
    return packed.getvalue()


def test_only_the_files_of_an_artifact_come_out_of_a_zip(java, tmp_path):
    given = {"a/model.pte": b"1", "a/golden.npz": b"2", "../../artifact.json": b"3", "../../evil": b"4"}
    assert java("unzip", tmp_path / "in" / "new", given=zipped(given)) == b"ok\n"
    found = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert found == {"in/new/model.pte": b"1", "in/new/golden.npz": b"2", "in/new/artifact.json": b"3"}


@pytest.mark.parametrize("given", [b"", b"no zip at all", zipped({"model.pte": b"1"})], ids=["empty", "text", "a part"])
def test_another_file_is_no_model(java, tmp_path, given):
    assert java("unzip", tmp_path / "new", given=given).startswith(
        b"This file is no zip of one artifact. On the computer"
    )


def test_every_resource_that_is_used_exists():
    declared = resources()
    for file in [APP / "AndroidManifest.xml", *(APP / "res").rglob("*.xml")]:
        for kind, name in re.findall(r'"@(?!android)(\w+)/([\w.]+)"', file.read_text(encoding="utf-8")):
            assert name in declared.get(kind, ()), f"{file.name}: @{kind}/{name}"


def test_texts_are_formatted_with_what_they_ask_for():
    """Android finds a missing argument when the text is shown."""
    asked = {
        element.get("name"): len(set(re.findall(r"%(\d)\$", element.text)))
        for element in ElementTree.parse(APP / "res/values/strings.xml").getroot()
    }
    code = "".join(source.read_text(encoding="utf-8") for source in SOURCES)
    calls = re.findall(r"getString\(R\.string\.(\w+)((?:[^()]|\([^()]*\))*)\)", code)
    assert {name for name, _ in calls} >= {name for name, count in asked.items() if count}
    for name, rest in calls:
        assert len(re.findall(r",(?![^(]*\))", rest)) == asked[name], name


def test_the_app_can_send_nothing_away():
    """Also not with the permissions of a library: its manifest is merged into this one."""
    manifest = ElementTree.parse(APP / "AndroidManifest.xml").getroot()
    permissions = {e.get(f"{ANDROID}name"): dict(e.attrib) for e in manifest.iter("uses-permission")}
    assert "android.permission.INTERNET" in permissions
    assert {e["{http://schemas.android.com/tools}node"] for e in permissions.values()} == {"remove"}
    assert manifest.find("application").get(f"{ANDROID}allowBackup") == "false"
    exported = [e.get(f"{ANDROID}name") for e in manifest.iter() if e.get(f"{ANDROID}exported") == "true"]
    assert exported == ["org.dspkd.demo.MainActivity"]


def test_the_app_runs_the_programs_of_the_version_that_writes_them():
    version = re.search(r"^executorch==(.+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.M)[1]
    assert f"executorch={version}\n" in (ROOT / "android_demo/gradle.properties").read_text(encoding="utf-8")
