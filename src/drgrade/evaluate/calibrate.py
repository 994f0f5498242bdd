"""The stage ``calibrate``: fit what turns predictions into decisions, on validation photographs.

``calibration.json`` is the one file of it: the stage evaluate measures what it is worth on test photographs,
and predictions for new photographs use it.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from drgrade.errors import UserError
from drgrade.evaluate.fits import Fit, Whose, by_whose, fit_experiment
from drgrade.evaluate.predictions import gather
from drgrade.files import write_json
from drgrade.params import Calibrate

log = logging.getLogger(__name__)

FILE = "calibration.json"


@dataclass(frozen=True)
class Calibration:
    """Content of ``calibration.json``.

    Attributes:
        params: the block ``calibrate``.
        experiments: fits of each experiment, see :func:`drgrade.evaluate.fits.fit_experiment`.
    """

    params: Calibrate
    experiments: Mapping[str, Sequence[Fit]]

    def of(self, experiment: str) -> dict[Whose, Fit]:
        """Return the fits of an experiment by seed and fold.

        Raises:
            UserError: it is not in the file.
        """
        if experiment not in self.experiments:
            raise UserError(f"{FILE}: lacks the experiment {experiment}; run the stage calibrate again")
        return by_whose(self.experiments[experiment])


_JSON = TypeAdapter(Calibration)


def calibrate(predictions: Sequence[Path], params: Calibrate, out: Path) -> None:
    """Fit on the validation photographs of all experiments; write ``out/calibration.json``.

    Args:
        predictions: one ``predictions.parquet`` for each training of each experiment.
        params: method of calibration, operating point, and the sets' kind and coverage.
        out: folder to write to.

    Raises:
        UserError: a table is damaged.
    """
    fits = {name: fit_experiment(name, table, params) for name, table in gather(predictions).items()}
    write_json(_JSON.dump_python(Calibration(params, fits), mode="json"), out / FILE)
    for name, (*_, together) in fits.items():
        used = f"calibration: {together.method}, {together.n} validation photographs"
        log.info("%s: %s", name, "; ".join([used, *map(": ".join, together.reasons.items())]))


def read_calibration(path: Path) -> Calibration:
    """Read ``calibration.json``; numbers are those that were written.

    Raises:
        UserError: it is missing or damaged.
    """
    try:
        return _JSON.validate_json(path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; run the stage calibrate") from None
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"])) or "content"
        raise UserError(f"{path}: {key}: {first['msg']}; run the stage calibrate again") from None
