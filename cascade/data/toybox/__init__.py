"""Toybox: a procedural world of toys on a ground, with exact pictures of it at any size and captions."""

from cascade.data.toybox.captions import caption, plain_caption, vocabulary
from cascade.data.toybox.nouns import NOUNS, Noun, Part
from cascade.data.toybox.render import render
from cascade.data.toybox.scene import (
    CAMERA,
    COLOURS,
    GROUNDS,
    KIND_WEIGHTS,
    LIGHTS,
    Scene,
    Thing,
    in_frame,
    picture_box,
    sample_scene,
)

__all__ = [
    "CAMERA",
    "COLOURS",
    "GROUNDS",
    "KIND_WEIGHTS",
    "LIGHTS",
    "NOUNS",
    "Noun",
    "Part",
    "Scene",
    "Thing",
    "caption",
    "in_frame",
    "picture_box",
    "plain_caption",
    "render",
    "sample_scene",
    "vocabulary",
]
