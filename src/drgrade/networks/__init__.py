"""Network architectures that timm lacks; importing this package registers them with timm."""

from drgrade.networks import clpi, o_o

__all__ = ["clpi", "o_o"]
