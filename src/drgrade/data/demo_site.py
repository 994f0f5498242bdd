"""A second synthetic hospital: other people, another camera, to test graders on (``roles.external``)."""

from dataclasses import replace

from drgrade.data.demo import Demo
from drgrade.data.registry import DATASETS
from drgrade.params import Demo as DemoParams
from drgrade.params import Download


@DATASETS.register("demo_site")
class DemoSite(Demo):
    """As :class:`Demo`, from ``download.demo_site``; even with the seed of the demo, other people."""

    card = replace(Demo.card, name="demo_site", title="Synthetic fundus photographs of a second hospital")
    first = 10_000

    def settings(self, params: Download) -> DemoParams:
        """The block ``download.demo_site``."""
        return params.demo_site
