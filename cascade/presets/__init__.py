"""Presets: each returns the complete config of a stage. What its paper leaves open is said where it is filled in.

Parameters in millions, ours beside the papers' (tests/test_presets.py holds ours to the digit):

    preset                   ours    paper
    imagen_base_2b         2236.1     2000
    imagen_sr256_600m       498.9      600
    imagen_sr1024_400m      490.5      400
    sr3_16_to_128           574.7      550
    sr3_64_to_256           633.5      625
    sr3_64_to_512           618.2      625
    sr3_256_to_1024         149.7      150
    cdm_32                  280.4        -
    cdm_32_to_64            296.6        -
    cdm_64_to_256           634.4        -
    toybox_base               7.8        -
    toybox_sr256              3.6        -

SR3 is met within 5%. Of Imagen's base 281 M are the keys and values of the text, projected from all of T5's 4096
channels in each of 22 attention layers; without them it is 1955 M. Imagen's two super-resolution networks have the
published hyperparameters, which differ in the attention of the lowest level alone, and that is worth 8 M here: no
reading of them gives both 600 M and 400 M.
"""

from cascade.presets.cdm import cdm_32, cdm_32_to_64, cdm_64_to_256
from cascade.presets.imagen import imagen_base_2b, imagen_sr256_600m, imagen_sr1024_400m
from cascade.presets.sr3 import sr3_16_to_128, sr3_64_to_256, sr3_64_to_512, sr3_256_to_1024
from cascade.presets.toybox import toybox_base, toybox_sr256

__all__ = [
    "cdm_32",
    "cdm_32_to_64",
    "cdm_64_to_256",
    "imagen_base_2b",
    "imagen_sr256_600m",
    "imagen_sr1024_400m",
    "sr3_16_to_128",
    "sr3_64_to_256",
    "sr3_64_to_512",
    "sr3_256_to_1024",
    "toybox_base",
    "toybox_sr256",
]
