"""LayerCAM (Jiang et al., TIP 2021) of the expected grade, by the package ``grad-cam``.

Deviation: the paper also fuses maps of earlier layers; here it is the last feature map alone, as in ``cam``.
"""

from drgrade.explain.base import EXPLAINERS
from drgrade.explain.cam import ActivationMap


@EXPLAINERS.register("layercam")
class LayerCam(ActivationMap):
    """LayerCAM: the last feature map, weighted at each position by its own positive gradients."""

    name, of_package = "layercam", "LayerCAM"
