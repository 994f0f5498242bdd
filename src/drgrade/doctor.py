"""Report the state of an installation: versions, machine, operators, data, weights, tracking.

A missing component is no error; its line in the report says how to get it.
"""

import importlib.metadata
import os
import pkgutil
import platform
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from drgrade.errors import UserError

Lines = list[tuple[str, str]]

PACKAGES = (
    "drgrade", "torch", "torchvision", "onedl-mmdetection", "onedl-mmcv", "onedl-mmengine",
    "pytorch-lightning", "timm", "lightly", "snakemake", "dvc", "mlflow", "numpy", "pandas",
    "opencv-python-headless",
)  # fmt: skip


def report() -> str:
    """Return the whole report, one line for each item; an error in one section does not affect the others."""
    sections: dict[str, Callable[[], Lines]] = {
        "Versions": versions,
        "Machine": machine,
        "Devices": devices,
        "Detection operators": operators,
        "Data": data,
        "Start weights": weights,
        "Tracking": tracking,
    }
    lines = []
    for title, section in sections.items():
        try:
            found = section()
        except Exception as error:  # a broken install must not hide the rest of the report
            found = [("missing", f"{type(error).__name__}: {error}; try `uv sync --frozen`")]
        width = max(len(name) for name, _ in found)
        lines += [title, *(f"  {name:<{width}}  {text}" for name, text in found)]
    return "\n".join(lines)


def versions() -> Lines:
    """Versions of Python and of the packages that affect results."""
    return [("python", platform.python_version()), *((name, version(name)) for name in PACKAGES)]


def version(package: str) -> str:
    """Installed version of a package, or how to get it."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "missing: uv sync --frozen"


def machine() -> Lines:
    """CPU cores available to this process, memory, free disk space for results."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return [
        ("system", f"{platform.system()} {platform.machine()}"),
        ("CPU cores", str(len(os.sched_getaffinity(0)))),
        ("memory", f"{memory / 1e9:.1f} GB"),
        ("free disk", f"{shutil.disk_usage('.').free / 1e9:.1f} GB in this folder"),
    ]


def devices() -> Lines:
    """Devices that torch can use."""
    import torch

    found = [("cpu", "always")]
    for place in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(place)
        found.append((f"cuda:{place}", f"{properties.name}, {properties.total_memory / 1e9:.0f} GB"))
    if torch.backends.mps.is_available():
        found.append(("mps", "Apple GPU"))
    if len(found) == 1:
        found.append(
            ("cuda", "missing: an NVIDIA GPU with a driver for CUDA 13; everything runs on the CPU too")
        )
    return found


def operators() -> Lines:
    """Which implementation of mmcv's operators is in use."""
    from drgrade.lesions.ops import STAND_INS, install

    if install() == "compiled":
        return [("live backend", "compiled (mmcv's own, all of them)")]
    return [
        ("live backend", "torchvision (enough for every config in workflow/detectors, on CPU and CUDA)"),
        *STAND_INS.items(),
        ("all others", "missing: they need mmcv's compiled operators; envs/ has a recipe"),
    ]


def data() -> Lines:
    """For every dataset, where its raw files are or how to get them."""
    import drgrade.data
    from drgrade.data.registry import DATASETS, raw_root

    found = []
    for module in pkgutil.iter_modules(drgrade.data.__path__):
        try:
            card = DATASETS.get(module.name)().card
        except UserError:  # a module of the stage itself, not a dataset
            continue
        root = raw_root(card.name)
        if root.is_dir() and any(root.iterdir()):
            text = f"{root} ({card.licence})"
        elif card.access == "form":
            text = f"missing: {card.instructions.format(root=root, source=card.source)}"
        else:
            text = f"missing: drgrade download --dataset {card.name} makes it"
        found.append((card.name, text))
    return found


def weights() -> Lines:
    """ImageNet weights that runs can start from."""
    from drgrade.encoders import PACKAGED, imagenet_file
    from drgrade.weights.make import listing

    try:
        imagenet_file(PACKAGED)
        packaged = "here, in its package"
    except (UserError, ImportError) as error:
        packaged = f"missing: uv sync --frozen ({error})"
    return [(PACKAGED, packaged), *listing()]


def tracking() -> Lines:
    """Where MLflow runs are stored."""
    from drgrade.tracking import tracking_uri

    if os.environ.get("DRGRADE_TRACKING") == "off":
        return [("MLflow", "off (DRGRADE_TRACKING)")]
    uri = tracking_uri()
    note = ""
    if uri.startswith("sqlite:///") and not Path(uri.removeprefix("sqlite:///")).exists():
        note = " (missing: the first tracked job makes it)"
    return [("MLflow", hidden(uri) + note)]


def hidden(uri: str) -> str:
    """A URI with its password masked, so that the report can be pasted into an issue."""
    return re.sub(r"://([^/:]*):[^/]*@", r"://\1:***@", uri)
