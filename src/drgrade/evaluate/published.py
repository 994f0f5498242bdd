"""Figures that the authors of the published systems report, and why ours are not comparable with them.

Copied from their papers and READMEs, never measured here. No figure of CLPI is listed: its result tables
could not be read. Kappas of which it is not certain that they are quadratic weighted are named apart.
"""

from typing import NamedTuple

import pandas as pd

QWK, ACCURACY, REFERABLE_AUC = "QWK", "accuracy", "referable AUC"
KAPPA = "kappa, weights not stated"
METRICS = {QWK: "qwk", ACCURACY: "accuracy", REFERABLE_AUC: "referable_auc"}
"""Column of the leaderboard for each metric; KAPPA has none."""
SYNTHETIC = ("demo", "demo_site")
COLUMNS = ("system", "method", "dataset", "test", "metric", "value", "source", "not_comparable")
"""Columns of :func:`beside`."""


class Figure(NamedTuple):
    """One published figure.

    Attributes:
        system: published system.
        method: what of it was tested.
        dataset: name as in the block ``datasets``.
        test: the photographs it was tested on, in words.
        photographs: their number; None if it is not known here.
        metric: QWK, ACCURACY, REFERABLE_AUC or KAPPA.
        value: as published, of at most 1.
        source: where it is stated.
        caveat: what limits a comparison whatever our test is; empty if nothing.
    """

    system: str
    method: str
    dataset: str
    test: str
    photographs: int | None
    metric: str
    value: float
    source: str
    caveat: str = ""


_PRIVATE = ("eyepacs", "private part", 42_670)
_DDR = ("ddr", "default split", None)
_EYEPACS = ("eyepacs", "default split", None)
_O_O = "report in github.com/sveitser/kaggle_diabetic"
_HUANG = "Huang et al., Diagnostics 2023"
_LESIONS = "lesion-based contrastive learning"
_AAAI = "Wang et al., AAAI 2021, main results (mean of several trainings)"
_SELECTED = "the released code selects epochs on the test photographs"
_WEIGHTS = "the paper cites unweighted kappa, but with the usual shares of the grades that would be lower"
_L2G = ("eyepacs", "whole test part", 53_576)
_L2G_SOURCE = "README of arXiv 2410.00779, table of results"
_MAJORITY = "grade 0 for every photograph has accuracy 0.738 there"

PUBLISHED = (
    Figure("o_O", "mean of six blends of both eyes", *_PRIVATE, QWK, 0.84479, _O_O),
    Figure("o_O", "one blend of both eyes, network B, 20 transforms", *_PRIVATE, QWK, 0.839, _O_O),
    Figure("o_O", "one network, 512 px, no blend", "eyepacs", "validation, 10 % of the training patients",
           3_514, QWK, 0.80, _O_O, "epochs are selected on the same photographs"),
    Figure("RAM", "blend of both eyes", *_PRIVATE, QWK, 0.84118, "README of arXiv 1703.10757"),
    Figure("Min-Pooling", "winner of 2015: three networks and a random forest", *_PRIVATE, QWK, 0.84958,
           "competition report of its author"),
    Figure(_LESIONS, "ResNet-50, 512 px, fine-tuned, all labels", *_PRIVATE, QWK, 0.8322,
           "README of arXiv 2107.08274"),
    Figure(_LESIONS, "ResNet-50, detections above 0.8, all labels", "eyepacs", "not known here", None,
           REFERABLE_AUC, 0.87, "FundusNet, PMC10102012, table 3",
           "trained by the authors of another method, as a baseline"),
    Figure(_HUANG, "ResNet-50, 512 px, squared error, one eye", *_PRIVATE, QWK, 0.83,
           "author in issue 1 of github.com/YijinHuang/pytorch-classification", "an approximate figure"),
    Figure(_HUANG, "ResNet-50, 512 px, both eyes", *_PRIVATE, QWK, 0.8631, "abstract of arXiv 2110.14160"),
    Figure("DeepMT-DR", "256 px enlarged to 1024 px", *_DDR, ACCURACY, 0.825, _AAAI, _SELECTED),
    Figure("DeepMT-DR", "256 px enlarged to 1024 px", *_DDR, KAPPA, 0.778, _AAAI, f"{_WEIGHTS}; {_SELECTED}"),
    Figure("DeepMT-DR", "256 px enlarged to 1024 px", *_EYEPACS, ACCURACY, 0.857, _AAAI, _SELECTED),
    Figure("DeepMT-DR", "256 px enlarged to 1024 px", *_EYEPACS, KAPPA, 0.837, _AAAI,
           f"{_WEIGHTS}; {_SELECTED}"),
    Figure("local-to-global", "ViT-S/8, linear layer", *_L2G, ACCURACY, 0.791, _L2G_SOURCE,
           f"its code reports the best epoch on the test photographs; {_MAJORITY}"),
    Figure("local-to-global", "k-NN, k = 15", *_L2G, ACCURACY, 0.7436, _L2G_SOURCE, _MAJORITY),
)  # fmt: skip
"""All figures, by system."""


def beside(dataset: str, photographs: int) -> pd.DataFrame:
    """Return all published figures with the columns COLUMNS, for results on our test photographs.

    Args:
        dataset: name of the dataset we tested on.
        photographs: number of its test photographs.
    """
    rows = [
        {
            **figure._asdict(),
            "test": figure.test if figure.photographs is None else f"{figure.test}, {figure.photographs:,}",
            "not_comparable": not_comparable(figure, dataset, photographs),
        }
        for figure in PUBLISHED
    ]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def not_comparable(figure: Figure, dataset: str, photographs: int) -> str:
    """Return why a published figure and ours must not be compared, or that they may be.

    They may be if dataset and number of test photographs are the same: the number identifies an official
    part.
    """
    if dataset in SYNTHETIC:
        reason = f"our photographs are synthetic ({dataset})"
    elif dataset != figure.dataset:
        reason = f"our dataset is {dataset}"
    elif figure.photographs is None:
        reason = "the number of its test photographs is not known here"
    elif photographs != figure.photographs:
        reason = f"other test photographs: ours are {photographs:,}"
    else:
        reason = "comparable: same dataset and number of test photographs"
        return f"{reason}; but {figure.caveat}" if figure.caveat else reason
    return f"{reason}; {figure.caveat}" if figure.caveat else reason
