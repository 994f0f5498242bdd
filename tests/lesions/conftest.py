"""What all tests of lesions share."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest


@pytest.fixture(scope="session", autouse=True)
def configs_are_formatted_once() -> Iterator[None]:
    """MMEngine has yapf format the config six times a training, which takes longer than such a training."""
    from yapf.yapflib import yapf_api

    format_code = yapf_api.FormatCode

    @cache
    def formatted(text: str, style: tuple[tuple[str, Any], ...]) -> tuple[str, bool]:
        return format_code(text, style_config=dict(style))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            yapf_api, "FormatCode", lambda text, style_config: formatted(text, tuple(style_config.items()))
        )
        yield
