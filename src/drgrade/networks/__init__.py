"""Network architectures that timm lacks; importing this package registers them with timm."""

from drgrade.networks import o_o

__all__ = ["o_o"]
