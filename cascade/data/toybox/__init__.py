"""Toybox: a procedural world of toys on a ground, with exact pictures of it at any size and captions."""

from cascade.data.toybox.captions import caption, paraphrase, plain_caption, vocabulary
from cascade.data.toybox.description import COLOURS, Description, HeldOut, Look, held_out, sample_description
from cascade.data.toybox.materials import MATERIALS
from cascade.data.toybox.nouns import NOUNS
from cascade.data.toybox.render import render
from cascade.data.toybox.scene import Scene, Thing, arrange, sample_scene

__all__ = [
    "COLOURS",
    "MATERIALS",
    "NOUNS",
    "Description",
    "HeldOut",
    "Look",
    "Scene",
    "Thing",
    "arrange",
    "caption",
    "held_out",
    "paraphrase",
    "plain_caption",
    "render",
    "sample_description",
    "sample_scene",
    "vocabulary",
]
