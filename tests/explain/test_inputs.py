"""Which files of the lesion stages an explanation waits for."""

import pytest

from drgrade.explain.inputs import lesion_files, lesion_options
from drgrade.params import Params, check
from drgrade.params.results import NEEDS


def params(roles=None, **blocks) -> Params:
    methods = ("cam", "attention", "lesion_boxes", "segmentation")
    blocks |= {"explanations": {method: {"method": method} for method in methods}}
    if roles:
        blocks |= {"roles": roles, "datasets": {name: {} for name in roles.values()} | {"demo": {}}}
    return check(blocks, "x")


def test_maps_of_networks_need_no_lesion_stage():
    found = params()
    for name in ("cam", "attention"):
        assert found.explanations[name].needs == "networks"
        assert found.explanations[name].experiments == ["lesion_contrastive"]
        assert (lesion_files(found, name), lesion_options(found, name)) == ([], "")


def test_boxes_come_from_the_stage_that_searched_the_dataset():
    own = params()
    assert lesion_files(own, "lesion_boxes") == [
        "results/demo/lesions/lesions.parquet", "results/demo/lesions/searched.parquet",
    ]  # fmt: skip
    assert lesion_options(own, "lesion_boxes") == "--boxes demo results/demo/lesions"
    both = params({"lesions": "idrid", "pretrain": "eyepacs", "grade": "eyepacs"})
    assert set(lesion_files(both, "lesion_boxes")) == {
        f"results/{folder}/{table}.parquet"
        for folder in ("idrid/lesion_metrics", "eyepacs/lesions")
        for table in ("lesions", "searched")
    }
    assert lesion_options(both, "lesion_boxes") == (
        "--boxes idrid results/idrid/lesion_metrics --boxes eyepacs results/eyepacs/lesions"
    )


@pytest.mark.parametrize(("folds", "parts"), [(None, ["holdout"]), (3, ["fold0", "fold1", "fold2"])])
def test_all_parts_of_the_segmentation_are_waited_for(folds, parts):
    found = params(segmentation={"folds": folds})
    expected = [f"results/demo/segmentation/{part}/training.json" for part in parts]
    assert lesion_files(found, "segmentation") == expected
    assert lesion_options(found, "segmentation") == "--segmentation results/demo/segmentation"


def test_methods_without_a_grader_need_no_experiment():
    experiments = {"other": {"grader": "majority"}}
    for method in NEEDS:
        found = check({"experiments": experiments, "explanations": {"a": {"method": method}}}, "x")
        assert found.explanations["a"].experiments == []
