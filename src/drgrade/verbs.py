"""The verbs: what each command does with its arguments, one function for each stage and a few for people.

What a verb needs is imported when it is called, so that ``--help`` and errors come at once.
"""

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

from drgrade.errors import UserError

Arguments = argparse.Namespace


def _block(text: str, name: str) -> Any:
    """A block of params given as JSON, checked by its model: ``crop`` by ``params.Crop``, and so on."""
    from drgrade import params

    return params.check_block(getattr(params, "".join(word.title() for word in name.split("_"))), text, name)


def download(args: Arguments) -> None:
    """Fetch, verify or generate the raw photographs of a dataset."""
    from drgrade.data.download import download

    download(args.dataset, _block(args.params, "download"), args.manifest, args.listing)


def index(args: Arguments) -> None:
    """List photographs and labels, survey each photograph, split by patient."""
    from drgrade.data.index import build_index

    build_index(
        args.dataset,
        _block(args.params, "index"),
        args.limit,
        args.manifest,
        args.out,
        split=args.split,
        split_file=args.split_file,
        exclude=args.exclude,
        numbers_per_patient=args.numbers_per_patient,
        workers=args.workers,
        shard=args.shard,
    )


def overlaps(args: Arguments) -> None:
    """Stop if a photograph or patient is trained on in one dataset and tested on in another."""
    from drgrade.splits.overlaps import overlaps

    block = _block(args.params, "overlaps")
    indexes = {name: Path(path) for name, path in args.index}
    overlaps(indexes, _block(args.roles, "roles"), block.duplicate_bits, args.out, block.refuse)


def crop(args: Arguments) -> None:
    """Cut photographs to their field of view, into one store."""
    from drgrade.images.stage import crop_dataset

    params = _block(args.params, "crop")
    crop_dataset(args.dataset, args.index, params, args.store, args.table, args.workers, args.shard)


def lesion_boxes(args: Arguments) -> None:
    """Turn lesion masks into boxes on tiles, in COCO format."""
    from drgrade.lesions.coco import make_lesion_boxes

    make_lesion_boxes(args.dataset, args.index, args.crops, _block(args.params, "lesion_boxes"), args.out)


def lesion_masks(args: Arguments) -> None:
    """Bring lesion masks into the crops, for graders that learn from them."""
    from drgrade.lesions.mask_store import write_masks

    params = _block(args.params, "lesion_masks")
    write_masks(args.dataset, args.index, args.crops, args.size, params, args.out, args.workers)


def detector(args: Arguments) -> None:
    """Train the lesion detector with MMDetection."""
    from drgrade.devices import take_gpu
    from drgrade.lesions.detector import train_detector
    from drgrade.tracking import track

    take_gpu()
    params = _block(args.params, "detector")
    with track("detector", params.config, params.model_dump()) as run:
        run.dataset("boxes", args.boxes / "train.json")
        if params.start is not None and Path(params.start).is_file():
            run.dataset("start", Path(params.start))
        train_detector(args.boxes, params, args.out, run)
        run.artifact(args.out, "detector")


def lesions(args: Arguments) -> None:
    """Find lesions in the photographs."""
    from drgrade.devices import take_gpu
    from drgrade.lesions.predict import detect_lesions

    take_gpu()
    boxes = _block(args.boxes_params, "lesion_boxes")
    params = _block(args.params, "lesions")
    detect_lesions(args.dataset, args.index, args.crops, args.model, boxes, params, args.out, args.shard)


def lesion_metrics(args: Arguments) -> None:
    """Measure what finds lesions on photographs it was not trained on."""
    from drgrade.devices import take_gpu
    from drgrade.lesions.measure import measure_detector

    take_gpu()
    measure_detector(
        args.dataset,
        args.index,
        args.crops,
        args.model,
        _block(args.boxes_params, "lesion_boxes"),
        _block(args.lesions_params, "lesions"),
        _block(args.params, "lesion_metrics"),
        args.out,
    )


