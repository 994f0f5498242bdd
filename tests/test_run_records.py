"""Compared with Snakemake's own class for its records."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from snakemake.persistence import MetadataRecord
from snakemake.persistence.file import FilePersistence

from drgrade.run_records import METADATA, existing, is_recorded, mark_stale, record_file

OUT = "results/demo/lesions/lesions.parquet"


@pytest.fixture
def snakemake(tmp_path, monkeypatch):
    """Snakemake's records of a folder in which one output was made from two files."""
    monkeypatch.chdir(tmp_path)
    for path in (OUT, "model.pth", "part.searched"):
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        Path(path).touch()
    records = FilePersistence(path=tmp_path / ".snakemake")
    records._write_record(OUT, MetadataRecord(rule="lesions", input=["model.pth", "part.searched"]))
    return records


def incomplete(records: FilePersistence) -> bool:
    """Whether Snakemake sees the output as incomplete."""
    records._clear_cache()
    return records._filter_incomplete_keys([OUT]) == {OUT}


@given(st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1, max_size=600))
def test_records_are_where_snakemake_keeps_them(path):
    folder = Path("/tmp")
    records = FilePersistence.__new__(FilePersistence)
    records._max_len = None
    assert str(record_file(path, folder)) == records._record_path(str(folder), path)


def test_an_output_is_recorded_once_it_is_finished_or_begun(snakemake):
    assert is_recorded(OUT)
    assert not is_recorded("other")
    snakemake._mark_incomplete("other", None)
    assert is_recorded("other")


def test_an_output_is_incomplete_while_a_file_it_was_made_from_is_missing(snakemake):
    assert mark_stale([OUT], []) == []
    os.remove("model.pth")
    assert mark_stale([OUT], ["*.searched"]) == [OUT]
    assert incomplete(snakemake)
    Path("model.pth").touch()
    assert mark_stale([OUT], ["*.searched"]) == []
    assert not incomplete(snakemake)


def test_files_that_snakemake_deletes_after_use_may_be_missing(snakemake):
    os.remove("part.searched")
    assert mark_stale([OUT], ["*.searched"]) == []
    assert mark_stale([OUT], []) == [OUT]


def test_marks_of_snakemake_itself_stay(snakemake):
    snakemake._mark_incomplete(OUT, "17")
    assert mark_stale([OUT], []) == []
    assert incomplete(snakemake)


def test_a_record_that_was_cut_short_says_nothing(snakemake):
    record = record_file(OUT, METADATA)
    record.write_text(record.read_text()[:40])
    os.remove("model.pth")
    assert mark_stale([OUT], []) == []


def test_existing_outputs_match_a_pattern(snakemake):
    assert existing(["results/*/lesions/*.parquet", "results/*/lesions/lesions.parquet", "none"]) == [OUT]
