"""The command line: its verbs (:mod:`drgrade.verbs`) and their arguments.

Snakemake's rules call these verbs; every one also runs by itself. A verb gets the values it needs as
``--params`` (its block of ``params.yaml`` as JSON; defaults where left out) and nothing else.
"""

import argparse
import contextlib
import logging
import os
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from drgrade import verbs as do
from drgrade.clpi.arguments import add_arguments as clpi_arguments
from drgrade.errors import UserError
from drgrade.faults import as_user_errors
from drgrade.run_lock import job_lock
from drgrade.tracking import PARENT

log = logging.getLogger(__name__)
Verb = Callable[..., argparse.ArgumentParser]
"""Adds the parser of a function in :mod:`drgrade.verbs`; ``params=False`` for one that has no block."""


class _Parser(argparse.ArgumentParser):
    """Reports an error on one line, as verbs do."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message}; see {self.prog} --help")


def _paths(parser: argparse.ArgumentParser, *names: str, optional: bool = False) -> None:
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}", type=Path, required=not optional, metavar="PATH")


def _searched_by(parser: argparse.ArgumentParser) -> None:
    by = "folder of the detector, or of the segmentation network: what lesions.source names"
    parser.add_argument("--model", type=Path, required=True, metavar="FOLDER", help=by)


def _block(parser: argparse.ArgumentParser, name: str, meaning: str) -> None:
    parser.add_argument(name, default="{}", metavar="JSON", help=meaning)


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="drgrade", description="Grade diabetic retinopathy, reproducibly. Research use, not a diagnosis."
    )
    verbs = parser.add_subparsers(title="verbs", metavar="VERB", required=True)

    def verb(call: Callable[[do.Arguments], None], params: bool = True) -> argparse.ArgumentParser:
        sub = verbs.add_parser(call.__name__, help=call.__doc__, description=call.__doc__)
        sub.set_defaults(call=call)
        if params:
            _block(sub, "--params", "the verb's block of params.yaml")
        return sub

    for group in (_images, _lesions, _grading, _results, _by_hand):
        group(verb)
    return parser


def _dataset(parser: argparse.ArgumentParser, role: str = "") -> None:
    """A cropped dataset: its name, and its folder in ``results``."""
    parser.add_argument(f"--{role}dataset", required=True)
    parser.add_argument(
        f"--{role}data",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="its folder in results",
    )


def _training(parser: argparse.ArgumentParser) -> None:
    """Which training of an experiment."""
    parser.add_argument("--seed", type=int, default=0, help="of everything random")
    parser.add_argument("--fold", type=int, default=None, help="the test fold, with cross-validation")


def _external(parser: argparse.ArgumentParser, meaning: str) -> None:
    parser.add_argument(
        "--external", nargs=2, action="append", default=[], metavar=("DATASET", "FOLDER"), help=meaning
    )


def _shared(parser: argparse.ArgumentParser, work: str) -> None:
    """Which part of its work a job does; a last one without the option joins all parts."""
    help = f"{work} part I of N, counted from 0"
    parser.add_argument("--shard", type=_shard, default=(0, 1), metavar="I/N", help=help)


def _images(verb: Verb) -> None:
    """Verbs of the rules in images.smk."""
    sub = verb(do.download)
    sub.add_argument("--dataset", required=True)
    _paths(sub, "manifest")
    _paths(sub, "listing", optional=True)
    sub = verb(do.index)
    sub.add_argument("--dataset", required=True)
    sub.add_argument("--limit", type=_limit, default=None, help="use only so many graded photographs")
    meaning = "so many consecutive numbers count as one patient"
    sub.add_argument("--numbers-per-patient", type=_limit, default=None, help=meaning)
    sub.add_argument("--workers", type=_number, default=os.cpu_count())
    _shared(sub, "survey")
    _paths(sub, "manifest", "out", "split")
    _paths(sub, "split_file", "exclude", optional=True)
    sub = verb(do.overlaps)
    _block(sub, "--roles", "the block roles of params.yaml")
    sub.add_argument(
        "--index", nargs=2, action="append", required=True, metavar=("DATASET", "PATH"), help="one a dataset"
    )
    _paths(sub, "out")
    sub = verb(do.crop)
    sub.add_argument("--dataset", required=True)
    sub.add_argument("--workers", type=_number, default=os.cpu_count())
    _shared(sub, "crop")
    _paths(sub, "index", "store", "table")


def _lesions(verb: Verb) -> None:
    """Verbs of the rules in lesions.smk."""
    sub = verb(do.lesion_boxes)
    sub.add_argument("--dataset", required=True)
    _paths(sub, "index", "crops", "out")
    sub = verb(do.lesion_masks)
    sub.add_argument("--dataset", required=True)
    sub.add_argument("--size", type=_number, required=True, help="side of a crop in pixels")
    sub.add_argument("--workers", type=_number, default=os.cpu_count())
    _paths(sub, "index", "crops", "out")
    _paths(verb(do.detector), "boxes", "out")
    sub = verb(do.lesions)
    sub.add_argument("--dataset", required=True)
    _block(sub, "--boxes-params", "the block lesion_boxes (tiling)")
    _shared(sub, "search")
    _paths(sub, "index", "crops", "out")
    _searched_by(sub)
    sub = verb(do.lesion_metrics)
    sub.add_argument("--dataset", required=True)
    _block(sub, "--boxes-params", "the block lesion_boxes")
    _block(sub, "--lesions-params", "the block lesions (search)")
    _paths(sub, "index", "crops", "out")
    _searched_by(sub)
    sub = verb(do.segmentation)
    sub.add_argument("--dataset", required=True)
    sub.add_argument("--part", default="holdout", help="holdout, or with cross-validation fold0, fold1, ...")
    _paths(sub, "index", "crops", "out")
    sub = verb(do.segmentation_metrics)
    sub.add_argument("--dataset", required=True)
    _paths(sub, "index", "crops", "models", "out")
    sub = verb(do.patches)
    sub.add_argument("--dataset", required=True)
    sub.add_argument("--size", type=_number, required=True, help="side of a crop in pixels")
    sub.add_argument("--source", choices=("detector", "masks", "random"), default="detector")
    _block(sub, "--boxes-params", "the block lesion_boxes (masks)")
    _paths(sub, "index", "crops", "out", "kinds", "statistics")
    _paths(sub, "lesions", optional=True)


def _grading(verb: Verb) -> None:
    """Verbs of the rules in grading.smk."""
    sub = verb(do.pretrain)
    sub.add_argument("--name", required=True, help="of the encoder, a key of the block pretrain")
    sub.add_argument("--patch", type=_number, required=True, help="side of a patch in crop pixels")
    sub.add_argument("--by-fold", action="store_true", help="one encoder a fold, blind to that fold")
    _dataset(sub)
    _paths(sub, "manifest", "weights")
    _paths(sub, "patches", "kinds", optional=True)
    sub = verb(do.grade)
    sub.add_argument("--experiment", required=True)
    _training(sub)
    sub.add_argument(
        "--part", type=_shard, default=None, metavar="K/N",
        help="leave out part K, counted from 0, of N of the training patients",
    )  # fmt: skip
    _block(sub, "--crop-params", "the block crop, kept with the model")
    _dataset(sub)
    _external(sub, "test on another dataset too; its folder in results")
    sub.add_argument(
        "--member", nargs=2, action="append", default=[], metavar=("EXPERIMENT", "FOLDER"),
        help="a training of another experiment that this one builds on",
    )  # fmt: skip
    sub.add_argument(
        "--masked", nargs=2, metavar=("DATASET", "FOLDER"),
        help="learn from the lesion masks of a dataset; its folder in results",
    )  # fmt: skip
    sub.add_argument(
        "--features", nargs=2, action="append", default=[], metavar=("NAME", "FOLDER"),
        help="a feature set that the experiment is fitted on; output of the verb features",
    )  # fmt: skip
    _paths(sub, "out")
    _paths(sub, "start", "lesions", optional=True)
    sub = verb(do.features)
    sub.add_argument("--name", required=True, help="of the feature set, a key of the block features")
    _training(sub)
    _dataset(sub)
    _external(sub, "features of another dataset too; its folder in results")
    sub.add_argument(
        "--models", type=Path, nargs="+", required=True, metavar="FOLDER",
        help="one trained model, or one for each left-out part, in order",
    )  # fmt: skip
    _paths(sub, "out")


def _results(verb: Verb) -> None:
    """Verbs of the rules in results.smk."""
    sub = verb(do.calibrate)
    sub.add_argument("--predictions", type=Path, nargs="+", required=True, metavar="PATH")
    _paths(sub, "out")
    sub = verb(do.evaluate)
    _dataset(sub)
    _external(sub, "a dataset that was tested on too; its folder in results")
    sub.add_argument("--predictions", type=Path, nargs="+", required=True, metavar="PATH")
    _paths(sub, "calibration", "out")
    sub = verb(do.explain)
    _dataset(sub)
    _dataset(sub, "lesions-")
    sub.add_argument(
        "--model", type=Path, nargs="*", default=[], metavar="FOLDER",
        help="a trained model; of several the maps are averaged",
    )  # fmt: skip
    sub.add_argument(
        "--boxes", nargs=2, action="append", default=[], metavar=("DATASET", "FOLDER"),
        help="lesions found by the detector in a dataset, for the method lesion_boxes",
    )  # fmt: skip
    _paths(sub, "segmentation", optional=True)
    _paths(sub, "out")
    sub = verb(do.robustness)
    _dataset(sub)
    sub.add_argument(
        "--training", nargs=2, action="append", required=True, metavar=("EXPERIMENT", "FOLDER"),
        help="a training whose model is tested; its folder in results",
    )  # fmt: skip
    _paths(sub, "out")
    sub = verb(do.report, params=False)
    sub.add_argument("--all-params", required=True, metavar="JSON")
    _dataset(sub)
    _dataset(sub, "pretrain-")
    sub.add_argument("--statistics", type=Path, nargs="*", metavar="PATH", help="of the boxes pretrained on")
    sub.add_argument(
        "--heat-maps", type=Path, nargs="*", default=[], metavar="PATH", help="sheets of the stage explain"
    )
    sub.add_argument(
        "--described", nargs=2, action="append", default=[], metavar=("DATASET", "FOLDER"),
        help="a dataset that gets a card; its folder in results",
    )  # fmt: skip
    for name, of in (("trainings", "training.json of each training"), ("encoders", "encoder.json")):
        sub.add_argument(f"--{name}", type=Path, nargs="*", default=[], metavar="PATH", help=of)
    _paths(sub, "evaluated", "out")
    _paths(sub, "lesions", "detector_metrics", "lesion_metrics", "segmentation_metrics", optional=True)
    _paths(sub, "robustness", optional=True)


def _by_hand(verb: Verb) -> None:
    """Verbs for people, of which rules call only ``weights``."""
    sub = verb(do.predict, params=False)
    sub.add_argument("photographs", type=Path, nargs="+", help="files, and folders of them")
    sub.add_argument(
        "--model", required=True, metavar="MODEL",
        help="folder of an experiment (the mean of its trainings), of one training or of an exported model, "
        "or models:/NAME@ALIAS",
    )  # fmt: skip
    _paths(sub, "out")
    sub.add_argument(
        "--explain", nargs="?", const="auto", metavar="METHOD",
        help="draw heat maps, by the method that suits the network or by this one",
    )  # fmt: skip
    sub.add_argument(
        "--point", metavar="NAME", help="operating point of the column referable, such as sensitivity_95"
    )
    sub.add_argument("--force", action="store_true", help="grade photographs without a retina too")
    sub.add_argument("--workers", type=_number, default=os.cpu_count())
    sub = verb(do.demo, params=False)
    sub.add_argument(
        "--model", default="results/demo/grade/imagenet", metavar="MODEL", help="as of predict; %(default)s"
    )
    sub.add_argument("--host", default="127.0.0.1", help="address to listen on; by default only this machine")
    sub.add_argument("--port", type=int, default=7860, help="0 takes a free one")
    sub.add_argument(
        "--detector", type=Path, metavar="FOLDER", help="search lesions with it; results/<dataset>/detector"
    )
    _block(sub, "--boxes-params", "the block lesion_boxes that it was trained with (tiling)")
    sub = verb(do.export, params=False)
    sub.add_argument(
        "--model", required=True, metavar="FOLDER", help="of an experiment in results, or of one training"
    )
    sub.add_argument("--out", type=Path, required=True, metavar="FOLDER")
    for kind, meaning in (("onnx", "ONNX graphs"), ("timm", "the encoder"), ("mlflow", "a model to serve")):
        sub.add_argument(
            f"--{kind}", action="append_const", dest="kinds", const=kind, default=[],
            help=f"{meaning}; without these three options, all that the model allows",
        )  # fmt: skip
    sub = verb(do.submission, params=False)
    sub.add_argument(
        "--predictions", type=Path, nargs="+", required=True, metavar="PATH",
        help="tables of one experiment; the scores of its trainings are averaged",
    )  # fmt: skip
    _paths(sub, "out")
    sub.add_argument("--sample", type=Path, metavar="PATH", help="a CSV with the images to submit")
    sub.add_argument("--external", metavar="DATASET", help="submit its photographs, not validation and test")
    sub.add_argument("--thresholds", choices=("midpoints", "fitted"), default="midpoints")
    sub.add_argument("--continuous", action="store_true", help="add the column score")
    sub = verb(do.score)
    sub.add_argument("submission", type=Path)
    _paths(sub, "solution")
    clpi_arguments(verb(do.clpi, params=False))
    sub = verb(do.new, params=False)
    sub.add_argument("dataset", choices=("folder",))
    sub.add_argument("path", type=Path, help="holds images/ and, if there are grades, labels.csv")
    sub.add_argument("--out", type=Path, default=Path("params/folder.yaml"), metavar="PATH")
    sub.add_argument(
        "--template", type=Path, default=Path("params.yaml"), metavar="PATH", help="other values"
    )
    sub.add_argument("--workers", type=_number, default=os.cpu_count())
    verb(do.check, params=False).add_argument("file", type=Path, nargs="?", default=Path("params.yaml"))
    verb(do.params, params=False).add_argument("file", type=Path, nargs="?", default=Path("params.yaml"))
    verb(do.schema, params=False)
    verb(do.weights, params=False).add_argument(
        "name", nargs="?", metavar="NAME", help="timm name of the backbone, such as tf_efficientnet_lite2"
    )
    verb(do.verify, params=False).add_argument("store", type=Path, nargs="+", metavar="STORE.json")
    sub = verb(do.grid, params=False)
    sub.add_argument("file", type=Path, help="such as params/grids/finetune.yaml")
    group = sub.add_mutually_exclusive_group()
    group.add_argument("--queue", action="store_true", help="queue them")
    group.add_argument("--best", action="store_true", help="show their results, best validation QWK first")
    verb(do.sync, params=False)
    sub = verb(do.clean, params=False)
    sub.add_argument(
        "files", type=Path, nargs="*", default=[Path("params.yaml")], metavar="FILE",
        help="params files whose results are kept; params.yaml if none is named",
    )  # fmt: skip
    sub.add_argument("--yes", action="store_true", help="delete what is listed")
    verb(do.doctor, params=False)


def _number(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} must be an integer >= 1")
    return int(text)


def _limit(text: str) -> int | None:
    return None if text in ("", "None", "null") else _number(text)


def _shard(text: str) -> tuple[int, int]:
    part, _, of = text.partition("/")
    if not (part.isdecimal() and of.isdecimal() and int(part) < int(of)):
        raise argparse.ArgumentTypeError(f"{text!r} must be a part I/N, such as 0/4, 1/4, 2/4 or 3/4")
    return int(part), int(of)


def main(argv: list[str] | None = None) -> int:
    """Run a verb. Returns 0, or 2 after one line about bad arguments, bad input or a fault of the machine."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        args = _parser().parse_args(argv)
        if PARENT in os.environ:  # a job of Snakemake, whose log begins with the command
            log.info("drgrade %s", shlex.join(sys.argv[1:] if argv is None else argv))
        with as_user_errors(), job_lock(args.call.__name__):
            args.call(args)
    except UserError as error:
        with contextlib.suppress(OSError):  # the log, too, may lie on the full disk
            print(f"drgrade: error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
