"""Text as a condition: the embedding of a batch of prompts, and the frozen T5 that makes it (Imagen, section 2.1).

Shapes: B prompts, N tokens (the same for all prompts of one embedding), D width of the text encoder.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from conditioning.captions import Preprocessing, check_preprocessing, preprocess
from conditioning.silence import no_progress_bars
from conditioning.tokenizer import MODEL_FILE, PAD, Tokenizer

if TYPE_CHECKING:
    from transformers.models.t5.modeling_t5 import T5EncoderModel

Padding = Literal["trimmed", "kept"]


@dataclass(frozen=True, eq=False)
class TextEmbedding:
    """Embeddings of B prompts.

    tokens: (B, N, D), floating point. mask: (B, N), bool, True where a token belongs to the prompt.
    padding: "trimmed", what lies outside the mask is zero and means nothing; "kept", it is the encoder's output for
    padding tokens, and the model was trained to see it (DeepFloyd IF).

    Every row needs one unmasked position, since attention over none is NaN; that is checked where it costs no
    synchronisation, on the CPU.
    """

    tokens: Tensor
    mask: Tensor
    padding: Padding = "trimmed"

    def __post_init__(self) -> None:
        if self.padding not in ("trimmed", "kept"):
            raise ValueError(f'padding is {self.padding!r}; expected "trimmed" or "kept"')
        if self.tokens.ndim != 3 or not self.tokens.is_floating_point():
            raise ValueError(
                f"tokens have shape {tuple(self.tokens.shape)} and dtype {self.tokens.dtype}; "
                "expected (B, N, D), floating point"
            )
        if self.mask.shape != self.tokens.shape[:2] or self.mask.dtype != torch.bool:
            raise ValueError(
                f"mask has shape {tuple(self.mask.shape)} and dtype {self.mask.dtype}; expected "
                f"{tuple(self.tokens.shape[:2])}, bool, for tokens of shape {tuple(self.tokens.shape)}"
            )
        if self.mask.device != self.tokens.device:
            raise ValueError(f"mask is on {self.mask.device} and tokens on {self.tokens.device}; expected one device")
        if self.mask.device.type == "cpu" and not bool(self.mask.any(dim=1).all()):
            rows = (~self.mask.any(dim=1)).nonzero().flatten().tolist()
            raise ValueError(f"no unmasked token in rows {rows[:10]} of a mask of shape {tuple(self.mask.shape)}")
        if self.padding == "trimmed":
            object.__setattr__(self, "tokens", self.tokens.masked_fill(~self.mask[:, :, None], 0))

    def __len__(self) -> int:
        """B, the number of prompts."""
        return self.tokens.shape[0]

    @property
    def width(self) -> int:
        """D, the width of the text encoder."""
        return self.tokens.shape[2]

    @property
    def visible(self) -> Tensor:
        """What a network may attend to, (B, N), bool: the prompt's tokens, and its padding where that is kept."""
        return self.mask if self.padding == "trimmed" else torch.ones_like(self.mask)

    def __getitem__(self, rows: slice) -> TextEmbedding:
        """Some of the prompts; N stays."""
        if not isinstance(rows, slice):
            raise TypeError(f"a TextEmbedding is indexed by a slice of prompts, not by {rows!r}; write [{rows!r}:...]")
        return replace(self, tokens=self.tokens[rows], mask=self.mask[rows])

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TextEmbedding:
        """The same on another device, and its tokens in another floating-point type."""
        return replace(self, tokens=self.tokens.to(device=device, dtype=dtype), mask=self.mask.to(device=device))

    def repeat_interleave(self, n: int) -> TextEmbedding:
        """Each prompt n times, its copies next to each other: n images per prompt."""
        return replace(self, tokens=self.tokens.repeat_interleave(n, dim=0), mask=self.mask.repeat_interleave(n, dim=0))

    @staticmethod
    def cat(embeddings: Sequence[TextEmbedding]) -> TextEmbedding:
        """Join along the batch; shorter ones are padded with masked zeros to the longest N, unless padding is kept."""
        if not embeddings:
            raise ValueError("no embeddings to join")
        first = embeddings[0]
        for other in embeddings[1:]:
            ours = (first.width, first.tokens.dtype, first.tokens.device, first.padding)
            theirs = (other.width, other.tokens.dtype, other.tokens.device, other.padding)
            if ours != theirs:
                raise ValueError(f"embeddings differ in (width, dtype, device, padding): {ours} and {theirs}")
        lengths = [e.tokens.shape[1] for e in embeddings]
        length = max(lengths)
        if first.padding == "kept" and set(lengths) != {length}:
            raise ValueError(f"embeddings whose padding is kept must be of one length, got {lengths}")
        pad = torch.nn.functional.pad
        tokens = [pad(e.tokens, (0, 0, 0, length - e.tokens.shape[1])) for e in embeddings]
        masks = [pad(e.mask, (0, length - e.mask.shape[1])) for e in embeddings]
        return TextEmbedding(torch.cat(tokens), torch.cat(masks), first.padding)

    @staticmethod
    def null(
        batch: int,
        width: int,
        *,
        padding: Padding = "trimmed",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> TextEmbedding:
        """No text, for guidance: zeros (B, 1, D) whose one position is unmasked."""
        tokens = torch.zeros(batch, 1, width, device=device, dtype=dtype)
        return TextEmbedding(tokens, torch.ones(batch, 1, dtype=torch.bool, device=device), padding)


class TextEncoder:
    """A frozen T5 encoder with its tokenizer: prompts -> TextEmbedding.

    model: transformers' T5EncoderModel, put into eval mode, its parameters frozen. max_length: the most tokens a prompt
    may have, the end-of-sequence token included; what is beyond is cut with a warning. padding: see TextEmbedding;
    under "trimmed" a call pads to its longest prompt, under "kept" to max_length. preprocessing: of a prompt before it
    is tokenized, see `conditioning.captions`. null_prompt: the prompt that stands for no text, None for zeros.
    """

    def __init__(
        self,
        model: T5EncoderModel,
        tokenizer: Tokenizer,
        *,
        max_length: int = 128,
        padding: Padding = "trimmed",
        preprocessing: Preprocessing = "none",
        null_prompt: str | None = None,
    ) -> None:
        if max_length < 2:
            raise ValueError(f"max_length is {max_length}; expected at least 2, one token and the end of the sequence")
        if padding not in ("trimmed", "kept"):
            raise ValueError(f'padding is {padding!r}; expected "trimmed" or "kept"')
        if tokenizer.pieces > model.config.vocab_size:
            raise ValueError(
                f"the tokenizer has {tokenizer.pieces} pieces and the encoder embeds {model.config.vocab_size}: "
                "they do not belong together"
            )
        check_preprocessing(preprocessing)
        self.model = model.eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.padding: Padding = padding
        self.preprocessing: Preprocessing = preprocessing
        self.null_prompt = null_prompt
        self._null: TextEmbedding | None = None  # of the null prompt, once it was asked for

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path,
        tokenizer: str | Path | None = None,
        *,
        dtype: torch.dtype | None = None,
        revision: str | None = None,
        variant: str | None = None,
        max_length: int = 128,
        padding: Padding = "trimmed",
        preprocessing: Preprocessing = "none",
        null_prompt: str | None = None,
        local_files_only: bool = False,
        token: str | None = None,
        cache_dir: str | Path | None = None,
    ) -> TextEncoder:
        """Load any T5, T5-v1.1 or Flan-T5.

        model: a local folder or a hub id, in transformers' layout, or with that layout in subfolders `text_encoder/`
        and `tokenizer/` (what `save_pretrained` writes). tokenizer: the same, where the model's own folder has none.
        dtype: None keeps the type the weights are stored in. variant: of the weights' files, such as fp16. revision,
        token, cache_dir: for a hub id.

        Safetensors are preferred; a legacy `.bin` is read with torch's weights-only unpickler.
        Raises FileNotFoundError naming what is missing.
        """
        root = _folder(model, revision, local_files_only, token, cache_dir)
        words = root if tokenizer is None else _folder(tokenizer, None, local_files_only, token, cache_dir)
        holder = words / "tokenizer" if (words / "tokenizer" / MODEL_FILE).is_file() else words
        check_preprocessing(preprocessing)
        return cls(
            _load_t5(root, dtype, variant),
            Tokenizer.from_folder(holder),
            max_length=max_length,
            padding=padding,
            preprocessing=preprocessing,
            null_prompt=null_prompt,
        )

    def save_pretrained(self, folder: str | Path) -> None:
        """Write `text_encoder/` (safetensors) and `tokenizer/` into a folder; loading gives bit-equal embeddings.

        max_length and padding are not part of that layout: whoever names the encoder (cascade.json) keeps them.
        """
        folder = Path(folder)
        with no_progress_bars():
            self.model.save_pretrained(folder / "text_encoder")
        self.tokenizer.save(folder / "tokenizer")

    @property
    def width(self) -> int:
        """D, the width of the embeddings."""
        return self.model.config.d_model

    @property
    def device(self) -> torch.device:
        return self.model.shared.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.shared.weight.dtype

    def to(self, device: torch.device | str | None = None, dtype: torch.dtype | None = None) -> TextEncoder:
        """Move the encoder, in place."""
        torch.nn.Module.to(self.model, device=device, dtype=dtype)
        self._null = None
        return self

    def __call__(self, prompts: Sequence[str]) -> TextEmbedding:
        """Embed prompts; the embedding of one does not depend on the others.

        Raises TypeError or ValueError naming the prompt that is not a string or is empty.
        """
        if isinstance(prompts, str):
            raise TypeError(f"prompts is the string {prompts!r}; expected a list of strings: [{prompts!r}]")
        if not prompts:
            raise ValueError("prompts is an empty list; expected at least one prompt")
        for i, prompt in enumerate(prompts):
            if not isinstance(prompt, str):
                raise TypeError(f"prompt {i} is {prompt!r}, a {type(prompt).__name__}; expected a string")
            if not prompt.strip():
                raise ValueError(f"prompt {i} is {prompt!r}, which is empty; describe an image, or use `null`")
        return self._embed(prompts)

    @torch.no_grad()
    def _embed(self, prompts: Sequence[str]) -> TextEmbedding:
        rows = [self.tokenizer(preprocess(prompt, self.preprocessing), self.max_length) for prompt in prompts]
        length = self.max_length if self.padding == "kept" else max(len(row) for row in rows)
        ids = torch.tensor([row + [PAD] * (length - len(row)) for row in rows])
        mask = torch.tensor([[i < len(row) for i in range(length)] for row in rows])
        ids, mask = ids.to(self.device), mask.to(self.device)
        tokens = self.model(input_ids=ids, attention_mask=mask.long()).last_hidden_state  # B N D
        return TextEmbedding(tokens, mask, self.padding)

    def null(self, batch: int) -> TextEmbedding:
        """No text, for guidance, in this encoder's width, type and device."""
        if self.null_prompt is not None:
            self._null = self._null or self._embed([self.null_prompt])
            return self._null.repeat_interleave(batch)
        return TextEmbedding.null(batch, self.width, padding=self.padding, device=self.device, dtype=self.dtype)


