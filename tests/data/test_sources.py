"""Tables: both layouts, and every fault as one DataError that names the file and the row or value."""

import csv

import pytest
from PIL import Image

from dspkd.data.sources import read_isic_labels, read_table
from dspkd.errors import DataError


def write_csv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as f:
        csv.writer(f).writerows(rows)


def picture(path, colour="white"):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (8, 8), colour).save(path)


HEADER = ["image", "MEL", "NV", "BCC", "UNK"]
ROWS = [["a", 1.0, 0.0, 0.0, 0.0], ["b", 0.0, 1.0, 0.0, 0.0], ["c", "0", "1", "0", "0"]]


@pytest.fixture
def isic(tmp_path):
    """Three images of two classes; BCC and UNK have none."""

    def make(rows=ROWS, *, header=HEADER, metadata=None, images=("a.jpg", "b.png", "c.jpg")):
        write_csv(tmp_path / "GroundTruth.csv", [header, *rows])
        if metadata is not None:
            write_csv(tmp_path / "metadata.csv", metadata)
        for name in images:
            picture(tmp_path / "images" / name)
        return tmp_path

    return make


@pytest.fixture
def folders(tmp_path):
    for k, name in enumerate(("ROS/1.jpg", "ROS/deep/2.png", "ACNE/1.jpg")):
        # Different colours: one picture in two classes is a fault of its own.
        picture(tmp_path / name, (60 * k, 0, 90))
    return tmp_path


def by_id(table):
    return {s.image_id: s for s in table.samples}


def test_isic_layout(isic):
    table = read_table(isic())
    assert table.classes == ("MEL", "NV")  # columns without an image, UNK among them, are no classes
    assert [(s.image_id, s.label, s.group, s.source) for s in table.samples] == [
        ("a", 0, "image:a", None),
        ("b", 1, "image:b", None),
        ("c", 1, "image:c", None),
    ]
    assert [s.path.name for s in table.samples] == ["a.jpg", "b.png", "c.jpg"]
    assert table.counts() == {"MEL": 1, "NV": 2}
    assert table.labels.tolist() == [0, 1, 1]


def test_official_file_names_and_a_byte_order_mark(isic):
    root = isic()
    labels = root / "GroundTruth.csv"
    (root / "ISIC_2019_Training_GroundTruth.csv").write_bytes(b"\xef\xbb\xbf" + labels.read_bytes())
    labels.unlink()
    (root / "images").rename(root / "ISIC_2019_Training_Input")
    assert len(read_table(root)) == 3


def test_group_id_is_preferred_to_lesion_id(isic):
    metadata = [
        ["image", "lesion_id", "group_id", "source"],
        ["a", "L1", "G1", "HAM"],
        ["b", "L2", "", ""],
        ["c", "", "", "BCN"],
    ]
    samples = by_id(read_table(isic(metadata=metadata)))
    assert {k: (s.group, s.source) for k, s in samples.items()} == {
        "a": ("G1", "HAM"),
        "b": ("L2", None),
        "c": ("image:c", "BCN"),
    }


def test_an_image_that_metadata_does_not_name_is_its_own_lesion(isic):
    samples = by_id(read_table(isic(metadata=[["image", "lesion_id"], ["b", "L"], ["elsewhere", "L"]])))
    assert [samples[k].group for k in "abc"] == ["image:a", "L", "image:c"]


def test_metadata_that_fits_some_of_the_images_only(isic):
    """Each of the others would be a lesion of its own, without a word, and the lesions would cross the split."""
    faults = []
    root = isic(metadata=[["image", "lesion_id"], ["a", "L1"], ["b.png", "L1"], ["c.jpg", "L1"]])
    table = read_table(root, report=faults.append)
    said = {fault.kind: fault for fault in faults if "metadata" in fault.kind}
    assert {kind: (fault.severity, fault.images) for kind, fault in said.items()} == {
        "image-without-metadata": ("warning", ("b", "c")),
        "metadata-without-image": ("warning", ("b.png", "c.jpg")),
    }
    assert "no row for b and 1 more: 2 images count as own lesions" in said["image-without-metadata"].message
    assert table.remarks == tuple(fault.message for fault in said.values())


def test_metadata_of_more_images_than_there_are(isic):
    faults = []
    rows = [*([image, "L1"] for image in "abc"), ["elsewhere", "L2"]]
    table = read_table(isic(metadata=[["image", "lesion_id"], *rows]), report=faults.append)
    (fault,) = [fault for fault in faults if "metadata" in fault.kind]
    assert (fault.kind, fault.severity, fault.images) == ("metadata-without-image", "note", ("elsewhere",))
    assert table.remarks == ()


def test_metadata_without_lesions_need_not_name_every_image(isic):
    faults = []
    read_table(isic(metadata=[["image", "source"], ["a", "HAM"]]), report=faults.append)
    assert not [fault for fault in faults if "metadata" in fault.kind]


