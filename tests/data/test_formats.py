"""HAM10000, MedMNIST, a plain CSV and both official ISIC 2019 tables: what is read, and what is refused by name."""

import csv
import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dspkd.data.pixels import cached_pixels
from dspkd.data.sources import read_table
from dspkd.data.split import make_split
from dspkd.errors import DataError
from dspkd.npz_images import WINDOW
from dspkd.preprocess import Preprocess, load_rgb


def write_csv(path, rows, **how):
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f, **how).writerows(rows)


def picture(path, colour="white"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (16, 16), colour).save(path)


def by_id(table):
    return {s.image_id: s for s in table.samples}


# ISIC 2019 as it is handed over.
def official(root, *, test_rows, weights=True):
    write_csv(
        root / "ISIC_2019_Training_GroundTruth.csv",
        [["image", "MEL", "NV", "UNK"], ["a", 1.0, 0.0, 0.0], ["b", 0.0, 1.0, 0.0]],
    )
    write_csv(
        root / "ISIC_2019_Training_Metadata.csv", [["image", "age_approx", "lesion_id"], ["a", 55, "L1"], ["b", 60, ""]]
    )
    extra = ["score_weight", "validation_weight"] if weights else []
    rows = [[*row, *([1.0, 0.0] if weights else [])] for row in test_rows]
    write_csv(root / "ISIC_2019_Test_GroundTruth.csv", [["image", "MEL", "NV", "UNK", *extra], *rows])
    write_csv(root / "ISIC_2019_Test_Metadata.csv", [["image", "age_approx"], *([row[0], 60] for row in test_rows)])
    for word, images in (("Training", "ab"), ("Test", [row[0] for row in test_rows])):
        for image in images:
            picture(root / f"ISIC_2019_{word}_Input" / f"{image}.jpg")


def test_both_official_tables_are_the_training_and_the_test_part(tmp_path):
    official(tmp_path, test_rows=[["c", 0.0, 1.0, 0.0], ["d", 0.0, 0.0, 1.0]])
    table = read_table(tmp_path)
    assert table.classes == ("MEL", "NV")
    assert {i: (s.label, s.part, s.group) for i, s in by_id(table).items()} == {
        "a": (0, "train", "L1"),
        "b": (1, "train", "image:b"),
        "c": (1, "test", "image:c"),
    }
    # d is UNK: none of the classes, and that is said where results are.
    assert len(table.remarks) == 1
    assert "1 images" in table.remarks[0] and "UNK" in table.remarks[0]


def test_the_usual_download_has_no_labels_of_the_test_part(tmp_path):
    """Its pictures and its metadata lie there all the same."""
    official(tmp_path, test_rows=[["c", 0.0, 1.0, 0.0]])
    picture(tmp_path / "ISIC_2019_Test_Input" / "a.jpg", "black")
    (tmp_path / "ISIC_2019_Test_GroundTruth.csv").unlink()
    samples = by_id(read_table(tmp_path))
    assert {i: (s.group, s.part, s.path.parent.name) for i, s in samples.items()} == {
        "a": ("L1", None, "ISIC_2019_Training_Input"),
        "b": ("image:b", None, "ISIC_2019_Training_Input"),
    }


def test_the_test_part_alone(tmp_path):
    official(tmp_path, test_rows=[["c", 0.0, 1.0, 0.0], ["d", 1.0, 0.0, 0.0]])
    (tmp_path / "ISIC_2019_Training_GroundTruth.csv").unlink()
    samples = by_id(read_table(tmp_path))
    assert {i: s.path.parent.name for i, s in samples.items()} == dict.fromkeys("cd", "ISIC_2019_Test_Input")


def test_one_metadata_table_for_both_parts(tmp_path):
    official(tmp_path, test_rows=[["c", 0.0, 1.0, 0.0]])
    for word in ("Training", "Test"):
        (tmp_path / f"ISIC_2019_{word}_Metadata.csv").unlink()
    write_csv(tmp_path / "metadata.csv", [["image", "lesion_id"], ["a", "L1"], ["b", "L2"]])
    table = read_table(tmp_path)
    assert [s.group for s in table.samples] == ["L1", "L2", "image:c"]
    assert len(table.remarks) == 1 and "no row for c: 1 images" in table.remarks[0]
    write_csv(tmp_path / "metadata.csv", [["image", "lesion_id"], ["a", "L1"], ["b", "L2"], ["c", "L3"]])
    assert read_table(tmp_path).remarks == ()


