"""Label files as people have them, and the match of their lines with photographs."""

import logging
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from drgrade.data.labels import MISSING, Label, key, match, photographs, read_labels
from drgrade.errors import UserError


def labelled(*names: str) -> list[Label]:
    return [Label(name, 0, {}) for name in names]


def files(*names: str) -> dict[str, Path]:
    return {key(name): Path("images", name) for name in names}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: no column 'image'"),
        ("image,stage\nx,1\n", "line 1: no column 'level'"),
        ("image,level\na,0\nb,5\n", "line 3: grade '5' is not one of 0 to 4"),
        ("image,level\na,1.5\n", "line 2: grade '1.5'"),
        ("image,level,Level\na,1,2\n", "line 1: two columns are called 'level'"),
        ("image,level\na,\n", "line 2: grade ''"),
        ("image,level\na\n", "line 2: grade ''"),
        ("image,level\n,2\n", "line 2: no image name"),
        ("image,level\na,2\n\na,3\n", "line 4: image 'a' has a label already"),
        ('image,level\n"a"b,2\n', "not a CSV text file"),
    ],
)
def test_broken_labels_name_file_line_and_remedy(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "labels.csv").write_text(text)
    with pytest.raises(UserError, match=r"labels\.csv: ") as error:
        read_labels(tmp_path / "labels.csv", "image", "level")
    assert says in str(error.value)
    assert ";" in str(error.value) or "save it" in str(error.value)
    assert "\n" not in str(error.value)


def test_labels_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("image,level\nJos\xe9,1\n".encode("latin-1"))
    with pytest.raises(UserError, match="not a CSV"):
        read_labels(tmp_path / "labels.csv", "image", "level")


