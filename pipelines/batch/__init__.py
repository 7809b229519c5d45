"""Batch generation: many prompts to a run folder, in any number of processes, resumable at any point.

    from pipelines.batch import generate_batch, read_run

    generate_batch(None, ["a red cube", "a blue ball"], "toys", images_per_prompt=2, seed=0)
    for number, record, paths in read_run("toys"):
        print(number, record.prompt, paths)

On the command line it is `cascade batch`, or `python -m pipelines.batch` for `torchrun -m` and `accelerate launch -m`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.batch.generation import BatchResult, generate_batch
    from pipelines.batch.run import Run, read_run

__all__ = ["BatchResult", "Run", "generate_batch", "read_run"]

_HOMES = {"BatchResult": "generation", "generate_batch": "generation", "Run": "run", "read_run": "run"}


def __getattr__(name: str) -> Any:
    """Load what is asked for; `cascade batch --help` must not wait for torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"pipelines.batch.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