def test_an_official_table_of_labels_beside_folders_and_metadata_of_ones_own(tmp_path):
    official(tmp_path, test_rows=[])
    (tmp_path / "ISIC_2019_Test_GroundTruth.csv").unlink()
    (tmp_path / "ISIC_2019_Training_Metadata.csv").rename(tmp_path / "metadata.csv")
    (tmp_path / "ISIC_2019_Training_Input").rename(tmp_path / "pictures")
    assert by_id(read_table(tmp_path))["a"].group == "L1"


def test_an_image_in_both_official_tables(tmp_path):
    official(tmp_path, test_rows=[["a", 0.0, 1.0, 0.0]])
    with pytest.raises(
        DataError, match=r"image a stands in .*Training_GroundTruth\.csv and in .*Test_GroundTruth\.csv"
    ):
        read_table(tmp_path)


def test_unk_is_a_class_for_a_model_that_knows_it(tmp_path):
    official(tmp_path, test_rows=[["d", 0.0, 0.0, 1.0]])
    table = read_table(tmp_path, classes=["MEL", "NV", "UNK"])
    assert by_id(table)["d"].label == 2
    assert table.remarks == ()


def test_an_archive_unpacked_into_a_folder_of_its_own_name(tmp_path):
    write_csv(tmp_path / "GroundTruth.csv", [["image", "MEL", "NV"], ["a", 1, 0], ["b", 0, 1]])
    for image in "ab":
        picture(tmp_path / "ISIC_2019_Training_Input" / "ISIC_2019_Training_Input" / f"{image}.jpg")
    assert len(read_table(tmp_path)) == 2


# HAM10000.
HAM = [
    ["lesion_id", "image_id", "dx", "dx_type", "age", "sex", "localization"],
    ["HAM_1", "ISIC_1", "nv", "histo", "80.0", "male", "scalp"],
    ["HAM_1", "ISIC_2", "nv", "histo", "80.0", "male", "scalp"],
    ["HAM_2", "ISIC_3", "akiec", "histo", "", "female", "ear, left"],
]


@pytest.fixture
def ham(tmp_path):
    for part, image in ((1, 1), (1, 2), (2, 3)):
        picture(tmp_path / f"HAM10000_images_part_{part}" / f"ISIC_{image}.jpg")
    write_csv(tmp_path / "HAM10000_metadata.csv", HAM)
    return tmp_path


def test_ham10000(ham):
    table = read_table(ham)
    assert table.layout == "HAM10000"
    assert table.classes == ("akiec", "nv")
    assert [(s.image_id, s.label, s.group) for s in table.samples] == [
        ("ISIC_1", 1, "HAM_1"),
        ("ISIC_2", 1, "HAM_1"),
        ("ISIC_3", 0, "HAM_2"),
    ]
    assert table == read_table(ham / "HAM10000_metadata.csv")


@pytest.mark.parametrize(("name", "how"), [("HAM10000_metadata", {}), ("HAM10000_metadata.tab", {"delimiter": "\t"})])
def test_ham10000_as_dataverse_hands_it_over(ham, name, how):
    expected = read_table(ham)
    (ham / "HAM10000_metadata.csv").unlink()
    write_csv(ham / name, HAM, **how)
    assert read_table(ham) == expected


def test_faults_of_ham10000(ham):
    write_csv(ham / "HAM10000_metadata.csv", [*HAM, ["HAM_9", "ISIC_1", "mel"]])
    with pytest.raises(DataError, match=r"ISIC_1 stands in rows 2 and 5 with other labels \(nv and mel"):
        read_table(ham)
    write_csv(ham / "HAM10000_metadata.csv", [*HAM, ["HAM_9", "ISIC_9", "mel"]])
    with pytest.raises(DataError, match="row 5: there is no file for image ISIC_9"):
        read_table(ham)
    write_csv(ham / "HAM10000_metadata.csv", [*HAM, ["HAM_9", "ISIC_9", ""]])
    with pytest.raises(DataError, match="row 5: image ISIC_9 has no label"):
        read_table(ham)


