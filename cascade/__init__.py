"""Cascaded pixel-space diffusion: the models, their training, and `Pipeline`, which turns a prompt into an image.

    from cascade import Pipeline

    pipe = Pipeline.from_pretrained()
    pipe("a red car on top of a blue house", seed=0).images[0].save("out.png")

Importing this package is cheap; torch and everything above it load when a submodule or `Pipeline` is first asked for.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines import Pipeline

__all__ = ["Pipeline", "__version__"]

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """Fetch `Pipeline` from the package above this one: the only import that runs upward."""
    if name != "Pipeline":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pipelines

    expected = Path(__file__).resolve().parents[1] / "pipelines"
    found = Path(pipelines.__file__ or next(iter(pipelines.__path__))).resolve()
    if expected not in (found, found.parent):
        raise ImportError(
            f"Cascade's own package 'pipelines' ({expected}) is shadowed by another one of that name ({found}); "
            "rename the other, or take it off sys.path"
        )
    return pipelines.Pipeline


def __dir__() -> list[str]:
    return sorted({*globals(), "Pipeline"})
