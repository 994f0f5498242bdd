"""Arguments of ``drgrade clpi``: those of the released tool, and a few more."""

import argparse
from pathlib import Path

NETWORKS = {f"DenseNet{layers}": f"clpi_densenet{layers}" for layers in (121, 161, 169, 201, 264)}
"""timm names of the networks by the name that the released tool gives them."""
SPLIT = Path("params/messidor2_clpi_split.csv")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the tools and their arguments; ``args.tool`` is the name of the chosen one."""
    tools = parser.add_subparsers(title="tools", metavar="TOOL", dest="tool", required=True)
    infer = tools.add_parser("infer", help="grade the photographs of a list; prints a table, writes a CSV")
    _model(infer)
    _list(infer)
    infer.add_argument("--out", type=Path, default=Path("clpi_predictions.csv"), metavar="CSV")
    cam = tools.add_parser("cam", help="draw the class activation maps of the photographs of a list")
    _model(cam)
    _list(cam)
    cam.add_argument("--out", type=Path, default=Path("cam_heatmaps"), metavar="FOLDER")
    evaluate = tools.add_parser("evaluate", help="quadratic kappa on Messidor-2, on one part of a split")
    _model(evaluate)
    evaluate.add_argument("--split", type=Path, default=SPLIT, metavar="CSV", help="columns image_id, split")
    evaluate.add_argument("--part", choices=("train", "val", "test"), default="test")
    evaluate.add_argument("--out", type=Path, default=None, metavar="CSV", help="write the predictions too")
    convert = tools.add_parser(
        "convert", help="write the released folder as a model, or a DenseNet's weights as start weights"
    )
    convert.add_argument("source", type=Path, help="the released folder, or a weights file of the DenseNet")
    convert.add_argument("-a", "--arch", choices=NETWORKS, default="DenseNet121")
    convert.add_argument(
        "--out", type=Path, required=True, metavar="PATH", help="folder, or .safetensors file"
    )


def _model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-a", "--arch", choices=NETWORKS, default="DenseNet121", help="of released weights")
    parser.add_argument(
        "--resume-from", type=Path, required=True, metavar="FOLDER",
        help="the released weights, one file a variable; or a model of the grader clpi",
    )  # fmt: skip
    parser.add_argument("--infer-classdim", type=int, choices=(5,), default=5, help="number of grades")
    parser.add_argument("--loss-type", choices=("ce", "nl"), default="ce", help="of training; without effect")
    parser.add_argument("-d", "--data", default="./data", help="without effect, as in the released tool")


def _list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--infer-file", type=Path, required=True, metavar="LIST", help="a path a line, without header"
    )
    parser.add_argument("--strict", action="store_true", help="fail if a photograph cannot be read")
