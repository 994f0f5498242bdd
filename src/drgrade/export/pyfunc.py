"""Code of the exported MLflow model, which MLflow copies into it and runs; no module imports it."""

from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel, PythonModelContext


class Grades(PythonModel):  # type: ignore[misc]
    """Grades the bytes of image files."""

    def load_context(self, context: PythonModelContext) -> None:
        """Load the portable copy of the trained model."""
        from drgrade.predict.model import Model

        self.model = Model.load(context.artifacts["model"])

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Grade images, all in one batch.

        Args:
            context: not used.
            model_input: columns ``image``, contents of files, and if wanted ``name``, file names that tell
                patient and eye.
            params: not used.

        Returns:
            A row for each image with the columns of ``predict.table.COLUMNS``; missing values are None.
        """
        names = model_input.get("name", pd.Series(None, model_input.index, dtype=object))
        given = [name if isinstance(name, str) else f"image {number}" for number, name in enumerate(names)]
        table = self.model.grade_images(list(model_input["image"]), given).table
        return table.astype(object).where(table.notna(), None)


set_model(Grades())
