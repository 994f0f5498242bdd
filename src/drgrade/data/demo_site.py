"""A second synthetic hospital with other patients and camera, for external tests (``roles.external``)."""

from dataclasses import replace

from drgrade.data.demo import Demo
from drgrade.data.registry import DATASETS
from drgrade.params import Demo as DemoParams
from drgrade.params import Download


@DATASETS.register("demo_site")
class DemoSite(Demo):
    """Like :class:`Demo`, with the block ``download.demo_site``; patients differ even with the same seed."""

    card = replace(Demo.card, name="demo_site", title="Synthetic fundus photographs of a second hospital")
    first = 10_000

    def settings(self, params: Download) -> DemoParams:
        """Return the block ``download.demo_site``."""
        return params.demo_site
