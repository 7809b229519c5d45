"""What people call: `Pipeline` from Python, `cascade` from a shell. Importing this package loads nothing else."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.text_to_image import Pipeline

__all__ = ["Pipeline"]


def __getattr__(name: str) -> Any:
    if name != "Pipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipelines.text_to_image import Pipeline

    return Pipeline


def __dir__() -> list[str]:
    return sorted({*globals(), "Pipeline"})