def _load_t5(root: Path, dtype: torch.dtype | None, variant: str | None = None) -> T5EncoderModel:
    """The encoder in `root`, or in its subfolder text_encoder/."""
    from transformers.models.t5.modeling_t5 import T5EncoderModel

    folder = root / "text_encoder" if (root / "text_encoder").is_dir() else root
    if not (folder / "config.json").is_file():
        raise FileNotFoundError(f"no config.json in {folder}: expected a T5 in transformers' layout")
    safe = any(folder.glob("*.safetensors"))
    if not safe and not any(folder.glob("*.bin")):
        raise FileNotFoundError(f"no weights in {folder}: expected model.safetensors (or a legacy pytorch_model.bin)")
    with no_progress_bars():
        return T5EncoderModel.from_pretrained(
            folder,
            dtype="auto" if dtype is None else dtype,
            variant=variant,
            use_safetensors=safe,
            local_files_only=True,
        )


def _folder(
    model: str | Path, revision: str | None, local_files_only: bool, token: str | None, cache_dir: str | Path | None
) -> Path:
    """A local folder as it is; a hub id as the folder of its snapshot, fetched once."""
    path = Path(model)
    if path.is_dir():
        return path
    if isinstance(model, Path) or model.startswith((".", "~", "/")) or model.count("/") > 1:
        raise FileNotFoundError(f"no folder {str(model)!r}; expected a folder, or a hub id like 'google/t5-v1_1-small'")
    from huggingface_hub import snapshot_download

    def fetch(weights: str) -> Path:
        names = ("config.json", MODEL_FILE, "tokenizer_config.json", f"{weights}", f"{weights}.index.json")
        try:
            return Path(
                snapshot_download(
                    str(model),
                    revision=revision,
                    cache_dir=cache_dir,
                    token=token,
                    local_files_only=local_files_only,
                    allow_patterns=[prefix + name for name in names for prefix in ("", "text_encoder/", "tokenizer/")],
                    ignore_patterns=["*.fp16*"],
                )
            )
        except (OSError, ValueError) as error:
            why = str(error).partition("\n")[0]
            raise FileNotFoundError(
                f"{model!r} is no local folder, and the hub did not give it ({why}). Check the spelling; without "
                "network, pass a folder, or fetch the model into the cache beforehand"
            ) from error

    root = fetch("model*.safetensors")
    if not any(root.glob("*.safetensors")) and not any(root.glob("text_encoder/*.safetensors")):
        root = fetch("pytorch_model*.bin")
    return root