def test_labels_with_a_byte_order_mark(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_bytes("\ufeffimage,level\na,3\n".encode())
    assert read_labels(tmp_path / "labels.csv", "image", "level")[0].grade == 3


@pytest.mark.parametrize(
    "content",
    [
        "image,level\na,3\nb,0\n".encode("utf-16"),
        b"image;level\na;3\nb;0\n",
        b"image\tlevel\r\na\t3\r\nb\t0\r\n",
        b"image;level;note\na;3;1,5\nb;0;2,5\n",
        b"image,level\na,3.0\nb,0.0\n",
        b'"image","level"\n"a","3"\n"b","0"',
    ],
)
def test_tables_as_spreadsheets_and_r_write_them(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "labels.csv").write_bytes(content)
    read = read_labels(tmp_path / "labels.csv", "image", "level")
    assert [(label.image, label.grade) for label in read] == [("a", 3), ("b", 0)]


def test_a_line_separator_inside_a_cell_ends_no_line(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text("image,level,patient\na,3,one\u2028two\nb,x,\n")
    with pytest.raises(UserError, match="line 3: grade 'x'"):
        read_labels(tmp_path / "labels.csv", "image", "level")
    (tmp_path / "labels.csv").write_text('image,level,patient\na,3,"one\ntwo"\nb,1,\n')
    first, second = read_labels(tmp_path / "labels.csv", "image", "level", ("patient",))
    assert (first.other["patient"], second.grade) == ("one\ntwo", 1)


def test_all_problems_come_at_once_up_to_twenty(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text("image,grade,eye\na,7,left\n,1,\nb,2,middle\nb.jpg,2,\nc,1,OD\n")
    with pytest.raises(UserError) as error:
        read_labels(file, "image", "grade", ("eye",), allowed={"eye": {"left", "od"}})
    lines = str(error.value).splitlines()
    assert lines[0] == f"{file}: 4 problems:"
    assert [line.split(":")[0].strip() for line in lines[1:]] == ["line 2", "line 3", "line 4", "line 5"]
    file.write_text("image,grade\n" + "".join(f"{n},9\n" for n in range(30)))
    with pytest.raises(UserError) as error:
        read_labels(file, "image", "grade")
    assert len(str(error.value).splitlines()) == 22
    assert str(error.value).endswith("and 10 more")


@pytest.mark.parametrize("cell", sorted({*MISSING, "NA", "NaN", "Unknown", " - "}))
def test_words_for_missing_values_are_no_values(tmp_path: Path, cell: str) -> None:
    (tmp_path / "labels.csv").write_text(f"image,grade,patient\na,{cell},{cell}\n")
    (label,) = read_labels(tmp_path / "labels.csv", "image", "grade", ("patient",), blank=True)
    assert (label.grade, label.other["patient"]) == (None, "")


def test_names_match_whatever_their_case_ending_and_unicode_form() -> None:
    composed, decomposed = (
        unicodedata.normalize("NFC", "Jos\u00e9"),
        unicodedata.normalize("NFD", "Jos\u00e9"),
    )
    labels = labelled("a.JPEG", f"{composed}.png", "IM1", "gone")
    found = list(match(labels, files("A.jpg", f"{decomposed}.tif", "im1.dcm"), Path("labels.csv")))
    assert [(name, path and path.name) for name, path, _ in found] == [
        ("A", "A.jpg"), (decomposed, f"{decomposed}.tif"), ("im1", "im1.dcm"), ("gone", None),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("names", "images", "cause"),
    [
        (["1", "2", "10"], ["0001.jpg", "0002.jpg", "0010.jpg"], "lost leading zeros"),
        (["1.0", "2.0", "10.0"], ["1.jpg", "2.jpg", "10.jpg"], "decimals"),
        (["images/a.jpg", "images/b.jpg", r"D:\data\c.jpg"], ["a.jpg", "b.jpg", "c.jpg"], "folders before"),
        (["a.gif", "b.gif", "c.gif"], ["a.jpg", "b.jpg", "c.jpg"], "endings differ"),
        (["a 1", "b 1", "c 1"], ["a_1.jpg", "b-1.jpg", "c1.jpg"], "spaces, dashes or underscores"),
        (["x", "y", "z"], ["a.jpg", "b.jpg", "c.jpg"], "is this the label file of these photographs?"),
    ],
)
def test_labels_that_match_nothing_stop_with_examples_and_a_cause(
    names: list[str], images: list[str], cause: str
) -> None:
    with pytest.raises(UserError) as error:
        list(match(labelled(*names), files(*images), Path("labels.csv")))
    assert str(error.value).startswith("labels.csv: 0 of 3 labels match one of 3 photographs of images")
    assert cause in str(error.value)
    assert all(repr(name) in str(error.value) for name in (*names, *images))


def test_a_few_leftovers_on_both_sides_are_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    names = [f"{number:03}" for number in range(10)]
    found = list(
        match(labelled(*names, "1000"), files(*(f"{name}.png" for name in names), "x.png"), Path("l.csv"))
    )
    assert len(found) == 12
    assert "l.csv: 10 of 11 labels match one of 11 photographs" in caplog.text
    assert "'1000'; photographs without a label, such as 'x.png'" in caplog.text


@pytest.mark.parametrize(("labels", "images"), [(100, 3), (3, 100), (5, 0), (0, 5)])
def test_labels_of_more_or_of_fewer_photographs_are_no_mistake(labels: int, images: int, caplog) -> None:
    caplog.set_level(logging.WARNING)
    there = files(*(f"{n}.jpg" for n in range(images)))
    assert len(list(match(labelled(*map(str, range(labels))), there, Path("l.csv")))) == max(labels, images)
    assert not caplog.records


@given(st.sets(st.text(st.characters(categories=["L", "N"]), min_size=1), max_size=8), st.data())
def test_each_label_and_each_photograph_comes_once(names: set[str], data: st.DataObject) -> None:
    distinct = {key(name): name for name in names}
    images = files(*(f"{name}.jpg" for name in distinct.values()))
    some = data.draw(st.sets(st.sampled_from(sorted(distinct.values())))) if distinct else set()
    found = list(match(labelled(*sorted(some)), images, Path("labels.csv")))
    assert sorted(path for _, path, _ in found if path) == sorted(images.values())
    assert [label.image for _, _, label in found if label] == sorted(some)


def test_photographs_that_differ_in_case_alone_are_refused(tmp_path: Path) -> None:
    for name in ("a.jpg", "A.JPG"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(UserError, match=r"a\.jpg: same name as A\.JPG; rename or remove one"):
        photographs(tmp_path)