def test_metadata_that_fits_some_of_the_class_folders_only(folders):
    write_csv(folders / "metadata.csv", [["image", "lesion_id"], ["ACNE/1", "L1"], ["ROS-1", "L2"]])
    (without, unused) = read_table(folders).remarks
    assert "no row for ROS/1 and 1 more: 2 images count as own lesions" in without
    assert "rows of no image here: ROS-1" in unused


def test_given_classes_keep_their_order_and_are_matched_by_name(isic, tmp_path):
    table = read_table(isic(), classes=["VASC", "NV", "MEL"])
    assert table.classes == ("VASC", "NV", "MEL")
    assert table.labels.tolist() == [2, 1, 1]
    assert table.counts()["VASC"] == 0


def test_the_hash_sees_labels_and_lesions_but_neither_order_nor_place(isic, tmp_path_factory):
    root = isic()
    before = read_table(root).sha256
    write_csv(root / "GroundTruth.csv", [HEADER, *ROWS[::-1]])
    assert read_table(root).sha256 == before
    moved = tmp_path_factory.mktemp("elsewhere") / "set"
    root.rename(moved)
    assert read_table(moved).sha256 == before
    write_csv(moved / "metadata.csv", [["image", "lesion_id"], ["a", "L"]])
    assert read_table(moved).sha256 != before
    assert read_table(moved, classes=["NV", "MEL"]).sha256 != read_table(moved).sha256


def test_class_folders(folders):
    table = read_table(folders)
    assert table.classes == ("ACNE", "ROS")
    assert [(s.image_id, s.label, s.group) for s in table.samples] == [
        ("ACNE/1", 0, "image:ACNE/1"),
        ("ROS/1", 1, "image:ROS/1"),
        ("ROS/deep/2", 1, "image:ROS/deep/2"),
    ]


@pytest.mark.parametrize("name", ["ROS/deep/2.png", "ROS/deep/2", "2.png", "2"])
def test_class_folders_with_metadata(folders, name):
    write_csv(folders / "metadata.csv", [["image", "lesion_id", "source"], [name, "L7", "clinic"]])
    sample = by_id(read_table(folders))["ROS/deep/2"]
    assert (sample.group, sample.source) == ("L7", "clinic")


def test_class_folders_in_a_given_order(folders):
    table = read_table(folders, classes=["ROS", "NEVUS", "ACNE"])
    assert table.classes == ("ROS", "NEVUS", "ACNE")
    assert {s.image_id: s.label for s in table.samples} == {"ACNE/1": 2, "ROS/1": 0, "ROS/deep/2": 0}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([["a", 1, 1, 0, 0]], ["GroundTruth.csv row 2", "image a", "two labels: MEL and NV"]),
        ([ROWS[0], ["b", 0, 0, 0, 0]], ["GroundTruth.csv row 3", "image b", "no label"]),
        ([["a", "yes", 0, 0, 0]], ["GroundTruth.csv row 2", "image a", "MEL", "'yes'"]),
        ([["a", 0.5, 0.5, 0, 0]], ["GroundTruth.csv row 2", "image a", "MEL", "'0.5'"]),
        ([["a", "nan", 0, 0, 0]], ["GroundTruth.csv row 2", "'nan'"]),
        ([["a", 1]], ["GroundTruth.csv row 2", "image a", "NV", "None"]),
        ([ROWS[0], ROWS[1], ROWS[0]], ["GroundTruth.csv", "image a", "rows 2 and 4"]),
        ([ROWS[0], ["a", 0, 1, 0, 0]], ["GroundTruth.csv", "image a", "rows 2 and 3", "MEL and NV"]),
        ([ROWS[0], ["gone", 0, 1, 0, 0]], ["GroundTruth.csv row 3", "no file for image gone"]),
        ([], ["GroundTruth.csv", "no rows"]),
    ],
)
def test_faults_of_a_one_hot_table(isic, rows, words):
    with pytest.raises(DataError) as caught:
        read_table(isic(rows))
    for word in words:
        assert word in str(caught.value)


def test_row_numbers_are_lines_of_the_file_also_after_a_blank_line(isic):
    root = isic()
    (root / "GroundTruth.csv").write_text("image,MEL,NV\na,1,0\n\nb,0,1\n\ngone,0,1\n")
    with pytest.raises(DataError, match="row 6: there is no file for image gone"):
        read_table(root)
    (root / "GroundTruth.csv").write_text("image,MEL,NV\na,1,0\n\nb,0,0\n")
    with pytest.raises(DataError, match="row 4: image b has no label"):
        read_table(root)


@pytest.mark.parametrize(
    "header", [["name", "MEL", "NV", "BCC", "UNK"], ["image", "MEL"], ["MEL", "image", "NV"], ["image", "MEL", "MEL"]]
)
def test_a_wrong_header(isic, header):
    with pytest.raises(DataError, match=r"GroundTruth\.csv is no one-hot table.*image,CLASS,CLASS"):
        read_table(isic([["a", 1, 0][: len(header)]], header=header))


