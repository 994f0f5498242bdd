"""Start weights that a package of the extra ``weights`` has are made by the run that needs them."""

from drgrade.weights.sources import SOURCES

VIT = "vit_small_patch14_dinov2"
MADE = {f"weights_{name}" for name in SOURCES}


def test_weights_are_made_where_they_are_needed_and_not_there(fresh):
    target = ("--until", "grade")
    experiment = {"grader": "knn", "encoder": VIT, "start": "imagenet", "input_size": 56}
    fresh.edit({"experiments": {"vit": experiment}, "robustness.experiments": [], "explanations": {}})
    assert fresh.planned(*target) & MADE == {f"weights_{VIT}"}
    (fresh.folder / f"data/weights/{VIT}.pth").touch()  # the user's own, which comes first
    planned = fresh.planned(*target)
    assert "grade" in planned
    assert not planned & MADE
