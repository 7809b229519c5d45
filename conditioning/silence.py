"""What transformers and diffusers print while they load, and nobody needs."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def no_progress_bars() -> Iterator[None]:
    """Without transformers' progress bars, which for one file are noise."""
    from transformers.utils import logging as transformers_logging

    shown = transformers_logging.is_progress_bar_enabled()
    transformers_logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            transformers_logging.enable_progress_bar()


@contextmanager
def no_torchvision_advice() -> Iterator[None]:
    """Import without transformers' advice to install torchvision for an image processor, of which none is loaded."""

    def wanted(record: logging.LogRecord) -> bool:
        return "requires torchvision" not in record.getMessage()

    logger = logging.getLogger("transformers.utils.import_utils")
    logger.addFilter(wanted)
    try:
        yield
    finally:
        logger.removeFilter(wanted)
