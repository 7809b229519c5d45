"""How the papers trained their stages: batch, steps, optimizer, learning rate, EMA; a function each, for a config file.

None of them decays the learning rate. What a paper leaves open is said.
"""

from dataclasses import dataclass

from cascade.parameterization import LossWeight
from cascade.training.diffusion import DiffusionConfig
from cascade.training.loop import LoopConfig
from cascade.training.schedule import Budget

__all__ = ["imagen_base", "imagen_super_resolution", "simple_diffusion", "small", "sr3"]


@dataclass(frozen=True)
class Recipe:
    diffusion: DiffusionConfig
    loop: LoopConfig
    budget: Budget


def imagen_base() -> Recipe:
    """Imagen, section 3 and appendix C: Adafactor for the 2B base. Left open: EMA, which is DDPM's."""
    loop = LoopConfig("adafactor", 1e-4, warmup_steps=10_000, decay=0.0, weight_decay=0.0, ema_decay=0.9999)
    return Recipe(DiffusionConfig(2048, LossWeight("eps_mse")), loop, Budget(steps=2_500_000))


def imagen_super_resolution() -> Recipe:
    """Imagen: Adam for both super-resolution stages, as Adafactor hurt them; else as the base."""
    loop = LoopConfig(
        "adamw", 1e-4, warmup_steps=10_000, decay=0.0, betas=(0.9, 0.999), weight_decay=0.0, ema_decay=0.9999
    )
    return Recipe(DiffusionConfig(2048, LossWeight("eps_mse")), loop, Budget(steps=2_500_000))


def sr3() -> Recipe:
    """SR3, section 3 and appendix A: 1M steps of 256 images. Its loss is |eps|; |eps|^2 came out alike."""
    loop = LoopConfig(
        "adamw", 1e-4, warmup_steps=10_000, decay=0.0, betas=(0.9, 0.999), weight_decay=0.0, ema_decay=0.9999
    )
    return Recipe(DiffusionConfig(256, LossWeight("eps_mse")), loop, Budget(steps=1_000_000))


def simple_diffusion() -> Recipe:
    """Simple diffusion's text-to-image U-ViT: v-prediction, 700k steps of 2048 images."""
    loop = LoopConfig(
        "adamw", 1e-4, warmup_steps=10_000, decay=0.0, betas=(0.9, 0.99), weight_decay=0.0, ema_decay=0.9999
    )
    return Recipe(DiffusionConfig(2048, LossWeight("v_mse")), loop, Budget(steps=700_000))


def small() -> Recipe:
    """Ours, for small stages on one machine: Muon, and a learning rate that falls over the last third."""
    loop = LoopConfig("muon", 2e-3, warmup_steps=100, decay=0.35)
    return Recipe(DiffusionConfig(32, LossWeight("x_mse")), loop, Budget(steps=20_000))
