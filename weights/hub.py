"""Where a cascade is: the embedded default, a local folder, or a repository on the hub."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from weights.shards import COMPONENTS, OPTIONAL, download_patterns, has_weights
from weights.store import WeightsError

EMBEDDED = Path(__file__).parent / "toybox"  # package data: the default cascade
EMBEDDED_DETECTOR = Path(__file__).parent / "toybox-detector"  # and the detector that judges its images
_SMALL = ["*.json", "*.model", "*.md", "*.txt"]  # all but the weights, and nothing that could hold code


def resolve(
    model: str | Path | None,
    *,
    revision: str | None = None,
    variant: str | None = None,
    cache_dir: str | Path | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    leave_out: Collection[str] = (),
    weights: bool = True,
) -> Path:
    """The local folder of a cascade, or of a pipeline in diffusers' layout.

    model: None, the embedded default; an existing folder; or a hub id such as "someone/cascade", whose JSON,
    safetensors, tokenizer and text files are fetched once and then found in the cache, with or without network. Of a
    pipeline in diffusers' layout, the weights of ``variant`` are fetched, legacy `.bin` files where there is nothing
    else, but not those of the components to ``leave_out``; without ``weights``, of nothing. The other arguments concern
    the hub only. Raises WeightsError saying what was looked for, where, and what to do.
    """
    if model is None:
        return EMBEDDED
    path = Path(model).expanduser()
    if path.is_dir():
        return path
    if path.exists():
        raise WeightsError(f"{str(model)!r} is a file; expected the folder of a cascade, which holds cascade.json")
    if isinstance(model, Path) or model.startswith((".", "/", "~")) or model.count("/") != 1:
        raise WeightsError(
            f"no folder {str(model)!r} (looked for {path.absolute()}); check the path. "
            "A hub id has the form 'owner/name'"
        )
    where = f"{model!r}{'' if revision is None else f' at revision {revision!r}'}"

    def fetch(patterns: list[str]) -> Path:
        return _fetch(model, where, patterns, revision, cache_dir, token, local_files_only)

    folder = fetch(_SMALL)
    if not weights:
        return folder
    if not (folder / "model_index.json").is_file():
        return fetch([*_SMALL, "*.safetensors"])
    for component, stems in COMPONENTS.items():
        if component in leave_out or not (folder / component).is_dir():
            continue
        for patterns in download_patterns(folder / component, stems, variant, optional=component in OPTIONAL):
            if has_weights(folder / component, stems, variant, optional=component in OPTIONAL):
                break
            fetch(patterns)
    return folder


def _fetch(
    model: str,
    where: str,
    patterns: list[str],
    revision: str | None,
    cache_dir: str | Path | None,
    token: str | None,
    local_files_only: bool,
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    local = f"If a local folder was meant: there is none at {Path(model).absolute()}."
    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                cache_dir=cache_dir,
                token=token,
                local_files_only=local_files_only,
                allow_patterns=patterns,
            )
        )
    except HFValidationError as error:
        raise WeightsError(f"{model!r} is neither a folder nor a valid hub id ({error}). {local}") from error
    except GatedRepoError as error:
        raise WeightsError(
            f"{model!r} is gated: accept its terms at https://huggingface.co/{model}, then pass `token` or log in with "
            "`hf auth login`"
        ) from error
    except RepositoryNotFoundError as error:
        raise WeightsError(
            f"the hub has no {model!r}, or it is private: check the spelling, or pass `token`. {local}"
        ) from error
    except RevisionNotFoundError as error:
        raise WeightsError(f"{model!r} has no revision {revision!r}: check the branch, tag or commit") from error
    except LocalEntryNotFoundError as error:
        why = "local_files_only is set" if local_files_only else "the hub could not be reached"
        raise WeightsError(
            f"{where} is not in the cache, and {why}: connect once to fetch it, or copy its folder here and pass "
            f"that path. {local}"
        ) from error
    except OSError as error:  # what is left of network and disk errors
        raise WeightsError(f"{where} could not be fetched ({error}): try again. {local}") from error
