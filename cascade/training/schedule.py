"""How long a run is, how far it has come, and the learning rate over it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of steps (reproducible to the bit), or minutes of training on whatever machine."""

    steps: int | None = None
    minutes: float | None = None

    def __post_init__(self) -> None:
        if (self.steps is None) == (self.minutes is None):
            raise ValueError(f"give either steps or minutes, got steps={self.steps}, minutes={self.minutes}")
        if any(given is not None and given <= 0 for given in (self.steps, self.minutes)):
            raise ValueError(f"a budget must be positive, got steps={self.steps}, minutes={self.minutes}")

    def spent(self, steps: int, seconds: float) -> float:
        """The share of the budget gone, in [0, 1]."""
        if self.steps is not None:
            return min(1.0, steps / self.steps)
        assert self.minutes is not None, "one of the two is given"
        return min(1.0, seconds / (60 * self.minutes))


@dataclass
class Progress:
    """How far a run has come. ``first_step`` is where its batches begin, so that a continued model sees new ones.

    skipped: how many of the steps changed nothing, since a loss or gradient was no number.
    """

    first_step: int = 0
    steps: int = 0
    seconds: float = 0.0
    skipped: int = 0

    @property
    def batch(self) -> int:
        return self.first_step + self.steps


def rate_factor(steps: int, spent: float, *, warmup_steps: int, decay: float) -> float:
    """What multiplies the learning rate: rising to 1 over ``warmup_steps``, falling linearly to 0 over the last
    ``decay`` share of the budget.
    """
    warm = min(1.0, (steps + 1) / max(1, warmup_steps))
    return warm * min(1.0, (1 - spent) / decay if decay else 1.0)
