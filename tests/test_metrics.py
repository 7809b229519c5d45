"""Distances between sets of images: closed forms, brute force, and parity with torchmetrics."""

import math

import pytest
import torch
from torch import nn

from pipelines.evaluation.metrics import (
    Manifold,
    Moments,
    frechet_distance,
    kernel_distance,
    kernel_distance_by_subsets,
    precision_recall,
)


def drawn(count, dimensions, seed, spread=1.0, shift=0.0):
    generator = torch.Generator().manual_seed(seed)
    mix = torch.randn(dimensions, dimensions, generator=generator, dtype=torch.float64) / math.sqrt(dimensions)
    return torch.randn(count, dimensions, generator=generator, dtype=torch.float64) @ mix * spread + shift


class TestMoments:
    def test_batch_by_batch_is_all_at_once(self):
        x = drawn(1000, 7, 0, shift=1e4)
        whole, parts = Moments.of(x), Moments.of(iter(x.split([1, 2, 400, 597])))
        assert parts.count == 1000
        torch.testing.assert_close(parts.mean, x.mean(dim=0))
        for moments in (whole, parts):
            torch.testing.assert_close(moments.covariance, torch.cov(x.T), rtol=1e-10, atol=1e-10)

    def test_a_large_mean_costs_no_digits(self):
        """Where the sum of squares would lose them all: a spread of 1e-3 about 1e6."""
        x = 1e6 + 1e-3 * drawn(500, 3, 1)
        parts = Moments.of(iter(x.split(50)))
        torch.testing.assert_close(parts.covariance, torch.cov((x - 1e6).T), rtol=1e-6, atol=0)

    def test_single_precision_is_accumulated_in_double(self):
        x = drawn(4096, 2, 2, shift=300.0).float()
        torch.testing.assert_close(Moments.of(x).covariance, torch.cov(x.double().T), rtol=1e-10, atol=0)

    @pytest.mark.parametrize("bad", [torch.zeros(3), torch.zeros(0, 4), torch.tensor([[0.0, math.nan]])])
    def test_what_is_no_set_of_features_is_refused(self, bad):
        with pytest.raises(ValueError, match="features"):
            Moments.of(bad)

    def test_other_features_do_not_add_up(self):
        with pytest.raises(ValueError, match="3 and 2 features"):
            _ = Moments.of(torch.randn(5, 3)) + Moments.of(torch.randn(5, 2))


class TestFrechetDistance:
    def test_of_gaussians_along_the_axes(self):
        """sum (m - n)^2 + (s - t)^2 where the covariances are diagonal."""
        signs = torch.tensor([[a, b] for a in (-1.0, 1.0) for b in (-1.0, 1.0)], dtype=torch.float64)
        signs = signs * math.sqrt(3 / 4)  # 4 points of covariance 1
        one, other = signs * torch.tensor([3.0, 0.5]), signs * torch.tensor([1.0, 2.0]) + torch.tensor([1.0, -2.0])
        found = frechet_distance(Moments.of(one), Moments.of(other))
        assert found == pytest.approx(1 + 4 + (3 - 1) ** 2 + (0.5 - 2) ** 2)

    def test_of_a_set_with_itself_and_with_its_shift(self):
        x = drawn(200, 16, 0)
        assert frechet_distance(Moments.of(x), Moments.of(x)) == pytest.approx(0, abs=1e-12)
        assert frechet_distance(Moments.of(x), Moments.of(x + 0.5)) == pytest.approx(16 * 0.25)

    def test_against_the_matrix_square_root(self):
        """The trace of (C S)^(1/2) by the eigenvalues of C S, which are all positive here."""
        one, other = Moments.of(drawn(400, 20, 0)), Moments.of(drawn(300, 20, 1, spread=2, shift=0.3))
        root = torch.linalg.eigvals(one.covariance @ other.covariance).sqrt().real.sum()
        traces = one.covariance.trace() + other.covariance.trace()
        wanted = (one.mean - other.mean).square().sum() + traces - 2 * root
        assert frechet_distance(one, other) == pytest.approx(wanted.item(), rel=1e-10)

    def test_features_that_hardly_vary_cost_no_digits(self):
        """Scales of 1 to 1e-9: of a set and its multiple, the distance is a closed form."""
        x = drawn(100, 12, 0) * torch.logspace(0, -9, 12, dtype=torch.float64)
        x -= x.mean(dim=0)
        found = frechet_distance(Moments.of(x), Moments.of(1.001 * x))
        assert found == pytest.approx(1e-6 * Moments.of(x).covariance.trace().item(), rel=1e-6)

    def test_too_few_images_are_refused(self):
        few, enough = Moments.of(drawn(20, 20, 0)), Moments.of(drawn(21, 20, 1))
        for pair in ((few, enough), (enough, few)):
            with pytest.raises(ValueError, match="20 images are too few for a Frechet distance of 20 features"):
                frechet_distance(*pair)
        assert frechet_distance(enough, enough) == pytest.approx(0, abs=1e-10)
        assert frechet_distance(few, enough, few=True) > 0
        with pytest.raises(ValueError, match="more than 1"):
            frechet_distance(Moments.of(drawn(1, 2, 0)), few, few=True)