def test_an_unknown_class_names_its_row(isic):
    with pytest.raises(DataError, match=r"GroundTruth\.csv row 3 \(image b\): unknown class 'NV'.*MEL, BCC"):
        read_table(isic(), classes=["MEL", "BCC"])


def test_two_files_of_one_image(isic):
    with pytest.raises(DataError, match=r"a\.png and a\.jpg are both image a"):
        read_table(isic(images=("a.jpg", "a.png", "b.png", "c.jpg")))


@pytest.mark.parametrize("name", ["GroundTruth.csv", "metadata.csv"])
def test_a_table_that_is_not_utf8(isic, name):
    root = isic(metadata=[["image", "lesion_id"], ["a", "L"]])
    (root / name).write_bytes((root / name).read_bytes() + "d,Läsion".encode("latin-1"))
    with pytest.raises(DataError, match=rf"{name} cannot be read.*UTF-8"):
        read_table(root)


def test_two_tables_of_one_kind(isic):
    root = isic()
    write_csv(root / "ISIC_GroundTruth.csv", [HEADER])
    with pytest.raises(DataError, match=r"several groundtruth tables: GroundTruth\.csv, ISIC_GroundTruth\.csv"):
        read_table(root)


def test_metadata_that_would_silently_lose_the_lesions(isic):
    """Each of these once made every image its own lesion, and lesions then crossed the split."""
    with pytest.raises(DataError, match=r"metadata\.csv has no column 'image'"):
        read_table(isic(metadata=[["isic_id", "lesion_id"], ["a", "L"]]))
    with pytest.raises(DataError, match=r"metadata\.csv names none of the images.*'a\.jpg'"):
        read_table(isic(metadata=[["image", "lesion_id"], ["a.jpg", "L"]]))
    with pytest.raises(DataError, match=r"metadata\.csv: image a stands in rows 2 and 4"):
        read_table(isic(metadata=[["image", "lesion_id"], ["a", "L"], ["b", "L"], ["a", "M"]]))


def test_metadata_of_class_folders_that_names_none_of_them(folders):
    write_csv(folders / "metadata.csv", [["image", "lesion_id"], ["9", "L"]])
    with pytest.raises(DataError, match=r"metadata\.csv names none of the images"):
        read_table(folders)


def test_a_missing_folder(tmp_path):
    with pytest.raises(DataError, match="nowhere does not exist"):
        read_table(tmp_path / "nowhere")


def test_an_empty_folder_and_a_lone_class(tmp_path):
    with pytest.raises(DataError, match="is no data set"):
        read_table(tmp_path)
    picture(tmp_path / "ROS" / "1.png")
    with pytest.raises(DataError, match="two or more class folders"):
        read_table(tmp_path)


def test_an_empty_class_folder(folders):
    (folders / "EMPTY").mkdir()
    (folders / "EMPTY" / "notes.txt").write_text("no picture")
    with pytest.raises(DataError, match=r"class folder .*EMPTY holds no image"):
        read_table(folders)


def test_an_unknown_class_folder(folders):
    with pytest.raises(DataError, match=r"unknown class 'ROS'.*ACNE"):
        read_table(folders, classes=["ACNE", "NEVUS"])


def test_two_files_of_one_image_in_a_class_folder(folders):
    picture(folders / "ROS" / "1.png")
    with pytest.raises(DataError, match=r"1\.png and 1\.jpg are both image ROS/1"):
        read_table(folders)


def test_one_picture_in_two_class_folders(folders):
    (folders / "ACNE" / "1.jpg").write_bytes((folders / "ROS" / "1.jpg").read_bytes())
    with pytest.raises(DataError, match="one picture has two labels") as caught:
        read_table(folders)
    assert "(ACNE)" in str(caught.value) and "(ROS)" in str(caught.value)


def test_same_name_and_size_but_other_content_is_two_pictures(folders):
    data = bytearray((folders / "ROS" / "1.jpg").read_bytes())
    data[-3] ^= 1
    (folders / "ACNE" / "1.jpg").write_bytes(data)
    assert len(read_table(folders)) == 3


def test_hidden_files_are_no_images(folders):
    picture(folders / "ROS" / ".thumb.jpg")
    picture(folders / "ROS" / ".ipynb_checkpoints" / "1-checkpoint.jpg")
    picture(folders / "ROS" / "deep" / ".cache" / "small" / "2.jpg")
    (folders / ".git").mkdir()
    assert len(read_table(folders)) == 3


def test_a_data_set_below_a_hidden_folder(folders):
    picture(folders / ".data" / "ROS" / "1.jpg")
    picture(folders / ".data" / "ACNE" / "1.jpg", "black")
    assert len(read_table(folders / ".data")) == 2


def test_labels_alone(isic):
    classes, labels = read_isic_labels(isic() / "GroundTruth.csv")
    assert classes == ("MEL", "NV")
    assert labels == {"a": "MEL", "b": "NV", "c": "NV"}
