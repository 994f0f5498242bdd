"""Register networks with timm: those of one class, by the names of their layouts."""

import sys
from collections.abc import Mapping
from typing import Any

from timm.models import build_model_with_cfg, register_model
from torch import nn


def register(encoder: type[nn.Module], architectures: Mapping[str, Any], no_pyramid: str) -> None:
    """Make networks available to ``timm.create_model``.

    Their module must have ``default_cfgs``, where timm looks for normalisation and image size.

    Args:
        encoder: class of the networks; its first argument is the layout.
        architectures: layouts by timm name.
        no_pyramid: why ``features_only`` is refused.
    """
    for name, architecture in architectures.items():
        _register(encoder, name, architecture, no_pyramid)


def _register(encoder: type[nn.Module], name: str, architecture: Any, no_pyramid: str) -> None:
    def create(pretrained: bool = False, **options: Any) -> nn.Module:
        if options.get("features_only"):
            raise RuntimeError(no_pyramid)
        network: nn.Module = build_model_with_cfg(
            encoder, name, pretrained, kwargs_filter=("in_chans",), architecture=architecture, **options
        )
        return network

    create.__name__, create.__module__ = name, encoder.__module__
    # timm lists its name in the module's __all__, so the module must have it
    setattr(sys.modules[encoder.__module__], name, register_model(create))