def test_the_test_part_of_ham10000_is_not_taken_for_isic_2019(ham):
    expected = read_table(ham)
    (ham / "HAM10000_metadata.csv").rename(ham / "ISIC2018_Task3_Test_GroundTruth.csv")
    assert read_table(ham) == expected
    write_csv(ham / "HAM10000_metadata.csv", HAM)
    with pytest.raises(DataError, match=r"several tables with a column dx.*--data .*HAM10000_metadata\.csv"):
        read_table(ham)
    assert read_table(ham / "HAM10000_metadata.csv") == expected


# A plain CSV.
def test_a_plain_csv(tmp_path):
    picture(tmp_path / "arm" / "1.png")
    picture(tmp_path / "images" / "2.jpg")
    picture(tmp_path / "images" / "leg, left.tif")
    rows = [
        ["image", "label", "lesion_id", "split"],
        ["arm/1.png", "ROS", "L1", "training"],
        ["2", "ACNE", "", "Validation"],
        ["leg, left.tif", "ROS", "L1", "test"],
    ]
    write_csv(tmp_path / "labels.csv", rows)
    table = read_table(tmp_path)
    assert table.classes == ("ACNE", "ROS")
    assert {i: (s.label, s.group, s.part) for i, s in by_id(table).items()} == {
        "arm/1": (1, "L1", "train"),
        "2": (0, "image:2", "val"),
        "leg, left": (1, "L1", "test"),
    }
    assert read_table(tmp_path / "labels.csv") == table
    write_csv(tmp_path / "labels.csv", [rows[0], *rows[:0:-1]])
    assert read_table(tmp_path).sha256 == table.sha256


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["1.png", "", "L", "train"]], ["labels.csv row 2", "1.png has no label"]),
        ([["", "A", "L", "train"]], ["labels.csv row 2", "names no image"]),
        ([["1.png", "A", "L", "holdout"]], ["labels.csv row 2", "'holdout'", "train, val, test"]),
        ([["1.png", "A", "L", "train", "x"]], ["labels.csv row 2", "5 fields", "4", '"a, b"']),
        ([["1.png", "A", "", ""], ["1.png", "B", "", ""]], ["1 stands in rows 2 and 3", "A and B"]),
        ([["1.png", "A", "", ""], ["1.jpg", "A", "", ""]], ["1.png (row 2) and 1.jpg (row 3) are both image 1"]),
        ([["9.png", "A", "", ""]], ["labels.csv row 2", "no file for image 9.png"]),
    ],
)
def test_faults_of_a_plain_csv(tmp_path, rows, words):
    picture(tmp_path / "1.png")
    write_csv(tmp_path / "labels.csv", [["image", "label", "lesion_id", "split"], *rows])
    with pytest.raises(DataError) as caught:
        read_table(tmp_path)
    for word in words:
        assert word in str(caught.value)


def test_labels_that_differ_in_spaces_or_case(tmp_path):
    faults = []
    rows = [["1", "Naevus", "L1"], ["2", " Naevus ", " L1 "], ["3", "naevus", ""], ["4", "Melanom", "  "]]
    write_csv(tmp_path / "labels.csv", [["image", "label", "lesion_id"], *rows])
    table = read_table(tmp_path, need_files=False, report=faults.append)
    assert table.classes == ("Melanom", "Naevus", "naevus")
    assert [s.group for s in table.samples] == ["L1", "L1", "image:3", "image:4"]
    (fault,) = [fault for fault in faults if fault.kind == "similar-classes"]
    assert (fault.severity, fault.images) == ("warning", ("Naevus", "naevus"))
    assert "Naevus (2 images) and naevus (1 images)" in fault.message
    assert table.remarks == (fault.message,)
    write_csv(tmp_path / "labels.csv", [["image", "label"], ["1", "  "], ["2", "A"]])
    with pytest.raises(DataError, match="row 2: image 1 has no label"):
        read_table(tmp_path, need_files=False)


