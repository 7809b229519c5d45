"""What every network shares: the embedding that conditions its blocks, and what can be computed before a sampling loop.

Shapes: B batch, S noise levels, E embedding width, N text tokens, D text width.

A pass has three parts, each needed as rarely as its inputs change:

    condition = network.embed_condition(...)         once a call: pooled text, augmentation level, class
    text      = network.text_features(...)           once a call: the keys and values of every attention layer
    table     = network.modulations(levels, condition)   once for all steps: every block's scale and shift
    output    = network(x, [rows of the table], text)    every step: convolutions and attention
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from cascade.networks.attention import Attention, TextAttentionPool, TextFeatures, TextPool
from cascade.networks.blocks import ACTIVATIONS, Activation, Modulated, NoiseEmbedding


class DiffusionNetwork(nn.Module):
    """A network conditioned on a noise level and, as its config asks, on text, an augmentation level and a class.

    Subclasses register their blocks in the order they run: that order is the order of `modulations` and of the keys and
    values in `text_features`.
    """

    def __init__(
        self,
        *,
        frequencies: int,
        embedding_width: int,
        text_width: int | None,
        classes: int | None,
        augmented: bool,
        text_projection: int | None = None,
        pool_heads: int | None = None,
        activation: Activation = "silu",
    ) -> None:
        super().__init__()
        self.text_width, self.classes, self.augmented = text_width, classes, augmented
        self.activation = ACTIVATIONS[activation]
        self.noise_embedding = NoiseEmbedding(frequencies, embedding_width, activation)
        self.augmentation_embedding = NoiseEmbedding(frequencies, embedding_width, activation) if augmented else None
        # The row after the last class stands for "no class", which guidance needs.
        self.class_embedding = nn.Embedding(classes + 1, embedding_width) if classes is not None else None
        self.text_pool = self.text_projection = None
        if text_width is not None:
            self.text_pool = (
                TextPool(text_width, embedding_width)
                if pool_heads is None
                else TextAttentionPool(text_width, embedding_width, pool_heads)
            )
            self.text_projection = None if text_projection is None else nn.Linear(text_width, text_projection)

    def embed_condition(
        self, batch: int, tokens: Tensor | None, mask: Tensor | None, augmentation: Tensor | None, label: Tensor | None
    ) -> Tensor:
        """The part of the embedding that no noise level changes, B E.

        tokens B N D with mask B N; augmentation (B,) in [0, 1000]; label (B,) long, `classes` meaning none. Raises
        ValueError if one that the network was built for is missing, or one that it was not built for is given.
        """
        for name, given, wanted in (
            ("text", tokens, self.text_pool),
            ("an augmentation level", augmentation, self.augmentation_embedding),
            ("a class label", label, self.class_embedding),
        ):
            if (given is None) != (wanted is None):
                raise ValueError(f"this network {'needs' if wanted is not None else 'does not take'} {name}")
        width = self.noise_embedding.linear2.weight
        out = torch.zeros(batch, width.shape[0], device=width.device, dtype=width.dtype)
        if self.text_pool is not None and tokens is not None:
            out = out + self.text_pool(tokens.to(width.dtype), mask)
        if self.augmentation_embedding is not None:
            out = out + self.augmentation_embedding(augmentation)
        if self.class_embedding is not None:
            out = out + self.class_embedding(label)
        return out

    def text_features(self, tokens: Tensor, mask: Tensor) -> TextFeatures:
        """Keys and values of every attention layer; a mask that hides nothing is dropped, for a faster softmax."""
        tokens = tokens.to(self.noise_embedding.linear2.weight.dtype)
        if self.text_projection is not None:
            tokens = self.text_projection(tokens)
        layers = [module for module in self.modules() if isinstance(module, Attention)]
        hides = mask.is_meta or not bool(mask.all())  # a meta tensor has no value to ask for
        return TextFeatures(tuple(layer.text_keys_values(tokens) for layer in layers), mask if hides else None)

    def modulations(self, noise_input: Tensor, condition: Tensor) -> list[Tensor]:
        """Per block, in order, its numbers at every level for every image: noise_input (S,), condition B E -> S B k."""
        embedding = self.activation(self.noise_embedding(noise_input)[:, None] + condition)  # S B E
        return self._modulate(embedding)

    def paired_modulations(self, noise_input: Tensor, condition: Tensor) -> list[Tensor]:
        """The same with a level per image: noise_input (B,), condition B E -> B k each."""
        return self._modulate(self.activation(self.noise_embedding(noise_input) + condition))

    def _modulate(self, embedding: Tensor) -> list[Tensor]:
        return [module.modulation(embedding) for module in self.modules() if isinstance(module, Modulated)]

    def forward(self, x: Tensor, modulations: Sequence[Tensor], text: TextFeatures | None) -> Tensor:
        """x B C H W, modulations B k each -> B C' H W."""
        raise NotImplementedError