def segmentation(args: Arguments) -> None:
    """Train a network that marks lesions pixel by pixel."""
    from drgrade.devices import take_gpu
    from drgrade.segmentation.train import train_segmentation

    take_gpu()
    params = _block(args.params, "segmentation")
    train_segmentation(args.dataset, args.part, args.index, args.crops, params, args.out)


def segmentation_metrics(args: Arguments) -> None:
    """Measure the segmentation on photographs it was not trained on."""
    from drgrade.devices import take_gpu
    from drgrade.segmentation.measure import measure_segmentation

    take_gpu()
    params = _block(args.params, "segmentation_metrics")
    measure_segmentation(args.dataset, args.index, args.crops, args.models, params, args.out)


def patches(args: Arguments) -> None:
    """Choose the boxes for pretraining; write the patch pickle."""
    from drgrade.lesions.choose import make_patches

    make_patches(
        args.dataset,
        args.index,
        args.crops,
        args.size,
        args.lesions,
        _block(args.boxes_params, "lesion_boxes"),
        args.source,
        _block(args.params, "patches"),
        args.out,
        args.kinds,
        args.statistics,
    )


def pretrain(args: Arguments) -> None:
    """Pretrain an encoder without grades."""
    from drgrade.devices import take_gpu
    from drgrade.images.dataset import CroppedDataset
    from drgrade.params import Pretraining, check_block
    from drgrade.pretrain.stage import pretrain

    take_gpu()
    params = check_block(Pretraining, args.params, f"pretrain.{args.name}")
    pretrain(
        params.method,
        params.model_dump(),
        name=args.name,
        patch=args.patch,
        by_fold=args.by_fold,
        data=CroppedDataset(args.dataset, args.data),
        patches=args.patches,
        kinds=args.kinds,
        manifest=args.manifest,
        weights=args.weights,
    )


def grade(args: Arguments) -> None:
    """Train and test one model of an experiment: one seed, one fold."""
    from drgrade import params
    from drgrade.devices import take_gpu
    from drgrade.grading.stage import Inputs, grade
    from drgrade.images.dataset import CroppedDataset

    take_gpu()
    source = f"experiments.{args.experiment}"
    inputs = Inputs(
        data=CroppedDataset(args.dataset, args.data),
        external=[CroppedDataset(name, Path(folder)) for name, folder in args.external],
        start=args.start,
        members={name: Path(folder) for name, folder in args.member},
        lesions=args.lesions,
        masked=CroppedDataset(args.masked[0], Path(args.masked[1])) if args.masked else None,
        features={name: Path(folder) for name, folder in args.features},
    )
    grade(
        args.experiment,
        params.check_block(Annotated[params.Experiment, params.BY_GRADER], args.params, source),
        _block(args.crop_params, "crop"),
        inputs,
        seed=args.seed,
        fold=args.fold,
        part=args.part,
        out=args.out,
    )


def features(args: Arguments) -> None:
    """Store features of all photographs by a trained model, averaged over test-time transforms."""
    from drgrade.devices import take_gpu
    from drgrade.grading.extract import extract
    from drgrade.images.dataset import CroppedDataset

    take_gpu()
    extract(
        args.name,
        _block(args.params, "features"),
        CroppedDataset(args.dataset, args.data),
        [CroppedDataset(name, Path(folder)) for name, folder in args.external],
        args.models,
        seed=args.seed,
        fold=args.fold,
        out=args.out,
    )


def calibrate(args: Arguments) -> None:
    """Fit calibration, operating points and sets of grades on validation photographs."""
    from drgrade.evaluate.calibrate import calibrate

    calibrate(args.predictions, _block(args.params, "calibrate"), args.out)