def test_diagnoses_of_ham10000_with_spaces_around_them(ham):
    expected = read_table(ham)
    write_csv(ham / "HAM10000_metadata.csv", [HAM[0], *([*row[:2], f" {row[2]} ", *row[3:]] for row in HAM[1:])])
    assert read_table(ham) == expected


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_csv_as_spreadsheets_of_other_countries_write_it(tmp_path, delimiter):
    faults = []
    rows = [["image", "label", "site"], ["1", "A", "arm, left"], ["2", "B", ""]]
    write_csv(tmp_path / "labels.csv", rows, delimiter=delimiter)
    table = read_table(tmp_path, need_files=False, report=faults.append)
    assert [(s.image_id, table.classes[s.label]) for s in table.samples] == [("1", "A"), ("2", "B")]
    assert {fault.kind for fault in faults} == {"delimiter", "crlf"}
    write_csv(tmp_path / "labels.csv", [rows[0], ["1", "A", "", "x"]], delimiter=delimiter)
    with pytest.raises(DataError, match=rf'row 2 has 4 fields.*"a{delimiter} b"'):
        read_table(tmp_path, need_files=False)


def test_semicolons_in_the_values_of_a_comma_table(tmp_path):
    write_csv(tmp_path / "labels.csv", [["image", "label"], ["1;a", "A;B"]])
    table = read_table(tmp_path, need_files=False)
    assert (table.classes, table.samples[0].image_id) == (("A;B",), "1;a")


@pytest.mark.parametrize(("encoding", "named"), [("latin-1", "WINDOWS-1252"), ("utf-16", "UTF-16")])
def test_a_csv_in_another_encoding(tmp_path, encoding, named):
    text = "image;label\n" + "1;A\n" * 3 + "1;Nävus\n"
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    line = 1 if encoding == "utf-16" else 5
    with pytest.raises(DataError, match=rf"labels\.csv cannot be read: line {line} is not UTF-8.*iconv -f {named} -t"):
        read_table(tmp_path)


def test_a_csv_with_other_columns(tmp_path):
    write_csv(tmp_path / "x.csv", [["file", "diagnosis"], ["1.png", "A"]])
    with pytest.raises(DataError, match=r"columns file, diagnosis.*image,label"):
        read_table(tmp_path / "x.csv")


def test_an_umlaut_in_two_spellings(tmp_path):
    """macOS hands over decomposed names."""
    picture(tmp_path / "images" / "la\u0308sion.png")
    write_csv(tmp_path / "labels.csv", [["image", "label"], ["l\u00e4sion", "A"]])
    assert len(read_table(tmp_path)) == 1


cells = st.text(st.characters(codec="utf-8", exclude_characters="\x00", exclude_categories=("Cs",)), max_size=12)


@settings(max_examples=60, deadline=None)
@given(
    names=st.lists(cells.filter(lambda t: t.strip()), min_size=1, max_size=8, unique=True),
    labels=st.lists(cells.filter(lambda t: t.strip()), min_size=8, max_size=8),
    lesions=st.lists(cells, min_size=8, max_size=8),
    mark=st.booleans(),
    ending=st.sampled_from(["\n", "\r\n"]),
)
def test_what_a_csv_writer_writes_is_read_back(tmp_path_factory, names, labels, lesions, mark, ending):
    """Commas, quotes, line ends and any letters inside the fields; a byte order mark before them."""
    path = tmp_path_factory.mktemp("csv") / "labels.csv"
    rows = list(zip(names, labels, lesions, strict=False))
    with path.open("w", newline="", encoding="utf-8-sig" if mark else "utf-8") as f:
        # Left to choose, the writer does not quote a lone carriage return.
        csv.writer(f, lineterminator=ending, quoting=csv.QUOTE_ALL).writerows([["image", "label", "lesion_id"], *rows])
    try:
        table = read_table(path, need_files=False)
    except DataError as error:
        assert "are both image" in str(error)  # x and x.png
        return
    read = [(table.classes[s.label], s.group) for s in table.samples]
    assert read == [
        (label.strip(), lesion.strip() or f"image:{s.image_id}")
        for (_, label, lesion), s in zip(rows, table.samples, strict=True)
    ]


@settings(max_examples=150, deadline=None)
@given(
    data=st.binary(max_size=120), header=st.sampled_from([b"", b"image,label\n", b"image,MEL,NV\n", b"image_id,dx\n"])
)
@pytest.mark.parametrize("name", ["GroundTruth.csv", "labels.csv", "HAM10000_metadata.csv"])
def test_any_bytes_are_a_table_or_a_data_error(tmp_path_factory, name, data, header):
    root = tmp_path_factory.mktemp("any")
    (root / name).write_bytes(header + data)
    faults = []
    for how in ({}, {"report": faults.append}):
        try:
            read_table(root, need_files=False, **how)
        except DataError:
            continue


