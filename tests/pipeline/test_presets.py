"""The published protocols as Snakemake plans them: a handful of jobs, however many photographs."""

import re


def jobs(project, name: str) -> dict[str, int]:
    """Jobs of each rule in a dry run of a file in params/."""
    said = project.snakemake("--dry-run", "--quiet", "rules", "--configfile", f"params/{name}.yaml")
    return {rule: int(count) for rule, count in re.findall(r"^(\w+) +(\d+)$", said, re.M)}


ONCE = dict.fromkeys(("overlaps", "calibrate", "evaluate", "explain", "report", "all"), 1)
DETECTOR = dict.fromkeys(("lesion_boxes", "detector", "lesions", "lesion_metrics"), 1)
MARKS = dict.fromkeys(("segmentation", "segmentation_metrics", "lesions", "lesion_metrics"), 1)
IMAGES = dict.fromkeys(("download", "index", "crop"), 1)


def test_the_protocols_of_the_papers(fresh):
    """A grade job a training, a pretrain job an encoder; patches where an encoder looks at boxes."""
    planned = jobs(fresh, "eyepacs-local_to_global")
    assert planned == {**IMAGES, **ONCE, "pretrain": 1, "grade": 24, "total": 34}  # no lesion is looked for
    # start weights of a file are waited for before anything runs
    weights = fresh.folder / "data/weights/resnet50.tv_in1k.safetensors"
    assert weights.name in fresh.snakemake(
        "-n", "--configfile", "params/eyepacs-lesion_contrastive.yaml", ok=False
    )
    weights.touch()
    planned = jobs(fresh, "eyepacs-lesion_contrastive")
    assert planned == {
        **{rule: 2 * count for rule, count in IMAGES.items()}, **DETECTOR, **ONCE, "patches": 1,
        "pretrain": 3, "grade": 1 + 4 * 2 * 5 * 3, "total": 141,
    }  # fmt: skip


def test_lesions_from_the_segmentation(fresh):
    """No detector is trained where the segmentation finds the lesions."""
    assert jobs(fresh, "idrid") == {
        **IMAGES, **MARKS, **ONCE, "patches": 1, "pretrain": 1, "grade": 5 * (1 + 3 * 3), "total": 65,
    }  # fmt: skip
