"""The very steps of a discrete table to visit: DeepFloyd IF's step lists by name, or lists of one's own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cascade.chain import Cascade
from cascade.stage import Sampling
from pipelines.arguments import per_stage

# DeepFloyd's lists, as diffusers has them: "super" are those for stage II.
STEP_LISTS = ("fast27", "smart27", "smart50", "smart100", "smart185", "super27", "super40", "super100")


def step_list(name: str) -> tuple[int, ...]:
    """One of DeepFloyd's lists, falling to 0. Raises ValueError."""
    if name not in STEP_LISTS:
        raise ValueError(f"timesteps is {name!r}; expected falling whole numbers, or one of {', '.join(STEP_LISTS)}")
    from diffusers.pipelines.deepfloyd_if import timesteps

    return tuple(getattr(timesteps, f"{name}_timesteps"))


def with_timesteps(cascade: Cascade, settings: Sequence[Sampling], timesteps: Any, steps: Any) -> list[Sampling]:
    """The settings of every stage with its timesteps: a name or a list of whole numbers for all stages, or a list of
    such per stage, None for the stage's own. Raises TypeError or ValueError, also where ``steps`` are given too.
    """
    if isinstance(timesteps, list | tuple) and timesteps and all(isinstance(step, int) for step in timesteps):
        timesteps = [timesteps] * len(cascade)
    found = []
    for stage, sampling, own, count in zip(
        cascade.stages,
        settings,
        per_stage(timesteps, "timesteps", len(cascade)),
        per_stage(steps, "num_inference_steps", len(cascade)),
        strict=True,
    ):
        if own is not None:
            if count is not None:
                raise ValueError("both num_inference_steps and timesteps are given; give one of them")
            if isinstance(own, str):
                own = step_list(own)
            elif not isinstance(own, list | tuple) or not own or not all(type(step) is int for step in own):
                raise TypeError(f"timesteps is {own!r}; expected whole numbers, or one of {', '.join(STEP_LISTS)}")
            sampling = replace(sampling, timesteps=tuple(own), steps=len(own))
            stage.check_sampling(sampling)
        found.append(sampling)
    return found
