"""A deprecation that transformers announces, as a warning or in its log, fails a test; see `conftest.Announced`."""

from __future__ import annotations

import warnings

import pytest
from transformers.utils import logging


def test_a_deprecation_in_the_log_of_transformers_is_an_error() -> None:
    log = logging.get_logger("transformers.models.llama")
    with pytest.raises(FutureWarning, match="goes"):
        log.warning_once("`past_key_values` is deprecated and goes in 5.40")
    with pytest.raises(FutureWarning):
        log.warning("`torch_dtype` is deprecated!")
    log.warning("nothing that goes")


def test_a_warning_of_a_removal_is_an_error() -> None:
    with pytest.raises(FutureWarning):
        warnings.warn("`past_key_values` is deprecated and will be removed", FutureWarning, stacklevel=1)
    with pytest.warns(FutureWarning):
        warnings.warn("this default will change", FutureWarning, stacklevel=1)