def evaluate(args: Arguments) -> None:
    """Measure the predictions of all experiments; write the leaderboard."""
    from drgrade.evaluate.leaderboard import evaluate, final_results
    from drgrade.evaluate.subgroups import write_subgroups
    from drgrade.images.dataset import CroppedDataset
    from drgrade.publish import publish

    own = CroppedDataset(args.dataset, args.data)
    external = [CroppedDataset(name, Path(folder)) for name, folder in args.external]
    params, graded = _block(args.params, "evaluate"), own.graded()
    evaluate(args.predictions, graded, args.calibration, params, args.out)
    indexes = {one.name: one.index for one in (own, *external)}
    write_subgroups(args.predictions, indexes, params, args.out / "subgroups.csv")
    results, best = final_results(args.predictions)
    trainings: dict[str, list[Path]] = {}
    for path in args.predictions:
        trainings.setdefault(path.parent.parent.name, []).append(path.with_name("training.json"))
    publish(results, best, trainings, args.calibration, args.out / "figures")


def explain(args: Arguments) -> None:
    """Draw heat maps over photographs and score them against lesion masks."""
    from drgrade.devices import take_gpu
    from drgrade.explain.stage import explain
    from drgrade.images.dataset import CroppedDataset

    take_gpu()
    explain(
        _block(args.params, "explanation"),
        graded=CroppedDataset(args.dataset, args.data),
        masked=CroppedDataset(args.lesions_dataset, args.lesions_data),
        models=args.model,
        boxes={name: Path(folder) for name, folder in args.boxes},
        segmentation=args.segmentation,
        out=args.out,
    )


def robustness(args: Arguments) -> None:
    """Grade corrupted copies of the test photographs; measure what is lost."""
    from drgrade.devices import take_gpu
    from drgrade.images.dataset import CroppedDataset
    from drgrade.robustness.stage import measure_robustness

    take_gpu()
    measure_robustness(
        _block(args.params, "robustness"),
        CroppedDataset(args.dataset, args.data),
        {name: Path(folder) for name, folder in args.training},
        args.out,
    )


def report(args: Arguments) -> None:
    """Draw the figures, the cards of models and datasets, and the self-contained page."""
    from drgrade.images.dataset import CroppedDataset
    from drgrade.publish import publish_report
    from drgrade.report.stage import Inputs, make_report

    inputs = Inputs(
        graded=CroppedDataset(args.dataset, args.data),
        pretrained=CroppedDataset(args.pretrain_dataset, args.pretrain_data),
        evaluated=args.evaluated,
        heat_maps=args.heat_maps,
        robustness=args.robustness,
        lesions=args.lesions,
        detector_metrics=args.detector_metrics,
        lesion_metrics=args.lesion_metrics,
        segmentation_metrics=args.segmentation_metrics,
        patches=args.statistics or [],
        described=[CroppedDataset(name, Path(folder)) for name, folder in args.described],
        trainings=args.trainings,
        encoders=args.encoders,
    )
    make_report(inputs, json.loads(args.all_params), args.out)
    publish_report(args.out / "report.html")


def predict(args: Arguments) -> None:
    """Grade new photographs with a trained model; writes a CSV, and heat maps if asked."""
    from drgrade.devices import take_gpu
    from drgrade.predict.files import predict_files

    take_gpu()
    predict_files(
        args.photographs,
        args.model,
        args.out,
        explain=args.explain,
        point=args.point,
        force=args.force,
        workers=args.workers,
    )


def demo(args: Arguments) -> None:
    """Show a web page on this machine that grades photographs with a trained model."""
    from drgrade.devices import take_gpu
    from drgrade.web.page import serve

    take_gpu()
    serve(args.model, args.host, args.port, args.detector, _block(args.boxes_params, "lesion_boxes"))


def export(args: Arguments) -> None:
    """Write a trained model for use elsewhere: portable copy, ONNX, encoder for timm, MLflow model."""
    from drgrade.export.command import export

    export(args.model, args.out, args.kinds)


def submission(args: Arguments) -> None:
    """Write a submission file of Kaggle's competition of 2015 from the predictions of one experiment."""
    from drgrade.evaluate.submission import write_submission

    write_submission(
        args.predictions,
        args.out,
        external=args.external,
        sample=args.sample,
        thresholds=args.thresholds,
        continuous=args.continuous,
    )


