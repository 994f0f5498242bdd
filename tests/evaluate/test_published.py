import pytest

from drgrade.data.registry import DATASETS
from drgrade.evaluate.leaderboard import COLUMNS as LEADERBOARD
from drgrade.evaluate.published import COLUMNS, KAPPA, METRICS, PUBLISHED, beside


def found(table, system, metric):
    return table[(table["system"] == system) & (table["metric"] == metric)]


def test_no_figure_is_comparable_with_synthetic_photographs():
    table = beside("demo", 42_670)
    assert tuple(table.columns) == COLUMNS
    assert len(table) == len(PUBLISHED)
    assert table["not_comparable"].str.startswith("our photographs are synthetic (demo)").all()


def test_a_figure_is_comparable_on_the_same_official_part_only():
    private = beside("eyepacs", 42_670)
    open_ones = private[private["not_comparable"].str.startswith("comparable")]
    assert set(open_ones["test"]) == {"private part, 42,670"}
    assert set(open_ones["value"]) == {0.84479, 0.839, 0.84118, 0.84958, 0.8322, 0.83, 0.8631}
    assert found(private, "RAM", "QWK")["not_comparable"].tolist() == [
        "comparable: same dataset and number of test photographs"
    ]
    fewer = found(beside("eyepacs", 7_000), "RAM", "QWK")["not_comparable"].tolist()
    assert fewer == ["other test photographs: ours are 7,000"]
    elsewhere = found(beside("idrid", 42_670), "RAM", "QWK")["not_comparable"].tolist()
    assert elsewhere == ["our dataset is idrid"]


def test_defects_of_a_source_stand_beside_its_figure_even_where_the_test_is_the_same():
    whole = found(beside("eyepacs", 53_576), "local-to-global", "accuracy")
    linear, neighbours = whole["not_comparable"]
    assert linear == (
        "comparable: same dataset and number of test photographs; but its code reports the best epoch on the "
        "test photographs; grade 0 for every photograph has accuracy 0.738 there"
    )
    assert "best epoch" not in neighbours
    ddr = found(beside("ddr", 4_105), "DeepMT-DR", "accuracy")["not_comparable"].tolist()
    assert ddr[0] == (
        "the number of its test photographs is not known here; the released code selects epochs on the test "
        "photographs"
    )


def test_an_uncertain_kappa_is_never_beside_our_qwk():
    kappas = [figure for figure in PUBLISHED if figure.metric == KAPPA]
    assert {figure.value for figure in kappas} == {0.778, 0.837}
    assert KAPPA not in METRICS
    assert set(METRICS.values()) <= set(LEADERBOARD)
    assert {figure.metric for figure in PUBLISHED} == {*METRICS, KAPPA}


@pytest.mark.parametrize("figure", PUBLISHED, ids=lambda figure: f"{figure.system}_{figure.value}")
def test_figures_have_a_source_and_a_dataset_that_we_read(figure):
    assert 0 < figure.value <= 1
    assert figure.source
    assert figure.dataset in DATASETS.names()
