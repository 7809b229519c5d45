"""cascade/data/decode.py and transform.py: every kind of image becomes the pixels one sees."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from image_folders import damaged, encoded, picture
from PIL import Image

from cascade.data.decode import decode
from cascade.data.source import Unusable
from cascade.data.transform import Transform, reduce

RED = (200, 30, 40)
RNG = np.random.default_rng(0)


def seen(data):
    """The colour of a plain picture."""
    image = decode(data)
    assert image.mode == "RGB"
    pixels = np.asarray(image).reshape(-1, 3)
    assert np.ptp(pixels, axis=0).max() <= 3
    return pixels.mean(0)


def plain(mode, colour):
    return Image.new(mode, (16, 12), colour)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_formats(kind):
    assert np.abs(seen(encoded(plain("RGB", RED), kind)) - RED).max() < 4


@pytest.mark.parametrize(
    ("image", "kind", "colour"),
    [
        (plain("L", 77), "PNG", (77, 77, 77)),
        (plain("1", 1), "PNG", (255, 255, 255)),
        (plain("RGB", RED).quantize(4), "PNG", RED),
        (plain("RGBA", (*RED, 255)), "PNG", RED),
        (plain("RGBA", (*RED, 0)), "PNG", (255, 255, 255)),
        (plain("RGBA", (0, 0, 0, 102)), "PNG", (153, 153, 153)),
        (plain("LA", (0, 102)), "PNG", (153, 153, 153)),
        (plain("CMYK", (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (plain("CMYK", (0, 255, 255, 0)), "TIFF", (255, 0, 0)),
        (Image.fromarray(np.full((12, 16), 200 * 257, np.uint16)), "PNG", (200, 200, 200)),
        (Image.fromarray(np.full((12, 16), 200 * 257, np.uint16)), "TIFF", (200, 200, 200)),
        (Image.fromarray(np.full((12, 16), 65535, np.int32)), "TIFF", (255, 255, 255)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else None,
)
def test_modes(image, kind, colour):
    assert np.abs(seen(encoded(image, kind)) - colour).max() <= 3


def test_a_transparent_colour_of_a_palette():
    image = plain("P", 0)
    image.putpalette([*RED, 0, 0, 255])
    image.paste(1, (0, 0, 8, 12))
    pixels = np.asarray(decode(encoded(image, "PNG", transparency=0)))
    assert (pixels[:, :8] == (0, 0, 255)).all()
    assert (pixels[:, 8:] == 255).all()


def test_an_animation_shows_its_first_frame():
    frames = [plain("RGB", RED), plain("RGB", (0, 0, 255))]
    assert np.abs(seen(encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])) - RED).max() < 4


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_a_photo(orientation):
    upright = picture(1, (24, 32))
    back = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # the transposition that undoes each
    stored = upright if orientation == 1 else upright.transpose(Image.Transpose(back[orientation]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    for kind in ("PNG", "JPEG"):
        found = decode(encoded(stored, kind, exif=exif))
        assert found.size == (32, 24)
        assert np.abs(np.asarray(found).astype(int) - np.asarray(upright)).mean() < 4


def test_broken_exif_leaves_a_photo_as_it_is():
    data = encoded(picture(), "JPEG", exif=b"Exif\x00\x00nonsense")
    assert decode(data).size == (48, 40)


@pytest.mark.parametrize("name", damaged())
def test_what_cannot_be_used(name):
    with pytest.raises(Unusable, match="smaller" if name == "small.png" else "too large|no picture|broken|empty"):
        Transform((16, 16))(damaged()[name], RNG)


@given(st.binary(max_size=60), st.sampled_from(["PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF"]), st.data())
def test_no_file_breaks_the_reader(junk, kind, data):
    whole = encoded(picture(), kind)
    at = data.draw(st.integers(0, len(whole)))
    said = ""
    try:
        assert decode(whole[:at] + junk + whole[at + len(junk) :]).mode == "RGB"
    except Unusable as error:
        said = str(error)
    assert "0x" not in said


def test_grey_of_more_than_16_bits_is_refused():
    for pixels in (np.full((4, 4), 70000, np.int32), np.full((4, 4), 0.5, np.float32)):
        with pytest.raises(Unusable, match="8 or 16 bits"):
            decode(encoded(Image.fromarray(pixels), "TIFF"))


def exact(pixels, size):
    """Area averages by the definition: how much of each source pixel each result covers."""
    for axis, count in enumerate(size):
        ratio = pixels.shape[axis] / count
        i, k = np.arange(count)[:, None], np.arange(pixels.shape[axis])
        covered = (np.minimum(k + 1, (i + 1) * ratio) - np.maximum(k, i * ratio)).clip(0) / ratio
        pixels = np.moveaxis(np.tensordot(covered, pixels, (1, axis)), 0, axis)
    return pixels


@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_reduction_is_the_mean_of_what_is_covered(height, width, data):
    size = data.draw(st.tuples(st.integers(1, height), st.integers(1, width)))
    pixels = np.random.default_rng(height).integers(0, 256, (height, width, 3), dtype=np.uint8)
    expected = exact(pixels.astype(float), size)
    found = reduce(Image.fromarray(pixels), size, (0, 0, *size))
    if height < 16 * size[0] and width < 16 * size[1]:  # above, blocks are averaged first
        assert np.abs(found - expected).max() <= 0.7  # Pillow, which does whole ratios, rounds thirds down
    top, left = data.draw(st.tuples(st.integers(0, size[0] - 1), st.integers(0, size[1] - 1)))
    box = (top, left, size[0] - top, size[1] - left)
    assert (reduce(Image.fromarray(pixels), size, box) == found[top:, left:]).all()


def test_no_moire():
    """A pattern finer than the result becomes grey; nearest neighbours would make stripes of it."""
    stripes = np.zeros((100, 100, 3), np.uint8)
    stripes[:, ::2] = 255
    found = Transform((30, 30))(encoded(Image.fromarray(stripes)), RNG).numpy()
    assert np.abs(found.astype(int) - 128).max() < 40
    assert Transform((25, 25))(encoded(Image.fromarray(stripes)), RNG).unique().tolist() == [128]


@pytest.mark.parametrize("size", [(64, 96), (200, 130), (64, 64), (65, 400)])
def test_exactly_the_resolution(size):
    found = Transform((64, 64))(encoded(picture(0, size)), RNG)
    assert found.shape == (3, 64, 64)
    assert found.dtype.is_floating_point is False
    wide = Transform((32, 64))(encoded(picture(0, size)), RNG)
    assert wide.shape == (3, 32, 64)


def test_the_crop_is_of_the_reduced_picture():
    """A centre crop is the centre; random crops are parts of the same picture, everywhere in it."""
    image = picture(3, (128, 192))
    whole = Transform((64, 96))(image, RNG).numpy()
    assert (Transform((64, 64))(image, RNG).numpy() == whole[:, :, 16:80]).all()
    assert (Transform((64, 96), crop=(32, 32))(image, RNG).numpy() == whole[:, 16:48, 32:64]).all()
    transform = Transform((64, 96), crop=(61, 92), position="random")
    parts = {whole[:, v : v + 61, h : h + 92].tobytes(): (v, h) for v in range(4) for h in range(5)}
    places = {parts[transform(image, RNG).numpy().tobytes()] for _ in range(200)}
    assert len(places) == 20


def test_flip_is_off_unless_asked_for():
    image = picture(3, (64, 64))
    whole = Transform((64, 64))(image, RNG).numpy()
    assert all((Transform((64, 64))(image, RNG).numpy() == whole).all() for _ in range(20))
    flipped = [(Transform((64, 64), flip=True)(image, RNG).numpy() == whole[:, :, ::-1]).all() for _ in range(100)]
    assert 25 < sum(flipped) < 75


def test_small_pictures_are_refused_or_enlarged():
    image = picture(3, (40, 80))
    with pytest.raises(Unusable, match="80 x 40 px is smaller than the resolution 64 x 64"):
        Transform((64, 64))(image, RNG)
    assert Transform((64, 64), small="enlarge")(image, RNG).shape == (3, 64, 64)
    assert Transform((40, 40))(image, RNG).shape == (3, 40, 40)


def test_a_large_jpeg_is_read_at_a_fraction():
    """What is spared does not show: the mean of a smooth photo's pixels, to the JPEG's own error."""
    image = picture(5, (800, 1000))
    whole = Transform((64, 64))(image, RNG).numpy().astype(int)
    data = encoded(image, "JPEG", quality=95)
    assert decode(data, (64, 64)).size == (250, 200)
    assert np.abs(Transform((64, 64))(data, RNG).numpy() - whole).max() <= 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"resolution": (0, 64)}, "resolution"),
        ({"resolution": (64, 64), "crop": (65, 64)}, "crop must lie within"),
        ({"resolution": (64, 64), "position": "left"}, "'left'; expected center or random"),
        ({"resolution": (64, 64), "small": "no"}, "'no'; expected skip or enlarge"),
    ],
)
def test_bad_settings(settings, message):
    with pytest.raises(ValueError, match=message):
        Transform(**settings)