def score(args: Arguments) -> None:
    """Score a submission file of Kaggle's competition of 2015 with its solution."""
    from drgrade.evaluate.submission import score_submission

    found = score_submission(args.submission, args.solution, _block(args.params, "evaluate"))
    for part, values in found.items():
        low, high = values["qwk_low"], values["qwk_high"]
        counts = f"{values['n']} photographs of {values['patients']} patients"
        print(f"{part:7}  QWK {values['qwk']:.5f} ({low:.5f} to {high:.5f})  {counts}")


def clpi(args: Arguments) -> None:
    """Grade a list of photographs, or draw their heat maps, with the command line that CLPI released."""
    from drgrade.clpi.tool import run
    from drgrade.devices import take_gpu

    take_gpu()
    run(args)


def new(args: Arguments) -> None:
    """Look at a folder of photographs, say what is there, and write a params file for it."""
    from drgrade.new import new_folder

    print(new_folder(args.path, args.out, args.template, args.workers))


def check(args: Arguments) -> None:
    """Check a params file, all that it names and its start weights; estimate the cost of the run."""
    from drgrade.check import problems
    from drgrade.estimate import estimate
    from drgrade.params import load, wrong

    found = wrong(args.file)
    if not found:
        params = load(args.file)
        print("".join(f"{line}\n" for line in estimate(params, os.cpu_count() or 1)), end="")
        found = [f"{args.file}: {line}" for line in problems(params)]
    if found:
        raise UserError("\ndrgrade: error: ".join(found))
    print(f"{args.file}: ok")


def params(args: Arguments) -> None:
    """Print a params file with all defaults filled in."""
    import yaml

    from drgrade.params import load

    yaml.safe_dump(load(args.file).model_dump(), sys.stdout, sort_keys=False)


def schema(args: Arguments) -> None:
    """Print the JSON Schema of params.yaml."""
    from drgrade.params import json_schema

    sys.stdout.write(json_schema())


def sync(args: Arguments) -> None:
    """Record outputs that DVC restored as current in Snakemake."""
    import subprocess

    # of raw photographs DVC sees nothing, so that it calls download "always changed"
    status = subprocess.run(["dvc", "status", "--json"], stdout=subprocess.PIPE, text=True, check=False)
    changes = json.loads(status.stdout).values() if not status.returncode else [None]
    if any(change != ["always changed"] for change in changes):
        raise UserError(
            "dvc status: results differ from dvc.lock; run `uv run dvc checkout` (or `dvc repro`) first"
        )
    if subprocess.run(["snakemake", "--touch", "--forceall", "--quiet", "all"], check=False).returncode:
        raise UserError("snakemake --touch failed; its message stands above")


def grid(args: Arguments) -> None:
    """Print the commands that try a grid of values as experiments of DVC; queue them, or compare results."""
    from drgrade import grid

    action = grid.queue if args.queue else grid.print_best if args.best else grid.print_commands
    action(args.file)


def clean(args: Arguments) -> None:
    """List results of experiments and datasets that params.yaml no longer names; delete them with --yes."""
    from drgrade.clean import clean

    clean(args.files, delete=args.yes)


def verify(args: Arguments) -> None:
    """Read stores of crops again and compare every shard with its SHA-256."""
    from drgrade.images.store import CropStore

    for path in args.store:
        store = CropStore(path)
        store.verify()
        print(f"{path}: {len(store)} crops of {store.size} px ({store.format}), every shard as written")


def weights(args: Arguments) -> None:
    """Make a file of start weights in data/weights from an installed package; without a name, list them."""
    from drgrade.weights.make import listing, make

    if args.name:
        print(make(args.name))
    else:
        found = listing()
        width = max(len(name) for name, _ in found)
        print("\n".join(f"{name:<{width}}  {text}" for name, text in found))


def doctor(args: Arguments) -> None:
    """Print versions, devices, op backend, and which data and weights are here."""
    from drgrade.doctor import report

    print(report())
