"""Image features: resizing, the networks against second statements of them, weights that do not fit."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_clip import save_tiny_clip
from torch.nn import functional as F

from cascade.data.toybox import render, sample_scene
from pipelines.evaluation.detector import Detector
from pipelines.evaluation.detector.corruptions import blur
from pipelines.evaluation.detector.network import SEEN
from pipelines.evaluation.metrics import Clip, Moments, frechet_distance, open_features
from pipelines.evaluation.metrics.clip import MEAN, SD
from pipelines.evaluation.metrics.images import batches, extract, read_image, read_square, resize
from pipelines.evaluation.metrics.inception import CLASSIFIER, Inception
from weights import WeightsError


@pytest.fixture
def images():
    return torch.rand(3, 3, 48, 48) * 2 - 1


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory):
    return save_tiny_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="session")
def dinov2_folder(tmp_path_factory):
    from transformers import Dinov2Config, Dinov2Model

    folder = tmp_path_factory.mktemp("dinov2")
    config = Dinov2Config(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, image_size=56, patch_size=14)
    Dinov2Model(config).save_pretrained(folder)
    return folder


class TestImages:
    @pytest.mark.parametrize("side", [11, 48, 299])
    def test_resizing_is_pillows_on_floats(self, side):
        """Which is clean-fid's way of resizing; also beyond [-1, 1], where bicubic filters overshoot."""
        image = (torch.rand(3, 48, 64) > 0.5).float() * 2 - 1
        wanted = [
            np.array(Image.fromarray(channel.numpy()).resize((side, side), Image.Resampling.BICUBIC))
            for channel in image
        ]
        found = resize(image[None], side)[0]
        np.testing.assert_allclose(found.numpy(), np.stack(wanted), atol=2e-5)
        assert side < 299 or found.abs().max() > 1.1

    def test_a_fine_pattern_does_not_alias(self):
        stripes = torch.ones(1, 3, 64, 64)
        stripes[..., ::2] = -1
        assert resize(stripes, 16).abs().max() < 0.1
        assert F.interpolate(stripes, (16, 16), mode="nearest").abs().min() == 1

    def test_the_middle_square(self, tmp_path):
        pixels = np.zeros((4, 10, 3), np.uint8)
        pixels[:, 3:7] = 255
        Image.fromarray(pixels).save(tmp_path / "wide.png")
        Image.fromarray(pixels.transpose(1, 0, 2)).save(tmp_path / "high.png")
        for name in ("wide.png", "high.png"):
            assert (read_square(tmp_path / name) == torch.ones(3, 4, 4)).all()
            assert read_square(tmp_path / name, 8).shape == (3, 8, 8)
        assert read_image(tmp_path / "wide.png").shape == (3, 4, 10)

    def test_what_is_no_image_is_named(self, tmp_path):
        (tmp_path / "text.png").write_text("no image")
        with pytest.raises(ValueError, match=r"text\.png is no image that can be read"):
            read_square(tmp_path / "text.png")

    def test_batches_keep_the_order(self, tmp_path):
        paths = [tmp_path / f"{i}.png" for i in range(7)]
        for i, path in enumerate(paths):
            Image.new("RGB", (8 + i, 8), (i, i, i)).save(path)
        levels = [round((image.mean().item() + 1) * 127.5) for b in batches(paths, read_square, 3) for image in b]
        assert levels == list(range(7))
        means = extract(lambda images: images.mean(dim=(2, 3)), paths, side=4, batch_size=3)
        assert (means.dtype, means.shape) == (torch.float32, (7, 3))
        torch.testing.assert_close((means[:, 0] + 1) * 127.5, torch.arange(7.0), atol=1e-4, rtol=0)


