"""What the default was trained with, and what an hour of a GPU would be beside it."""

from benchmarks.quality.stored import store
from cascade.training.cost import training_cost
from cascade.training.toybox import PARTS, Shipped, stage_config
from weights.hub import EMBEDDED


def measure() -> None:
    """Count operations, and add up the runs that the weights name as theirs."""
    shipped, rows = Shipped(EMBEDDED), []
    for part in PARTS[1:]:
        config = stage_config(part)
        crop = config.data.crop
        cost = training_cost(config.stage, config.stage.resolution if crop is None else (crop, crop))
        rows.append(
            {
                "stage": part,
                "parameters": cost.parameters,
                "flops": cost.flops,
                "samples": shipped.samples(part),
                "minutes": sum(run["minutes"] for run in shipped.history(part)),
            }
        )
    store("training", {"rows": rows})
