from pathlib import Path

from drgrade.summary import summary


def test_the_last_lines_name_the_leaderboard_and_the_report(tmp_path: Path) -> None:
    board = tmp_path / "leaderboard.csv"
    board.write_text("experiment,qwk,qwk_low,qwk_high\nimagenet,0.81094,0.7,0.8888\nmajority,0.0,,\n")
    assert summary(board, Path("report.html")) == [
        "experiment  QWK    95 % interval",
        "imagenet    0.811  0.700 to 0.889",
        "majority    0.000",
        f"leaderboard: {board}",
        "report: report.html",
    ]


def test_the_page_for_people_is_named_where_it_is(tmp_path: Path) -> None:
    board = tmp_path / "leaderboard.csv"
    board.write_text("experiment,qwk,qwk_low,qwk_high\nmajority,0.0,,\n")
    page = tmp_path / "leaderboard.html"
    page.touch()
    assert f"leaderboard: {page}" in summary(board, Path("report.html"))


def test_a_run_without_a_leaderboard_has_no_last_lines(tmp_path: Path) -> None:
    assert summary(tmp_path / "leaderboard.csv", Path("report.html")) == []