class TestToybox:
    def test_they_are_the_detectors_averaged(self, images):
        features = open_features("toybox")
        found = features(images)
        assert found.shape == (3, features.dimensions)
        parts = Detector.from_pretrained().features(images).view(3, features.dimensions, 16)
        torch.testing.assert_close(found, parts.mean(dim=2))
        assert features.version == open_features("toybox").version

    @pytest.mark.slow
    def test_the_mean_over_the_picture_tells_more_than_the_maximum(self):
        """How often as far as fresh renders those of a wrong distribution of colours are, and blurred ones."""

        def drawn(seed, red=0):
            scenes = [sample_scene(seed, i) for i in range(300)]
            for i in range(red):
                things = [replace(thing, look=replace(thing.look, colour="red")) for thing in scenes[i].things]
                scenes[i] = replace(scenes[i], things=tuple(things))
            return torch.cat([render(scenes[i : i + 30], SEEN) for i in range(0, 300, 30)])

        reference, fresh, wrong = drawn(101), drawn(102), drawn(103, red=90)
        blurred = blur(fresh, torch.ones(300))
        trunk = Detector.from_pretrained().what_and_where.features
        maps = [torch.cat([trunk(part) for part in images.split(30)]) for images in (reference, fresh, wrong, blurred)]
        times = {}
        for name, features in (("mean", lambda x: x.mean(dim=(2, 3))), ("max", lambda x: x.amax(dim=(2, 3)))):
            moments = [Moments.of(features(one)) for one in maps]
            as_fresh, *others = [frechet_distance(moments[0], one) for one in moments[1:]]
            times[name] = [other / as_fresh for other in others]
        print({name: [f"{value:.2f}" for value in values] for name, values in times.items()})
        assert all(mean > 1.1 * most for mean, most in zip(times["mean"], times["max"], strict=True))

    @pytest.mark.parametrize("name", ["toybox:x", "inception", "dinov2:", "vgg:x", ""])
    def test_an_unknown_name(self, name):
        with pytest.raises(ValueError, match="expected toybox, inception:FILE"):
            open_features(name)


class Published:
    """The Inception of the FID once more, step by step from a table of tensors.

    average, last: its two departures from torchvision's network.
    """

    def __init__(self, tensors, average=dict(count_include_pad=False), last=F.max_pool2d):  # noqa: B006, C408
        self.tensors, self.average, self.last = tensors, average, last

    def conv(self, name, x, stride=1, padding: int | tuple[int, int] = 0):
        own = {key: self.tensors[f"{name}.{key}"] for key in ("conv.weight", "bn.weight", "bn.bias")}
        x = F.conv2d(x, own["conv.weight"], stride=stride, padding=padding)
        mean, variance = self.tensors[f"{name}.bn.running_mean"], self.tensors[f"{name}.bn.running_var"]
        return F.relu(F.batch_norm(x, mean, variance, own["bn.weight"], own["bn.bias"], eps=1e-3))

    def pool(self, name, x):
        return self.conv(f"{name}.branch_pool", F.avg_pool2d(x, 3, stride=1, padding=1, **self.average))

    def a(self, name, x):
        five = self.conv(f"{name}.branch5x5_2", self.conv(f"{name}.branch5x5_1", x), padding=2)
        three = self.conv(f"{name}.branch3x3dbl_2", self.conv(f"{name}.branch3x3dbl_1", x), padding=1)
        three = self.conv(f"{name}.branch3x3dbl_3", three, padding=1)
        return torch.cat([self.conv(f"{name}.branch1x1", x), five, three, self.pool(name, x)], 1)

    def c(self, name, x):
        one = self.conv(f"{name}.branch7x7_1", x)
        one = self.conv(f"{name}.branch7x7_2", one, padding=(0, 3))
        one = self.conv(f"{name}.branch7x7_3", one, padding=(3, 0))
        two = self.conv(f"{name}.branch7x7dbl_1", x)
        for i, padding in zip(range(2, 6), [(3, 0), (0, 3), (3, 0), (0, 3)], strict=True):
            two = self.conv(f"{name}.branch7x7dbl_{i}", two, padding=padding)
        return torch.cat([self.conv(f"{name}.branch1x1", x), one, two, self.pool(name, x)], 1)

    def e(self, name, x, pooled):
        def forked(chain, h):
            return [self.conv(f"{chain}a", h, padding=(0, 1)), self.conv(f"{chain}b", h, padding=(1, 0))]

        one = forked(f"{name}.branch3x3_2", self.conv(f"{name}.branch3x3_1", x))
        two = self.conv(f"{name}.branch3x3dbl_2", self.conv(f"{name}.branch3x3dbl_1", x), padding=1)
        two = forked(f"{name}.branch3x3dbl_3", two)
        return torch.cat([self.conv(f"{name}.branch1x1", x), *one, *two, pooled], 1)

    def __call__(self, x):
        x = self.conv("Conv2d_1a_3x3", x, stride=2)
        x = self.conv("Conv2d_2b_3x3", self.conv("Conv2d_2a_3x3", x), padding=1)
        x = self.conv("Conv2d_3b_1x1", F.max_pool2d(x, 3, stride=2))
        x = F.max_pool2d(self.conv("Conv2d_4a_3x3", x), 3, stride=2)
        for name in ("Mixed_5b", "Mixed_5c", "Mixed_5d"):
            x = self.a(name, x)
        three = self.conv("Mixed_6a.branch3x3dbl_2", self.conv("Mixed_6a.branch3x3dbl_1", x), padding=1)
        three = self.conv("Mixed_6a.branch3x3dbl_3", three, stride=2)
        x = torch.cat([self.conv("Mixed_6a.branch3x3", x, stride=2), three, F.max_pool2d(x, 3, stride=2)], 1)
        for name in ("Mixed_6b", "Mixed_6c", "Mixed_6d", "Mixed_6e"):
            x = self.c(name, x)
        three = self.conv("Mixed_7a.branch3x3_2", self.conv("Mixed_7a.branch3x3_1", x), stride=2)
        seven = self.conv("Mixed_7a.branch7x7x3_2", self.conv("Mixed_7a.branch7x7x3_1", x), padding=(0, 3))
        seven = self.conv("Mixed_7a.branch7x7x3_3", seven, padding=(3, 0))
        seven = self.conv("Mixed_7a.branch7x7x3_4", seven, stride=2)
        x = torch.cat([three, seven, F.max_pool2d(x, 3, stride=2)], 1)
        x = self.e("Mixed_7b", x, self.pool("Mixed_7b", x))
        pooled = self.conv("Mixed_7c.branch_pool", self.last(x, 3, stride=1, padding=1))
        return self.e("Mixed_7c", x, pooled).mean(dim=(2, 3))


