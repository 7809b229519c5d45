"""The toybox detector: its network, and how it is trained and checked."""

from pipelines.evaluation.detector.network import Detector, DetectorConfig

__all__ = ["Detector", "DetectorConfig"]
