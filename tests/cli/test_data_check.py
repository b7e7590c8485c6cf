"""`dspkd data check`: a clean set passes, and each kind of damage is named, alone and among the others."""

import csv
import json
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dspkd.data.download import DOWNLOAD
from dspkd.data.sources import read_table
from dspkd.data.split import make_split, save_split

README = Path(__file__).resolve().parents[2] / "README.md"
CLASSES = ("MEL", "NV", "BCC")
IMAGES = 60


def name(i):
    return f"img_{i:02d}"


def picture(seed, size=(64, 48)):
    """Random blotches with a grain, so that no two look alike and JPEG keeps them."""
    rng = np.random.default_rng(seed)
    blotches = Image.fromarray(rng.integers(0, 256, (10, 10, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    grain = rng.normal(0, 12, (size[1], size[0], 1))
    return Image.fromarray(np.clip(np.asarray(blotches) + grain, 0, 255).astype(np.uint8))


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f, lineterminator="\n").writerows(rows)


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    """60 pictures of three classes, two of a lesion, in the ISIC 2019 layout."""
    root = tmp_path_factory.mktemp("clean") / "set"
    (root / "images").mkdir(parents=True)
    truth, metadata = [["image", *CLASSES, "UNK"]], [["image", "lesion_id"]]
    for i in range(IMAGES):
        picture(i).save(root / "images" / f"{name(i)}.jpg", quality=92)
        truth.append([name(i), *("1.0" if i // 2 % 3 == k else "0.0" for k in range(3)), "0.0"])
        metadata.append([name(i), f"lesion_{i // 2}"])
    write_csv(root / "GroundTruth.csv", truth)
    write_csv(root / "metadata.csv", metadata)
    return root


@pytest.fixture(scope="module")
def split(clean):
    path = clean.parent / "split.json"
    save_split(make_split(read_table(clean)), path)
    return path


@pytest.fixture
def copy(clean, tmp_path):
    return shutil.copytree(clean, tmp_path / "set")


@pytest.fixture
def check(dspkd):
    """check(folder, ...) -> (exit code, JSON). Never a traceback, and nothing but the one line of an error."""

    def call(*arguments):
        code, out, err = dspkd("data", "check", *arguments, "--json")
        lines = err.strip().splitlines()
        assert len(lines) == (1 if code else 0), err
        assert all(line.startswith("dspkd: error: ") for line in lines)
        return code, json.loads(out)

    return call


def file(root, i):
    return root / "images" / f"{name(i)}.jpg"


def edit_rows(path, change):
    """`change(row)` returns the rows that stand in its place."""
    with path.open(newline="", encoding="utf-8") as f:
        header, *rows = csv.reader(f)
    write_csv(path, [header, *(new for row in rows for new in change(row))])


def relabel(root, image, values):
    edit_rows(root / "GroundTruth.csv", lambda row: [[image, *values] if row[0] == image else row])


def png_header(width, height):
    """A PNG that claims a size and holds next to nothing."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def part(split, which, k):
    return json.loads(split.read_text())[which][k]


# Each damages the set and returns the kind of fault and what must be named in it.
def truncated(root, split):
    data = file(root, 0).read_bytes()
    file(root, 0).write_bytes(data[: len(data) // 2])
    return "truncated", name(0)


def zero_bytes(root, split):
    file(root, 2).write_bytes(b"")
    return "empty-file", name(2)


def html(root, split):
    file(root, 4).write_text("<!DOCTYPE html><html><body>404 Not Found</body></html>")
    return "no-picture", name(4)


def one_pixel(root, split):
    Image.new("RGB", (1, 1)).save(file(root, 6))
    return "too-small", name(6)


def strip(root, split):
    Image.new("RGB", (30_000, 2)).save(file(root, 8))
    return "odd-shape", name(8)


def bomb(root, split):
    file(root, 10).write_bytes(png_header(30_000, 30_000))
    return "too-large", name(10)


def swapped_label(root, split):
    relabel(root, name(12), ["0.0", "0.0", "1.0", "0.0"])  # lesion_6 is MEL
    return "lesion-labels-disagree", name(12)


def duplicate(root, split):
    shutil.copy(file(root, 14), root / "images" / "copied.jpg")
    with (root / "GroundTruth.csv").open("a") as f:
        f.write("copied,0.0,1.0,0.0,0.0\n")  # lesion_7 is NV
    return "duplicate", "copied"


def rotated_across_the_split(root, split):
    learned, judged = part(split, "train", -1), part(split, "test", -1)
    image = Image.open(root / "images" / f"{learned}.jpg").transpose(Image.Transpose.ROTATE_90)
    image.save(root / "images" / f"{judged}.jpg", quality=85)
    return "duplicate-crosses-split", judged


def missing_file(root, split):
    file(root, 16).unlink()
    return "missing-file", name(16)


def extra_file(root, split):
    picture(900).save(root / "images" / "unlisted.jpg")
    return "extra-file", "images/unlisted.jpg"


def byte_order_mark(root, split):
    path = root / "GroundTruth.csv"
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    return "byte-order-mark", None


def windows_line_ends(root, split):
    path = root / "metadata.csv"
    path.write_bytes(path.read_bytes().replace(b"\r\n", b"\n").replace(b"\n", b"\r\n"))
    return "crlf", None


def quoted_commas(root, split):
    edit_rows(root / "metadata.csv", lambda row: [[*row, "arm, left" if row[0] == name(18) else ""]])
    path = root / "metadata.csv"
    path.write_bytes(path.read_bytes().replace(b"image,lesion_id", b"image,lesion_id,site", 1))
    return "quoted-comma", None


def semicolons(root, split):
    path = root / "GroundTruth.csv"
    path.write_bytes(path.read_bytes().replace(b",", b";"))
    return "delimiter", None


def empty_class(root, split):
    path = root / "GroundTruth.csv"
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join([header + ",DF", *(row + ",0.0" for row in rows)]) + "\n", encoding="utf-8")
    return "empty-class", None


def unk(root, split):
    relabel(root, name(20), ["0.0", "0.0", "0.0", "1.0"])
    return "unk", name(20)


def non_ascii_name(root, split):
    file(root, 22).rename(root / "images" / "läsion.jpg")
    edit_rows(root / "GroundTruth.csv", lambda row: [["läsion", *row[1:]] if row[0] == name(22) else row])
    return "non-ascii-name", "images/läsion.jpg"


def case_clash(root, split):
    picture(901).save(root / "images" / "IMG_24.jpg")
    edit_rows(root / "GroundTruth.csv", lambda row: [row, ["IMG_24", *row[1:]]] if row[0] == name(24) else [row])
    return "case-clash", "images/IMG_24.jpg"


def link_out_of_the_folder(root, split):
    outside = root.parent / "outside.jpg"
    file(root, 26).rename(outside)
    file(root, 26).symlink_to(outside)
    return "link-out-of-folder", f"images/{name(26)}.jpg"


def no_permission(root, split):
    file(root, 28).chmod(0)
    return "no-permission", f"images/{name(28)}.jpg"


def metadata_of_other_names(root, split):
    edit_rows(
        root / "metadata.csv",
        lambda row: [[row[0].replace(name(32), f"{name(32)}.jpg"), *row[1:]]],
    )
    return "image-without-metadata", name(32)


def classes_alike(root, split):
    path = root / "GroundTruth.csv"
    header, *rows = path.read_text(encoding="utf-8").splitlines()
    rows = [f"{row},0.0" if not row.startswith(name(34)) else f"{name(34)},0.0,0.0,0.0,0.0,1.0" for row in rows]
    path.write_text("\n".join([header + ",bcc", *rows]) + "\n", encoding="utf-8")
    return "similar-classes", "bcc"


def two_ones(root, split):
    edit_rows(root / "GroundTruth.csv", lambda row: [[name(30), "1.0", "1.0", *row[3:]] if row[0] == name(30) else row])
    return "two-labels", name(30)


# Those that change the table's columns come last.
DAMAGES = (
    truncated, zero_bytes, html, one_pixel, strip, bomb, swapped_label, duplicate, rotated_across_the_split,
    missing_file, extra_file, unk, non_ascii_name, case_clash, link_out_of_the_folder, no_permission, two_ones,
    metadata_of_other_names, quoted_commas, classes_alike, empty_class, semicolons, windows_line_ends,
    byte_order_mark,
)  # fmt: skip
HARMLESS = {
    swapped_label, duplicate, extra_file, unk, non_ascii_name, case_clash, link_out_of_the_folder, quoted_commas,
    empty_class, windows_line_ends, byte_order_mark, metadata_of_other_names, classes_alike, semicolons,
}  # fmt: skip


def named(faults, kind, image):
    own = [fault for fault in faults if fault["kind"] == kind]
    return [fault for fault in own if image is None or image in fault["images"]]


def test_a_clean_set(check, clean, split):
    code, found = check(clean, "--split", split)
    assert code == 0
    assert found["ok"] is True
    assert [(f["kind"], f["severity"]) for f in found["faults"]] == [("empty-class", "note")]  # UNK
    assert found["pairs"] == []
    assert found["layout"] == "ISIC 2019"
    assert (found["images"], found["lesions"]) == (60, 30)
    assert found["classes"]["NV"]["images"] == 20
    assert sum(found["classes"]["NV"][p] for p in ("train", "val", "test")) == 20
    assert found["sizes"]["most_common"] == [{"size": [64, 48], "images": 60}]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda f: f.__name__)
def test_one_damage(check, copy, split, damage):
    kind, image = damage(copy, split)
    code, found = check(copy, *(["--split", split] if damage is rotated_across_the_split else []))
    faults = named(found["faults"], kind, image)
    assert faults
    assert {fault["severity"] == "error" for fault in faults} == {damage not in HARMLESS}
    assert code == (0 if damage in HARMLESS else 3)
    # What is whole is not accused.
    errors = {fault["kind"] for fault in found["faults"] if fault["severity"] == "error"}
    assert errors <= {kind}


def test_all_damages_at_once(check, copy, split, dspkd, tmp_path):
    expected = [damage(copy, split) for damage in DAMAGES]
    code, found = check(copy, "--split", split, "--out", tmp_path / "out")
    assert code == 3
    assert [e for e in expected if not named(found["faults"], *e)] == []
    assert json.loads((tmp_path / "out" / "check.json").read_text()) == found
    with Image.open(tmp_path / "out" / "pairs.png") as sheet:
        assert sheet.format == "PNG"
        assert sheet.width > 700
    code, out, err = dspkd("data", "check", copy, "--split", split)
    assert code == 3
    assert all(kind in out for kind, _ in expected)
    assert err.count("\n") == 1
    assert "would make results wrong" in err


@pytest.mark.parametrize(
    "turn",
    [None, *Image.Transpose],
    ids=lambda t: "as it is" if t is None else t.name,
)
def test_copies_in_every_orientation(check, copy, turn):
    with Image.open(file(copy, 0)) as image:
        turned = image if turn is None else image.transpose(turn)
        smaller = turned.resize((turned.width * 3 // 4, turned.height * 3 // 4), Image.Resampling.BICUBIC)
        smaller.save(file(copy, 40), quality=80)
    code, found = check(copy)
    (pair,) = found["pairs"]
    assert (pair["first"], pair["second"], pair["exact"], pair["same_lesion"]) == (name(0), name(40), False, False)
    assert pair["disagrees"] is True  # lesion_0 is MEL, lesion_20 is BCC
    assert code == 3
    assert named(found["faults"], "one-picture-two-labels", name(40))


def test_a_lesion_that_crosses_a_stored_split(check, clean, copy, split):
    """Another metadata table joins what the split has parted."""
    learned, judged = part(split, "train", 0), part(split, "test", 0)
    edit_rows(copy / "metadata.csv", lambda row: [[row[0], "joined" if row[0] in (learned, judged) else row[1]]])
    code, found = check(copy, "--split", split, "--tables-only")
    assert code == 3
    (fault,) = named(found["faults"], "lesion-crosses-split", learned)
    assert judged in fault["images"]
    assert named(found["faults"], "split-of-other-data", None)


def test_the_parts_that_a_csv_brings(check, tmp_path):
    rows = [["image", "label", "lesion_id", "split"]]
    for k in range(12):
        picture(k).save(tmp_path / f"{k}.png")
        rows.append([f"{k}.png", "AB"[k % 2], f"L{k}", ("train", "val", "test")[k % 3]])
    write_csv(tmp_path / "labels.csv", rows)
    code, found = check(tmp_path)
    assert code == 0
    assert found["classes"]["A"] == {"images": 6, "lesions": 6, "train": 2, "val": 2, "test": 2}
    rows[2][2] = "L0"  # image 1, in val; L0 is in train
    write_csv(tmp_path / "labels.csv", rows)
    code, found = check(tmp_path)
    assert code == 3
    (fault,) = named(found["faults"], "lesion-crosses-split", "0")
    assert fault["images"] == ["0", "1"]


def test_a_table_is_not_blamed_for_what_lies_beside_it(check, tmp_path):
    rows = [["image", "label"]]
    for k in range(6):
        picture(k).save(tmp_path / f"{k}.png")
        rows.append([f"{k}.png", "AB"[k % 2]])
    write_csv(tmp_path / "labels.csv", rows)
    (tmp_path / "thesis").mkdir()
    for other in ("private.txt", "lösung.doc", "thesis/a.txt", "thesis/A.txt"):
        (tmp_path / other).write_text("")
        (tmp_path / other).chmod(0)
    (tmp_path / "thesis" / "link").symlink_to(tmp_path.parent)
    code, found = check(tmp_path / "labels.csv")
    assert (code, found["faults"]) == (0, [])
    code, found = check(tmp_path)
    assert code == 0
    (fault,) = named(found["faults"], "no-permission", "private.txt")
    assert fault["severity"] == "warning"


def test_what_a_table_lists_is_looked_at_wherever_it_lies(check, tmp_path):
    (tmp_path / "table").mkdir()
    (tmp_path / "archive").mkdir()
    rows = [["image", "label"]]
    for k in range(6):
        picture(k).save(tmp_path / "archive" / f"bild_ä{k}.png")
        rows.append([f"../archive/bild_ä{k}.png", "AB"[k % 2]])
    write_csv(tmp_path / "table" / "labels.csv", rows)
    picture(9).save(tmp_path / "archive" / "Bild_ä0.png")
    (tmp_path / "archive" / "bild_ä1.png").chmod(0)
    code, found = check(tmp_path / "table" / "labels.csv")
    assert code == 3
    (closed,) = named(found["faults"], "no-permission", None)
    assert closed["images"][0].endswith("archive/bild_ä1.png")
    (clash,) = named(found["faults"], "case-clash", None)
    assert len(clash["images"]) == 2
    assert len(named(found["faults"], "non-ascii-name", None)[0]["images"]) == 6


def test_an_earlier_contact_sheet_does_not_stay(check, copy, tmp_path):
    shutil.copy(file(copy, 0), file(copy, 1))
    check(copy, "--out", tmp_path / "out")
    assert (tmp_path / "out" / "pairs.png").is_file()
    picture(1).save(file(copy, 1))
    check(copy, "--out", tmp_path / "out")
    assert not (tmp_path / "out" / "pairs.png").exists()


def test_nothing_to_check(dspkd, tmp_path):
    code, out, err = dspkd("data", "check", tmp_path / "nowhere")
    assert (code, out) == (1, "")
    assert "nowhere does not exist" in err
    assert all(line in err for line in DOWNLOAD)
    code, out, err = dspkd("data", "check", tmp_path)
    assert (code, out) == (1, "")
    assert "is no data set" in err
    assert all(line in err for line in DOWNLOAD)


def test_the_readme_tells_the_same_way_to_get_images():
    assert "\n".join(["```text", *DOWNLOAD, "```"]) in README.read_text(encoding="utf-8")


def test_tables_whose_pictures_lie_elsewhere(check, copy, dspkd, tmp_path):
    """No picture is found, and still everything is said."""
    (copy / "images").rename(tmp_path / "elsewhere")
    byte_order_mark(copy, None)
    code, found = check(copy)
    assert code == 3
    (fault,) = named(found["faults"], "missing-file", name(0))
    assert f"row 2: there is no file for image {name(0)}, and for 59 more, in {copy}" in fault["message"]
    assert len(fault["images"]) == IMAGES
    assert named(found["faults"], "byte-order-mark", None)
    assert found["classes"]["NV"]["images"] == found["images"] == 0
    code, out, _ = dspkd("data", "check", copy)
    assert code == 3
    assert "missing-file" in out


def test_a_table_without_a_single_label(check, dspkd, tmp_path):
    """There is not even a class."""
    write_csv(tmp_path / "labels.csv", [["image", "label"], ["1.png", ""], ["2.png", ""]])
    code, found = check(tmp_path)
    assert code == 3
    assert len(named(found["faults"], "no-label", None)) == 2
    assert found["classes"] == {}
    code, out, _ = dspkd("data", "check", tmp_path)
    assert (code, "no-label" in out) == (3, True)


def test_a_folder_that_cannot_be_written_to(dspkd, clean, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = dspkd("data", "check", clean, "--out", tmp_path / "file")
    assert code == 1
    assert "cannot write" in err


@pytest.mark.shared
def test_the_real_collection(check, shared_data, tmp_path):
    """What is there: four files twice and 64 more near-duplicates, all inside lesion groups; five groups whose images
    have different diagnoses; nothing that would poison a result.
    """
    code, found = check(shared_data / "derm", "--out", tmp_path / "out")
    assert code == 0
    assert (found["images"], found["lesions"]) == (12119, 9163)
    assert found["classes"]["VASC"] == {"images": 149, "lesions": 96}
    assert [e["size"] for e in found["sizes"]["most_common"]] == [[256, 256], [341, 256]]
    kinds = [(fault["severity"], fault["kind"]) for fault in found["faults"]]
    assert kinds.count(("warning", "lesion-labels-disagree")) == 5
    assert kinds.count(("warning", "duplicate")) == sum(pair["exact"] for pair in found["pairs"]) == 4
    assert not any(severity == "error" for severity, _ in kinds)
    # Decoders of other versions may move a pair over the threshold.
    assert 60 <= len(found["pairs"]) <= 76
    assert all(pair["same_lesion"] and not pair["disagrees"] for pair in found["pairs"])
    assert (tmp_path / "out" / "pairs.png").is_file()


@pytest.mark.shared
def test_lesion_ids_alone_leave_copies_in_two_lesions(check, shared_data, tmp_path):
    """The groups of the collection were joined by its makers. The lesion ids that it was published with know less: two
    files are there twice as two lesions, and the split joins them.
    """
    root = tmp_path / "set"
    root.mkdir()
    (root / "images").symlink_to(shared_data / "derm" / "images")
    shutil.copy(shared_data / "derm" / "GroundTruth.csv", root)
    with (shared_data / "derm" / "metadata.csv").open(newline="", encoding="utf-8") as f:
        rows = [[row["image"], row["lesion_id_orig"]] for row in csv.DictReader(f)]
    write_csv(root / "metadata.csv", [["image", "lesion_id"], *rows])
    code, found = check(root)
    assert code == 0
    apart = {(pair["first"], pair["second"]) for pair in found["pairs"] if not pair["same_lesion"]}
    assert {("ISIC_1643848", "ISIC_6221334"), ("ISIC_2252215", "ISIC_9766600")} <= apart
    table = read_table(root)
    for seed in range(5):
        split = make_split(table, seed=seed, duplicates=apart)
        part_of = {image: p for p in ("train", "val", "test") for image in getattr(split, p)}
        assert all(part_of[first] == part_of[second] for first, second in apart)
