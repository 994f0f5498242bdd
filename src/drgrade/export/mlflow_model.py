"""A model for MLflow that takes the bytes of image files: ``mlflow models serve`` answers requests with it.

It holds a portable copy of the trained model and the code in :mod:`drgrade.export.pyfunc`; drgrade itself
must be installed where it runs.
"""

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from drgrade import __version__
from drgrade.predict.table import COLUMNS, USE

if TYPE_CHECKING:
    from mlflow.models import ModelSignature

CODE = Path(__file__).with_name("pyfunc.py")
TYPES = {"string": "string", "float64": "double", "Int8": "long", "boolean": "boolean"}
"""Types of columns: pandas, and MLflow."""
ALWAYS = {"file", "status", "use"}
"""Columns without missing values."""


def write_mlflow(portable: Path, folder: Path) -> str:
    """Write an MLflow model.

    Args:
        portable: portable copy of the trained model, see :func:`drgrade.export.portable.write_portable`.
        folder: to write to; must not exist.

    Returns:
        A line on what was written.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    os.environ["MLFLOW_UV_AUTO_DETECT"] = "false"  # the working directory's lock is not the model's
    import mlflow.pyfunc

    for name in ("mlflow.pyfunc", "mlflow.utils.environment"):  # they report each step, and a missing pip
        logging.getLogger(name).setLevel(logging.ERROR)
    mlflow.pyfunc.save_model(
        folder,
        python_model=CODE,
        artifacts={"model": str(portable)},
        signature=signature(),
        input_example=example(),
        pip_requirements=[f"drgrade=={__version__}"],
        metadata={"use": USE, "install": "drgrade is installed from its repository, not from PyPI"},
    )
    return "a model that takes the bytes of image files"


def signature() -> "ModelSignature":
    """Return the columns of requests and answers."""
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema, TensorSpec

    asked = Schema([ColSpec("binary", "image"), ColSpec("string", "name", required=False)])
    given: list[ColSpec | TensorSpec] = [
        ColSpec(TYPES[kind], name, required=name in ALWAYS) for name, kind in COLUMNS.items()
    ]
    return ModelSignature(asked, Schema(given))


def example() -> Any:
    """Return a request with one image: a brown disc on black, as a photograph of a retina roughly is."""
    import pandas as pd

    image = np.zeros((192, 256, 3), np.uint8)
    cv2.circle(image, (128, 96), 88, (40, 90, 150), -1)  # OpenCV writes blue, green, red
    _, content = cv2.imencode(".png", image)
    return pd.DataFrame({"image": [content.tobytes()], "name": ["17_left.png"]})
