import pandas as pd
import pytest

from drgrade.errors import UserError
from drgrade.files import atomic_write
from drgrade.plugins import Registry
from drgrade.schema import LESION_BOXES, read_table, write_table


def test_round_trip_keeps_types_and_drops_what_is_not_in_the_contract(tmp_path):
    table = pd.DataFrame(
        {
            "image_id": ["a"],
            "x1": [0],
            "y1": [1],
            "x2": [2],
            "y2": [3],
            "score": [0.5],
            "lesion": ["MA"],
            "more": [1],
        }
    )
    write_table(table, tmp_path / "t.parquet", LESION_BOXES)
    back = read_table(tmp_path / "t.parquet", LESION_BOXES)
    assert {name: str(kind) for name, kind in back.dtypes.items()} == LESION_BOXES
    assert back.loc[0, "x2"] == 2


def test_broken_tables_are_named(tmp_path):
    with pytest.raises(UserError, match=r"gone\.parquet: no such file"):
        read_table(tmp_path / "gone.parquet", LESION_BOXES)
    (tmp_path / "text.parquet").write_text("x")
    with pytest.raises(UserError, match=r"text\.parquet: not a readable parquet table"):
        read_table(tmp_path / "text.parquet", LESION_BOXES)
    pd.DataFrame({"image_id": ["a"]}).to_parquet(tmp_path / "few.parquet")
    with pytest.raises(UserError, match=r"few\.parquet: table lacks the columns x1, y1"):
        read_table(tmp_path / "few.parquet", LESION_BOXES)


def test_a_failed_write_leaves_the_old_file_and_nothing_beside_it(tmp_path):
    path = tmp_path / "t.txt"
    path.write_text("old")

    def fail() -> None:
        with atomic_write(path) as partial:
            partial.write_text("half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert path.read_text() == "old"
    assert [item.name for item in tmp_path.iterdir()] == ["t.txt"]


def test_registry_finds_a_module_by_name_and_says_what_it_lacks():
    graders = Registry("drgrade.grading")
    with pytest.raises(UserError, match=r"no module drgrade\.grading\.nothing"):
        graders.get("nothing")
    with pytest.raises(UserError, match="registers nothing under that name"):
        graders.get("base")
