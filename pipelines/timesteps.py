"""The very steps of a discrete table to visit: DeepFloyd IF's step lists by name, or lists of one's own."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from cascade.chain import Cascade
from cascade.stage import Sampling
from pipelines.arguments import per_stage

OWN = "own"  # how the stage's own are called in words
# DeepFloyd's lists, as diffusers has them: "super" are those for stage II.
STEP_LISTS = ("fast27", "smart27", "smart50", "smart100", "smart185", "super27", "super40", "super100")


def step_list(name: str) -> tuple[int, ...]:
    """One of DeepFloyd's lists, falling to 0. Raises ValueError."""
    if name not in STEP_LISTS:
        raise ValueError(f"timesteps is {name!r}; expected falling whole numbers, or one of {', '.join(STEP_LISTS)}")
    from diffusers.pipelines.deepfloyd_if import timesteps

    return tuple(getattr(timesteps, f"{name}_timesteps"))


def as_word(timesteps: Sequence[int] | None) -> str:
    """Timesteps as `from_word` reads them: the name of a list, or the numbers with commas."""
    if not timesteps:
        return OWN
    return next((name for name in STEP_LISTS if step_list(name) == tuple(timesteps)), ",".join(map(str, timesteps)))


def from_word(word: str) -> str | list[int] | None:
    """What `Pipeline` takes. Raises ValueError for what is neither a name, nor whole numbers, nor "own"."""
    if word == OWN:
        return None
    if word not in STEP_LISTS and not all(part.isdecimal() for part in word.split(",")):
        known = ", ".join(STEP_LISTS)
        raise ValueError(f"timesteps is {word!r}; expected falling whole numbers with commas, {OWN}, or one of {known}")
    return word if word in STEP_LISTS else [int(part) for part in word.split(",")]


def with_timesteps(cascade: Cascade, settings: Sequence[Sampling], timesteps: Any, steps: Any) -> list[Sampling]:
    """The settings of every stage with its timesteps: a name or a list of whole numbers for all stages, or a list of
    such per stage, None for the stage's own. Raises TypeError or ValueError, also where ``steps`` say another number.
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
            if isinstance(own, str):
                own = step_list(own)
            elif not isinstance(own, list | tuple) or not own or not all(type(step) is int for step in own):
                raise TypeError(f"timesteps is {own!r}; expected whole numbers, or one of {', '.join(STEP_LISTS)}")
            if count not in (None, len(own)):
                raise ValueError(f"num_inference_steps is {count} and timesteps are {len(own)}; give one of them")
            sampling = replace(sampling, timesteps=tuple(own), steps=len(own))
            stage.check_sampling(sampling)
        found.append(sampling)
    return found
