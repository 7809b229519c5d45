"""cascade/guidance.py on tiny networks: its formula, its interval, and how many rows pass through the network."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from cascade.denoiser import Condition, Denoiser, Prepared
from cascade.guidance import guide
from cascade.networks.unet import UNet, UNetConfig
from cascade.schedules import Cosine
from conditioning import TextEmbedding

IMAGES = 2
GRID = [-6.0, -2.0, 0.5, 4.0, math.inf]


def tiny(*, learned_variance: bool = False, low_res: bool = False) -> Denoiser:
    """A denoiser whose every layer counts: what training starts at zero is random here."""
    config = UNetConfig(
        width=32,
        multipliers=(1,),
        blocks=(1,),
        attention_levels=(0,),
        embedding_width=32,
        text_width=16,
        head_channels=16,
        in_channels=6 if low_res else 3,
        out_channels=6 if learned_variance else 3,
        augmented=low_res,
    )
    network = UNet(config).eval().requires_grad_(False)
    for parameter in network.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)
    return Denoiser(network, Cosine(), "v", learned_variance=learned_variance)


def conditions(*, low_res: bool = False) -> tuple[Condition, Condition]:
    """With text of several lengths, and without."""
    mask = torch.arange(5) < torch.tensor([[5], [3]])
    given = Condition(TextEmbedding(torch.randn(IMAGES, 5, 16), mask))
    if low_res:
        given = replace(given, low_res=torch.randn(IMAGES, 3, 8, 8), aug_logsnr=torch.tensor([1.0, -1.0]))
    return given, replace(given, text=TextEmbedding.null(IMAGES, 16))


class Setting:
    """A tiny denoiser, both halves prepared, and the rows of every pass through its network."""

    def __init__(self, **kinds: bool) -> None:
        self.denoiser = tiny(**kinds)
        self.given, self.null = conditions(low_res=kinds.get("low_res", False))
        self.z = torch.randn(IMAGES, 3, 8, 8)
        self.rows: list[int] = []
        self.denoiser.network.register_forward_pre_hook(lambda module, inputs: self.rows.append(len(inputs[0])))

    def pair(self) -> Prepared:
        return self.denoiser.pair(self.given, self.null, GRID)

    def halves(self, logsnr: float) -> tuple[Tensor, Tensor]:
        """x0 with the condition and x0 without, each in a pass of its own."""
        conditional, null = (
            self.denoiser(self.z, logsnr, self.denoiser.prepare(one, GRID)).x0 for one in (self.given, self.null)
        )
        self.rows.clear()
        assert (conditional - null).abs().max() > 5e-3  # or no test here would say anything
        return conditional, null


@pytest.fixture
def setting() -> Setting:
    return Setting()


@pytest.mark.parametrize("logsnr", [-2.0, 4.0, 1.25])  # the last is not on the grid
@pytest.mark.parametrize("scale", [0.0, 0.5, 3.0, 15.0])
@pytest.mark.parametrize("low_res", [False, True])
def test_guidance_is_its_formula_in_one_pass(low_res: bool, scale: float, logsnr: float) -> None:
    setting = Setting(low_res=low_res)
    conditional, null = setting.halves(logsnr)
    x0, variance = guide(setting.denoiser, setting.pair(), scale)(setting.z, logsnr)
    torch.testing.assert_close(x0, null + scale * (conditional - null), rtol=1e-4, atol=1e-4)
    assert (x0.shape, x0.dtype, variance) == (setting.z.shape, torch.float32, None)
    assert setting.rows == [2 * IMAGES]


def test_the_default_scale_is_on(setting: Setting) -> None:
    conditional, null = setting.halves(0.5)
    found = guide(setting.denoiser, setting.pair())(setting.z, 0.5).x0
    torch.testing.assert_close(found, 7 * conditional - 6 * null, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("halves", [1, 2])
def test_scale_1_is_one_pass_of_the_conditional_half(setting: Setting, halves: int) -> None:
    conditional, _ = setting.halves(0.5)
    prepared = setting.pair() if halves == 2 else setting.denoiser.prepare(setting.given, GRID)
    found = guide(setting.denoiser, prepared, 1.0)(setting.z, 0.5).x0
    torch.testing.assert_close(found, conditional, rtol=1e-5, atol=1e-5)
    assert setting.rows == [IMAGES]


@pytest.mark.parametrize("low_res", [False, True])
@pytest.mark.parametrize(
    ("logsnr", "on"),
    [
        (-6.0, False),
        (math.nextafter(-2.0, -math.inf), False),
        (-2.0, True),
        (0.5, True),
        (4.0, True),
        (math.nextafter(4.0, math.inf), False),
        (6.0, False),
    ],
)
def test_guidance_is_on_inside_its_interval_ends_included(low_res: bool, logsnr: float, on: bool) -> None:
    setting = Setting(low_res=low_res)
    conditional, null = setting.halves(logsnr)
    found = guide(setting.denoiser, setting.pair(), 5.0, (-2.0, 4.0))(setting.z, logsnr).x0
    wanted = null + 5 * (conditional - null) if on else conditional
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)
    assert setting.rows == [2 * IMAGES if on else IMAGES]


def test_an_interval_may_be_one_level_or_open(setting: Setting) -> None:
    for interval, logsnr, rows in (((0.5, 0.5), 0.5, 2), ((0.5, 0.5), 0.6, 1), ((-math.inf, math.inf), -6.0, 2)):
        setting.rows.clear()
        guide(setting.denoiser, setting.pair(), 5.0, interval)(setting.z, logsnr)
        assert setting.rows == [rows * IMAGES]


@pytest.mark.parametrize(("scale", "interval"), [(4.0, None), (4.0, (2.0, 3.0)), (1.0, None)])
def test_the_variance_is_that_of_the_conditional_half(scale: float, interval: tuple[float, float] | None) -> None:
    setting = Setting(learned_variance=True)
    conditional, null = (
        setting.denoiser(setting.z, 0.5, setting.denoiser.prepare(one, GRID)).variance_fraction
        for one in (setting.given, setting.null)
    )
    assert (conditional - null).abs().max() > 0.01
    x0, variance = guide(setting.denoiser, setting.pair(), scale, interval)(setting.z, 0.5)
    assert x0.shape == variance.shape == setting.z.shape
    torch.testing.assert_close(variance, conditional, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("scale", "interval", "message"),
    [
        (math.nan, None, r"scale must be a number >= 0 \(1 is off\), got nan"),
        (-0.5, None, "got -0.5"),
        (math.inf, None, "got inf"),
        (-math.inf, None, "got -inf"),
        (3.0, (4.0, -2.0), r"\(low, high\) in logsnr with low <= high, got \(4.0, -2.0\)"),
        (3.0, (math.nan, 1.0), "got \\(nan, 1.0\\)"),
        (1.0, (4.0, -2.0), "low <= high"),
    ],
)
def test_bad_settings_are_refused_at_once(
    setting: Setting, scale: float, interval: tuple[float, float] | None, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        guide(setting.denoiser, setting.pair(), scale, interval)


def test_a_missing_half_is_refused_where_it_is_needed(setting: Setting) -> None:
    prepared = setting.denoiser.prepare(setting.given, GRID)
    denoise = guide(setting.denoiser, prepared, 3.0, (-2.0, 4.0))
    denoise(setting.z, 9.0)
    with pytest.raises(ValueError, match="needs both halves prepared: 4 rows, got 2"):
        denoise(setting.z, 0.5)
