"""A trained model that grades new photographs: one training, or the mean of all trainings of an experiment.

>>> model = Model.load("results/eyepacs/grade/lesion_contrastive")
>>> table = model.grade([Path("17_left.jpeg"), Path("17_right.jpeg")])

Predictions, exports and the web page all use it.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Self

import numpy as np
import pandas as pd

from drgrade.errors import UserError
from drgrade.evaluate.fits import Fit
from drgrade.evaluate.metrics import to_grades
from drgrade.evaluate.operating import POINTS
from drgrade.evaluate.predictions import PROBABILITIES
from drgrade.grading.base import Output, Photographs
from drgrade.images.prepare import OK, Prepared, prepare_all
from drgrade.images.rules import RGBImage
from drgrade.images.workers import in_order
from drgrade.params import Calibrate, Crop
from drgrade.predict.source import find, warn
from drgrade.predict.table import COLUMNS, USE, described, patient_and_eye, set_text
from drgrade.schema import GRADE_NAMES, conform

if TYPE_CHECKING:
    from drgrade.grading.assembly import Assembly
    from drgrade.predict.heat_maps import HeatMaps

log = logging.getLogger(__name__)

BATCH = 64
"""Photographs held in memory at a time."""
CHUNK = 8
"""Photographs per task of a worker."""
WORTH = 16
"""Number of photographs from which each worker process pays."""


class Graded(NamedTuple):
    """Predictions for some photographs.

    Attributes:
        table: a row for each, with COLUMNS; values that are not known are missing.
        places: their numbers among the photographs that were given.
        heat_maps: drawings, uint8 RGB; None for a photograph without grade, and where none were asked for.
    """

    table: pd.DataFrame
    places: list[int]
    heat_maps: list[RGBImage | None]


@dataclass(frozen=True)
class Model:
    """One or more trainings of an experiment, with what turns their mean prediction into decisions.

    Attributes:
        experiment: name of the experiment.
        members: trained models by training, such as ``seed0``.
        fit: calibration, operating points and sets of grades; where something is missing, it says why.
        params: operating point, and how many grades the set of a photograph may hold before it is left to a
            clinician.
    """

    experiment: str
    members: "Mapping[str, Assembly]"
    fit: Fit
    params: Calibrate

    @classmethod
    def load(cls, where: str | Path) -> Self:
        """Load a model; warns if its probabilities are not calibrated, or it has no operating points.

        Args:
            where: folder of an experiment, ``results/<dataset>/grade/<experiment>``, for the mean of all its
                trainings; folder of one training, of its model, or its ``model.json``; folder of an exported
                model; or a model in MLflow's registry, such as ``models:/drgrade@champion``.

        Raises:
            UserError: there is no model, a file is missing or damaged, or the members' crops differ.
        """
        from drgrade.grading.assembly import assemble  # imports torch, which readers of drgrade.json need not

        found = find(where)
        members = {label: assemble(model) for label, model in found.folders.items()}
        if len({member.grader.crop.model_dump_json() for member in members.values()}) > 1:
            raise UserError(f"{where}: its trainings read different crops; run the stage grade again")
        warn(where, found.fit, found.params)
        return cls(found.experiment, members, found.fit, found.params)

    @property
    def crop(self) -> Crop:
        """How photographs are cropped for it."""
        return next(iter(self.members.values())).grader.crop

    def predict(self, photographs: Photographs) -> Output:
        """Return the mean probabilities and scores of all members for cropped photographs, not calibrated."""
        outputs = [member.grader.predict(member.completed(photographs)) for member in self.members.values()]
        probabilities = np.mean([output.probabilities for output in outputs], axis=0)
        return Output(probabilities, np.mean([output.score for output in outputs], axis=0))

    def grade(
        self, paths: Sequence[Path], *, force: bool = False, workers: int = 1, point: str | None = None
    ) -> pd.DataFrame:
        """Grade photographs; arguments and errors are those of :meth:`batches`.

        Returns:
            A row for each photograph, in order, with COLUMNS.
        """
        found = list(self.batches(paths, force=force, workers=workers, point=point))
        if not found:
            return pd.DataFrame(columns=list(COLUMNS))
        places = [place for graded in found for place in graded.places]
        table = pd.concat([graded.table for graded in found], ignore_index=True)
        return table.iloc[np.argsort(places)].reset_index(drop=True)

    def batches(
        self,
        paths: Sequence[Path],
        *,
        explain: str | None = None,
        force: bool = False,
        workers: int = 1,
        point: str | None = None,
    ) -> Iterator[Graded]:
        """Grade photographs, and yield about BATCH at a time, those of a patient together.

        A photograph that cannot be read or shows no retina gets a row with a reason. Models that read both
        eyes find them by file names such as ``17_left.jpeg`` and ``17_right.jpeg``, within a folder.

        Args:
            paths: the photographs.
            explain: method of the heat maps, ``auto`` for the one that suits the network; None: no heat maps.
            force: grade photographs without a retina too; their status stays.
            workers: processes that read photographs, while this one runs the networks.
            point: operating point of the column ``referable``; None: the one in ``params``, if it is known.

        Raises:
            UserError: the operating point or the heat map's method is not available.
        """
        chosen, maps = self._point(point), self._heat_maps(explain)
        groups = _groups(paths)
        order = [place for group in groups for place in group]
        chunks = [[paths[place] for place in order[at : at + CHUNK]] for at in range(0, len(order), CHUNK)]
        work = partial(prepare_all, self.crop, maps.side if maps else None)
        prepared = chain.from_iterable(in_order(work, chunks, min(workers, len(paths) // WORTH)))
        for group in groups:
            files, ready = [paths[place] for place in group], list(islice(prepared, len(group)))
            yield self._graded(files, ready, chosen, maps, force=force)._replace(places=group)

    def grade_images(
        self,
        images: Sequence[bytes],
        names: Sequence[str] = (),
        *,
        explain: str | None = None,
        force: bool = False,
        point: str | None = None,
    ) -> Graded:
        """Grade the contents of image files, all in one batch; see :meth:`batches`.

        Args:
            images: contents of files that could be photographs.
            names: their names, by which eyes are paired; none: ``image 0`` and so on.
            explain: method of the heat maps; None: no heat maps.
            force: grade photographs without a retina too.
            point: operating point of the column ``referable``.

        Raises:
            UserError: the operating point or the heat map's method is not available.
            ValueError: there are fewer or more names than images.
        """
        files = [Path(name) for name in names or (f"image {number}" for number in range(len(images)))]
        if len(files) != len(images):
            raise ValueError(f"{len(images)} images, {len(files)} names")
        chosen, maps = self._point(point), self._heat_maps(explain)
        prepared = prepare_all(self.crop, maps.side if maps else None, images)
        return self._graded(files, prepared, chosen, maps, force=force)

    def _graded(
        self,
        files: Sequence[Path],
        prepared: Sequence[Prepared],
        point: str | None,
        maps: "HeatMaps | None",
        *,
        force: bool,
    ) -> Graded:
        """Table and heat maps of one batch."""
        table = described(files, prepared).assign(calibration=self.fit.method, use=USE)
        drawings: list[RGBImage | None] = [None] * len(files)
        crops = {
            place: one.crop
            for place, one in enumerate(prepared)
            if one.crop is not None and (force or one.status == OK)
        }
        if crops:
            images, usable = np.stack(list(crops.values())), list(crops)
            rows = table.loc[usable, ["file", "patient", "eye"]].reset_index(drop=True)
            rows = rows.set_axis(["image_id", "patient_id", "eye"], axis=1)
            rows["grade"], rows["row"] = pd.NA, range(len(rows))
            output = self.predict(Photographs(images, rows))
            table = table.join(self._decided(output, point).set_axis(usable))
            if maps is not None:
                for place, heat in zip(usable, maps.heat(images), strict=True):
                    drawings[place] = maps.draw(prepared[place], heat)
        table = conform(table.reindex(columns=list(COLUMNS)), COLUMNS)
        return Graded(table, list(range(len(files))), drawings)

    def _decided(self, output: Output, point: str | None) -> pd.DataFrame:
        """Columns that follow from the mean prediction, a row for each photograph."""
        fit, probabilities = self.fit, output.probabilities
        grades = to_grades(output.score)
        columns = dict(zip(PROBABILITIES, fit.calibrated(probabilities).T, strict=True))
        table = pd.DataFrame({"score": output.score, "grade": grades, **columns})
        table["name"] = np.array(GRADE_NAMES)[grades]
        table["p_referable"] = fit.referable(probabilities)
        if point is not None:
            table["referable"] = fit.called(probabilities, point)
        if fit.sets is not None:
            sets = fit.sets.sets(probabilities)
            table["grades"] = list(map(set_text, sets))
            table["abstain"] = sets.sum(axis=1) > self.params.max_grades
        return table

    def _point(self, point: str | None) -> str | None:
        """Return the operating point to use; None if there is none and none was asked for."""
        chosen = point or self.params.point
        if chosen in self.fit.points:
            return chosen
        if point is None:
            return None
        if point not in POINTS:
            raise UserError(f"--point {point}: unknown; use one of {', '.join(POINTS)}")
        raise UserError(f"--point {point}: not available: {self.fit.reasons.get('points', 'not fitted')}")

    def _heat_maps(self, method: str | None) -> "HeatMaps | None":
        if method is None:
            return None
        from drgrade.predict.heat_maps import HeatMaps

        return HeatMaps.of([member.grader for member in self.members.values()], method)


def _groups(paths: Sequence[Path]) -> list[list[int]]:
    """Divide photographs, by number, into batches of about BATCH that keep those of a patient together."""
    patients: dict[str, list[int]] = {}
    for place, path in enumerate(paths):
        patients.setdefault(patient_and_eye(path)[0], []).append(place)
    groups: list[list[int]] = []
    for together in patients.values():
        if not groups or len(groups[-1]) + len(together) > BATCH:
            groups.append([])
        groups[-1] += together
    return groups
