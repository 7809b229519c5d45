"""DeepFloyd IF's safety checker and watermark, which its licence asks for: on what a pipeline gives out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from conditioning.silence import no_progress_bars
from pipelines.images import OutputType, from_tensor
from weights.shards import COMPONENTS, StoredTensors, find_files
from weights.store import WeightsError, check_tensors

AT_A_TIME = 16  # images that it sees together, however many a call draws


@dataclass(frozen=True)
class SafetyChecker:
    """diffusers' IFSafetyChecker, and the CLIP image processor before it."""

    model: Any
    processor: Any

    @classmethod
    def from_pretrained(cls, folder: Path, dtype: torch.dtype, variant: str | None = None) -> SafetyChecker:
        """From a pipeline's folder: safety_checker/ and feature_extractor/. Raises WeightsError."""
        from diffusers.pipelines.deepfloyd_if.safety_checker import IFSafetyChecker
        from transformers.models.clip.configuration_clip import CLIPConfig
        from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

        for path in (folder / "safety_checker/config.json", folder / "feature_extractor/preprocessor_config.json"):
            if not path.is_file():
                raise WeightsError(f"{path} is missing: copy or download it again, or pass safety_checker=False")
        # Not its from_pretrained, which fails with transformers 5.
        model = IFSafetyChecker(CLIPConfig.from_pretrained(folder / "safety_checker"))
        _load(model, folder / "safety_checker", variant, dtype)
        return cls(model.eval(), CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor"))

    def save_pretrained(self, folder: Path) -> None:
        with no_progress_bars():
            self.model.save_pretrained(folder / "safety_checker")
        self.processor.save_pretrained(folder / "feature_extractor")

    def __call__(self, images: Tensor) -> tuple[Tensor, list[bool]]:
        """Images B 3 H W in [-1, 1], those that should not be shown blackened; and which these are."""
        flagged = [flag for part in images.split(AT_A_TIME) for flag in self._flags(part)]
        images = images.clone()
        images[torch.tensor(flagged)] = -1
        return images, flagged

    @torch.no_grad()
    def _flags(self, images: Tensor) -> list[bool]:
        import numpy as np

        pixels = (images / 2 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().numpy()  # B H W 3 in [0, 1]
        parameter = next(self.model.parameters())
        pictures = list((pixels * 255).round().astype(np.uint8))
        seen = self.processor(pictures, return_tensors="pt").pixel_values.to(parameter.device, parameter.dtype)
        _, unsafe, watermarked = self.model(images=list(pixels), clip_input=seen)
        return [a or b for a, b in zip(unsafe, watermarked, strict=True)]


def load_watermarker(folder: Path, variant: str | None = None) -> Any:
    """diffusers' IFWatermarker, from a pipeline's folder. Raises WeightsError."""
    from diffusers.pipelines.deepfloyd_if.watermark import IFWatermarker

    watermarker = IFWatermarker()
    _load(watermarker, folder / "watermarker", variant, torch.float32)
    return watermarker


def release(
    images: Tensor, output_type: OutputType, checker: SafetyChecker | None, watermarker: Any, side: int
) -> tuple[Any, list[bool] | None]:
    """Images B 3 H W in [-1, 1] as a caller asked for them: checked, and, as PIL images, watermarked; and which were
    blackened. side: the height the stage that drew them was trained at.
    """
    flagged = None
    if checker is not None:
        images, flagged = checker(images)
    found = from_tensor(images, output_type)
    if watermarker is not None and output_type == "pil":
        watermarker.apply_watermark(found, side)
    return found, flagged


def _load(model: nn.Module, folder: Path, variant: str | None, dtype: torch.dtype) -> None:
    with StoredTensors(find_files(folder, COMPONENTS[folder.name], variant, optional=True)) as stored:
        # Older files hold CLIP's position ids, which are 0, 1, 2, ...
        names = [name for name in stored.shapes if not name.endswith("position_ids")]
        wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        check_tensors(wanted, {name: stored.shapes[name] for name in names}, stored.where)
        model.load_state_dict({name: stored.read(name) for name in names})
    nn.Module.to(model, dtype)  # diffusers' own speaks of modules in float32, of which there are none
