"""The key that identifies a training: an interrupted one is resumed only if its key is unchanged."""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from drgrade.files import sha256
from drgrade.sources import software


def training_key(
    stage: str,
    part: str | None,
    params: Mapping[str, Any],
    *,
    photographs: Mapping[str, pd.DataFrame] | None = None,
    files: Iterable[Path | None] = (),
    facts: Mapping[str, Any] | None = None,
) -> str:
    """A digest that changes with anything that would make resuming a training wrong.

    Args:
        stage: verb, such as ``grade``.
        part: module of the chosen grader or method, such as ``drgrade.grading.finetune``, or None; its code
            and that of all the stage imports, and the libraries' versions, are part of the key.
        params: all resolved params that the training uses.
        photographs: training and validation photographs, by split: image_id, row and, if it is used, grade.
        files: input files: index, crops, store, boxes, start weights; None and folders are ignored.
        facts: anything else, as JSON values.

    Returns:
        64 hexadecimal digits.
    """
    listed = {
        name: table.reindex(columns=["image_id", "row", "grade"]).astype("string").fillna("").values.tolist()
        for name, table in (photographs or {}).items()
    }
    read = [(path.name, sha256(path)) for path in files if path is not None and path.is_file()]
    made_of = software(stage, *([part] if part else []))
    content = [stage, part, dict(params), listed, read, dict(facts or {}), made_of]
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