# MedMNIST.
@pytest.fixture
def pictures():
    return np.random.default_rng(0).integers(0, 256, (3 * WINDOW, 28, 28, 3), dtype=np.uint8)


def medmnist(path, pictures, *, save=np.savez_compressed, **others):
    n = len(pictures)
    cuts = {"train": slice(0, n // 2), "val": slice(n // 2, n // 2 + 40), "test": slice(n // 2 + 40, n)}
    arrays = {f"{part}_images": pictures[cut] for part, cut in cuts.items()}
    arrays |= {f"{part}_labels": np.arange(n, dtype=np.uint8)[cut, None] % 7 for part, cut in cuts.items()}
    save(path, **arrays | others)
    return path


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_medmnist(tmp_path, pictures, save):
    path = medmnist(tmp_path / "dermamnist.npz", pictures, save=save)
    table = read_table(path)
    assert table.classes == ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    assert [s.part for s in table.samples] == ["train"] * 96 + ["val"] * 40 + ["test"] * 56
    assert table.labels.tolist() == [k % 7 for k in range(192)]
    assert table.samples[100].image_id == "val/4"
    got = cached_pixels(table, Preprocess(size=28), cache_dir=tmp_path / "cache")
    np.testing.assert_array_equal(got, pictures)  # at its own size a picture is not resampled
    for index in (191, 0, 100, 99):  # any order is right, if not quick
        np.testing.assert_array_equal(np.asarray(load_rgb(table.samples[index].path)), pictures[index])
    split = make_split(read_table(tmp_path))
    assert split.method == "column"
    assert (len(split.train), len(split.val), len(split.test)) == (96, 40, 56)


def test_medmnist_in_grey_and_with_other_classes(tmp_path, pictures):
    table = read_table(medmnist(tmp_path / "other.npz", pictures[..., 0]))
    assert table.classes == tuple("0123456")
    np.testing.assert_array_equal(np.asarray(load_rgb(table.samples[5].path))[..., 1], pictures[5, ..., 0])


def test_medmnist_is_streamed(tmp_path):
    pictures = np.zeros((120, 224, 224, 3), np.uint8)
    path = medmnist(tmp_path / "dermamnist_224.npz", pictures)
    tracemalloc.start()
    try:
        samples = read_table(path).samples
        reading = tracemalloc.get_traced_memory()[1]
        for sample in samples[:10]:
            load_rgb(sample.path)
        decoding = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert reading < 2e6
    assert decoding < 5e6 < pictures.nbytes


def test_faults_of_medmnist(tmp_path, pictures):
    path = tmp_path / "dermamnist.npz"

    def refused(match):
        with pytest.raises(DataError, match=match):
            read_table(path)

    medmnist(path, pictures, train_labels=np.array([{}] * 96))
    refused(r"train_labels of archive .*dermamnist\.npz cannot be read.*allow_pickle")
    medmnist(path, pictures, train_labels=np.zeros((96, 14), np.uint8))
    refused("not one class number for each picture")
    medmnist(path, pictures, train_labels=np.zeros((95, 1), np.uint8))
    refused("96 pictures and 95 labels")
    medmnist(path, pictures, train_labels=np.full((96, 1), 9, np.uint8))
    refused("label 9")
    medmnist(path, pictures, train_images=pictures[:96].astype(np.float32))
    refused("train_images is float32")
    np.savez(path, x=np.zeros(3))
    refused("holds x")
    path.write_bytes(b"<html>")
    refused("cannot be read")
    medmnist(path, pictures)
    whole = path.read_bytes()
    table = read_table(path)
    path.write_bytes(whole[:3000] + bytes(2000) + whole[5000:])
    with pytest.raises(DataError, match=r"archive .* cannot be read"):
        for sample in table.samples:
            load_rgb(sample.path)


def test_several_archives(tmp_path, pictures):
    for size in ("", "_64"):
        medmnist(tmp_path / f"dermamnist{size}.npz", pictures)
    with pytest.raises(DataError, match=r"several archives: dermamnist\.npz, dermamnist_64\.npz.*--data"):
        read_table(tmp_path)