@pytest.fixture(scope="session")
def tensors():
    """Random weights of a trained network's size, with the classifier that the published file holds, too."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        found = {name: value for name, value in Inception().state_dict().items() if value.ndim}
        for name, value in found.items():
            if name.endswith("conv.weight"):
                value.normal_(0, (2 / value[0].numel()) ** 0.5)
            elif name.endswith(("bn.weight", "running_var")):
                value.uniform_(0.5, 1.5)
            else:
                value.normal_(0, 0.1)
        return found | {name: torch.randn(shape) for name, shape in CLASSIFIER.items()}


class TestInception:
    def test_it_is_the_published_network(self, tensors, tmp_path):
        torch.save(tensors, tmp_path / "inception.pth")
        network = Inception.from_file(tmp_path / "inception.pth")
        # torchvision's inception_v3 has 27,161,264; 3,326,696 of them in AuxLogits, 2,049,000 in fc.
        assert sum(p.numel() for p in network.parameters()) == 27_161_264 - 3_326_696 - 2_049_000
        x = torch.rand(2, 3, 139, 139) * 2 - 1
        wanted = Published(tensors)(x)
        assert wanted.shape == (2, 2048)
        assert wanted.std() > 0.1
        torch.testing.assert_close(network(x), wanted, rtol=1e-4, atol=1e-4)
        for other in (Published(tensors, average={}), Published(tensors, last=F.avg_pool2d)):
            assert (other(x) - wanted).abs().max() > 0.01  # torchvision's pooling would be seen

    def test_the_extractor_feeds_it_tensorflows_range(self, tensors, tmp_path):
        save_file(tensors, tmp_path / "inception.safetensors")
        features = open_features(f"inception:{tmp_path / 'inception.safetensors'}")
        assert features.dimensions == 2048
        pixels = torch.randint(0, 256, (1, 3, 299, 299)).float()
        wanted = Inception.from_file(tmp_path / "inception.safetensors")((pixels - 128) / 128)
        torch.testing.assert_close(features(pixels / 127.5 - 1), wanted, rtol=1e-3, atol=1e-4)

    def test_other_files_are_refused(self, tensors, tmp_path):
        torchvisions = tensors | {"fc.weight": torch.zeros(1000, 2048), "AuxLogits.fc.bias": torch.zeros(1000)}
        torch.save(torchvisions, tmp_path / "torchvision.pth")
        with pytest.raises(WeightsError, match=r"(?s)unexpected: AuxLogits.fc.bias.*misshapen: fc.weight"):
            Inception.from_file(tmp_path / "torchvision.pth")
        torch.save({"model": object}, tmp_path / "code.pth")
        with pytest.raises(WeightsError, match="holds more than tensors"):
            open_features(f"inception:{tmp_path / 'code.pth'}")
        with pytest.raises(WeightsError, match="no file"):
            open_features(f"inception:{tmp_path / 'missing.pth'}")
        (tmp_path / "damaged.safetensors").write_bytes(b"12345678")
        with pytest.raises(WeightsError, match="damaged"):
            open_features(f"inception:{tmp_path / 'damaged.safetensors'}")


class TestDinov2:
    def test_it_is_the_class_token(self, dinov2_folder, images):
        from transformers import Dinov2Model

        features = open_features(f"dinov2:{dinov2_folder}")
        found = features(images)
        assert found.shape == (3, features.dimensions) == (3, 16)
        pixels = (resize(images, 224) + 1) / 2
        pixels -= torch.tensor([0.485, 0.456, 0.406])[:, None, None]
        pixels /= torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        model = Dinov2Model.from_pretrained(dinov2_folder).eval()
        torch.testing.assert_close(found, model(pixels).last_hidden_state[:, 0])


class TestClip:
    def test_it_is_the_cosine_of_the_whole_model(self, clip_folder, images):
        clip = Clip.from_pretrained(clip_folder)
        texts = ["a red car", "a ball", "a blue car on a red ball and nothing else whatever there is to be seen in it"]
        tokens = clip.tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
        assert tokens["input_ids"].shape == (3, 16)  # the long one is cut, and still ends as it should
        assert (tokens["input_ids"][:, -1] == clip.tokenizer.eos_token_id).all()
        pixels = (resize(images, 30) + 1) / 2
        pixels = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(SD)[:, None, None]
        out = clip.model(pixel_values=pixels, **tokens)
        cosines = (out.image_embeds * out.text_embeds).sum(dim=1)
        assert cosines.min() < 0 < cosines.max()
        torch.testing.assert_close(clip.score(images, texts), 100 * cosines.clamp(min=0), rtol=1e-4, atol=1e-4)

    def test_its_features(self, clip_folder, images):
        features = open_features(f"clip:{clip_folder}")
        torch.testing.assert_close(features(images), Clip.from_pretrained(clip_folder).images(images))
        assert features.dimensions == features(images).shape[1] == 8

    def test_what_is_no_clip_is_refused(self, clip_folder, dinov2_folder, tmp_path):
        with pytest.raises(WeightsError, match="type 'dinov2'; expected 'clip'"):
            Clip.from_pretrained(dinov2_folder)
        with pytest.raises(WeightsError, match="no folder"):
            Clip.from_pretrained(tmp_path / "missing")
        with pytest.raises(WeightsError, match=r"no config\.json"):
            Clip.from_pretrained(tmp_path)
        (tmp_path / "config.json").write_text((clip_folder / "config.json").read_text())
        with pytest.raises(WeightsError, match="no safetensors"):
            Clip.from_pretrained(tmp_path)
        save_file({"logit_scale": torch.tensor(1.0)}, tmp_path / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(WeightsError, match="lack text_model"):
            Clip.from_pretrained(tmp_path)

    def test_a_missing_tokenizer_is_named(self, clip_folder, tmp_path):
        for name in ("config.json", "model.safetensors"):
            (tmp_path / name).write_bytes((clip_folder / name).read_bytes())
        with pytest.raises(ValueError, match="no tokenizer"):
            Clip.from_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "clip"