class TestKernelDistance:
    def test_against_the_sum_over_pairs(self):
        x, y = drawn(6, 4, 0), drawn(5, 4, 1, shift=0.5)

        def k(a, b):
            return (float(a @ b) / 4 + 1) ** 3

        wanted = sum(k(a, b) for i, a in enumerate(x) for j, b in enumerate(x) if i != j) / 30
        wanted += sum(k(a, b) for i, a in enumerate(y) for j, b in enumerate(y) if i != j) / 20
        wanted -= 2 * sum(k(a, b) for a in x for b in y) / 30
        assert kernel_distance(x, y) == pytest.approx(wanted, rel=1e-10)

    def test_it_has_no_bias(self):
        """Between sets of 10 out of one distribution it is zero on average, in units of its own error."""
        found = torch.tensor([kernel_distance(*torch.randn(2, 10, 3, dtype=torch.float64)) for _ in range(500)])
        assert abs(found.mean()) < 3 * found.std() / math.sqrt(500)
        assert (found < 0).any()

    def test_blocks_change_nothing(self, monkeypatch):
        x, y = drawn(50, 4, 0), drawn(40, 4, 1)
        whole = kernel_distance(x, y)
        monkeypatch.setattr("pipelines.evaluation.metrics.kernel.BLOCK", 7)
        assert kernel_distance(x, y) == pytest.approx(whole, rel=1e-12)

    def test_subsets_scatter_about_the_whole(self):
        x, y = drawn(300, 4, 0), drawn(200, 4, 1, shift=0.3)
        found = kernel_distance_by_subsets(x, y, subsets=50, size=60, seed=3)
        assert found == kernel_distance_by_subsets(x, y, subsets=50, size=60, seed=3)
        assert found.sd > 0
        assert abs(found.mean - kernel_distance(x, y)) < 3 * found.sd / math.sqrt(50)

    @pytest.mark.parametrize("size", [40, 1, 1000])
    def test_subsets_that_are_no_subsets_are_refused(self, size):
        with pytest.raises(ValueError, match=f"subsets of {size} images out of 40; expected"):
            kernel_distance_by_subsets(drawn(40, 4, 0), drawn(60, 4, 1), size=size)


class TestPrecisionRecall:
    def test_on_a_line(self):
        """Balls to the nearest neighbour: real ones cover [-1, 2] and [4, 22], drawn ones [0.2, 0.8], [0.6, 15.5]."""
        real = torch.tensor([[0.0], [1.0], [10.0], [16.0]])
        fake = torch.tensor([[0.4], [0.6], [9.0], [2.5]])
        assert precision_recall(real, fake, k=1) == (3 / 4, 2 / 4)

    def test_against_brute_force(self, monkeypatch):
        monkeypatch.setattr("pipelines.evaluation.metrics.manifold.BLOCK", 9)
        real, fake = drawn(60, 5, 0), drawn(50, 5, 1, spread=0.8, shift=0.4)

        def covered(centres, points, k):
            radii = torch.stack([(centres - c).norm(dim=1).sort().values[k] for c in centres])
            return torch.stack([((centres - p).norm(dim=1) <= radii).any() for p in points]).double().mean().item()

        for k in (1, 3, 5):
            found = precision_recall(real, fake, k)
            assert found == (covered(real, fake, k), covered(fake, real, k))
            assert 0 < found.precision < 1

    def test_the_same_and_the_far(self):
        x = drawn(30, 4, 0)
        assert precision_recall(x, x) == (1, 1)
        assert precision_recall(x, x + 100) == (0, 0)
        assert precision_recall(x, x[:1].expand(10, -1)) == (1, pytest.approx(1 / 30))

    def test_too_few_neighbours_are_refused(self):
        with pytest.raises(ValueError, match="N >= 4"):
            Manifold.of(drawn(3, 4, 0))
        with pytest.raises(ValueError, match="k is 0"):
            Manifold.of(drawn(3, 4, 0), k=0)


class Projection(nn.Module):
    """Bytes B 3 H W, as torchmetrics hands them on -> B 8."""

    num_features = 8

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3 * 16 * 16, 8) / 16, requires_grad=False)

    def forward(self, images):
        return torch.tanh((images.float() / 127.5 - 1).flatten(1) @ self.weight)


@pytest.mark.filterwarnings("ignore:Metric `Kernel:UserWarning")
class TestTorchmetrics:
    @pytest.fixture
    def pictures(self):
        real = torch.randint(0, 256, (150, 3, 16, 16), dtype=torch.uint8)
        fake = (torch.randint(0, 256, (120, 3, 16, 16)) * 0.8 + 20).to(torch.uint8)
        return real, fake

    def test_frechet_distance(self, pictures):
        network = Projection()
        theirs = pytest.importorskip("torchmetrics.image.fid").FrechetInceptionDistance(feature=network)
        for images, real in zip(pictures, (True, False), strict=True):
            for batch in images.split(32):
                theirs.update(batch, real=real)
        ours = frechet_distance(*(Moments.of(network(batch) for batch in images.split(50)) for images in pictures))
        assert ours > 0.01
        assert ours == pytest.approx(theirs.compute().item(), rel=1e-4)

    def test_kernel_distance(self, pictures):
        network = Projection()
        metric = pytest.importorskip("torchmetrics.image.kid").KernelInceptionDistance
        theirs = metric(feature=network, subsets=20, subset_size=50)
        for images, real in zip(pictures, (True, False), strict=True):
            theirs.update(images, real=real)
        torch.manual_seed(5)  # it draws its subsets from the global generator, real ones first
        mean, sd = (value.item() for value in theirs.compute())
        ours = kernel_distance_by_subsets(*map(network, pictures), subsets=20, size=50, seed=5)
        assert ours.mean > 0.001
        assert ours == (pytest.approx(mean, rel=1e-4), pytest.approx(sd, rel=1e-4))
