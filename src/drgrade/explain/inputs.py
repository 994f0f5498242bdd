"""What the stage ``explain`` reads of the lesion stages, by its method.

Snakemake imports this module to know what to wait for, so it imports nothing slow.
"""

from drgrade.params import Params
from drgrade.segmentation.parts import part_names


def lesion_files(params: Params, name: str) -> list[str]:
    """Return the files of the lesion stages that an explanation needs; none if it explains a network."""
    needs = params.explanations[name].needs
    if needs == "boxes":
        folders = boxes_folders(params).values()
        return [f"{folder}/{table}.parquet" for folder in folders for table in ("lesions", "searched")]
    if needs == "segmentation":
        folder, parts = segmentation_folder(params), part_names(params.segmentation)
        return [f"{folder}/{part}/training.json" for part in parts]
    return []


def lesion_options(params: Params, name: str) -> str:
    """Return the same as options of the verb."""
    needs = params.explanations[name].needs
    if needs == "boxes":
        return " ".join(f"--boxes {dataset} {path}" for dataset, path in boxes_folders(params).items())
    return f"--segmentation {segmentation_folder(params)}" if needs == "segmentation" else ""


def boxes_folders(params: Params) -> dict[str, str]:
    """Return the folders with the detections, by dataset.

    The stage lesions searches the dataset of the role ``pretrain``. Photographs with masks of another dataset
    were searched by lesion_metrics, without those that the detector was trained on.
    """
    roles = params.roles
    return {
        roles.lesions: f"results/{roles.lesions}/lesion_metrics",
        roles.pretrain: f"results/{roles.pretrain}/lesions",
    }


def segmentation_folder(params: Params) -> str:
    """Return the folder of the trained segmentation networks."""
    return f"results/{params.roles.lesions}/segmentation"
