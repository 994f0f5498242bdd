"""Files released by the authors of the systems implemented here: where to put them and which key uses them.

None is downloaded, as none states a licence. Of the other systems o_O and RAM released no weights; those of
CLPI are read by :mod:`drgrade.clpi.weights`.
"""

from dataclasses import dataclass

_RELEASES = "releases of github.com/YijinHuang/Lesion-based-Contrastive-Learning (v1.0)"
_UNSTATED = "none stated"


@dataclass(frozen=True)
class Artefact:
    """A released file, as described by its authors; not tested here."""

    name: str
    what: str
    source: str
    licence: str
    place: str
    """Where to put it, relative to the working folder."""
    key: str | None
    """Key of ``params.yaml`` for its path, ``*`` for any experiment; None if a function takes it."""
    use: str


PUBLISHED = (
    Artefact(
        name="resnet50_128_07.pt",
        what="ResNet-50 pretrained on lesion patches of 128 px, detections above 0.7 (MICCAI 2021)",
        source=_RELEASES,
        licence=_UNSTATED,
        place="data/weights/resnet50_128_07.pt",
        key="experiments.*.start",
        use="with encoder: resnet50; a state dict without head",
    ),
    Artefact(
        name="resnet50_128_08.pt",
        what="the same, detections above 0.8",
        source=_RELEASES,
        licence=_UNSTATED,
        place="data/weights/resnet50_128_08.pt",
        key="experiments.*.start",
        use="with encoder: resnet50; a state dict without head",
    ),
    Artefact(
        name="resnet50_128_08_100.pt",
        what="the same, fine-tuned to grade, with a head of one output, which is left out",
        source=_RELEASES,
        licence=_UNSTATED,
        place="data/weights/resnet50_128_08_100.pt",
        key="experiments.*.start",
        use="with encoder: resnet50; take it that it has seen the grades of EyePACS: do not test it there",
    ),
    Artefact(
        name="prediction pickles, raw",
        what="every detection on cropped, unscaled EyePACS photographs, above 0.05",
        source=_RELEASES,
        licence=_UNSTATED,
        place="data/published/",
        key="patches.published",
        use="with crop.rule: o_O and crop.aspect: squash; patches.legacy_swap for patches as published",
    ),
    Artefact(
        name="prediction pickles, filtered",
        what="lesion patches in 512 px crops (EyePACS_predictions_128_05.pkl: detections above 0.5)",
        source=_RELEASES,
        licence=_UNSTATED,
        place="data/published/",
        key="patches.published",
        use="with crop.rule: o_O and crop.aspect: squash; x was scaled by the height and y by the width",
    ),
)
