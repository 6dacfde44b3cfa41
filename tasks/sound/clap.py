"""CLAP: sounds and captions as vectors of one space, by transformers' `ClapModel`.

A clip is cut into windows of the model's length (10 s for the published ones), each is embedded, and the vector is
their mean. Nothing is drawn at random: the same clip has the same vector in every call, whatever stands beside it.

Source: Wu et al. 2023, "Large-scale contrastive language-audio pretraining", arXiv 2211.06687.
"""

from __future__ import annotations

import hashlib
import json
import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import AutoTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel

from xcodec_lm.codec.fingerprints import hash_tensors
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.semantic import quiet_transformers
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.eval.judge_audio import check_clips, is_silent
from xcodec_lm.tasks.eval.plugins import TextAudioEmbedder

PRETRAINED = Path(__file__).parents[1] / "pretrained"
"""Models that ship with the package, one folder each."""
PACKAGE_PREFIX = "laion-clap:"
"""Before the path of a LAION file: load it with the `laion-clap` package."""
WINDOWS_AT_ONCE = 8
NOT_LEARNT = ("position_ids", "token_type_ids", "relative_position_index", "num_batches_tracked")
"""Ends of the names of buffers that every model of the same sizes has alike."""


class Embedder(ABC):
    """What both back ends share: guards, tokens, windows and their mean.

    Args:
        tokenizer: of transformers.
        longest: tokens of a caption, with the special ones; what follows is cut.
        name: see `TextAudioEmbedder`.
        ancestry: see `TextAudioEmbedder`.
        dim: size of an embedding.
        sample_rate: in Hz.
        window: samples that are embedded at once.
        known_words: those of the training captions, sorted; empty where they are not known.
    """

    def __init__(
        self, tokenizer: Any, longest: int, name: str, ancestry: dict[str, Any], dim: int, sample_rate: int,
        window: int, known_words: Sequence[str] = (),
    ):  # fmt: skip
        self.tokenizer, self.longest = tokenizer, longest
        self.name, self.ancestry, self.dim = name, ancestry, dim
        self.sample_rate, self.window = sample_rate, window
        self.known_words = frozenset(known_words)

    @torch.no_grad()  # not inference_mode: what comes out goes into the training of others
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """See `TextAudioEmbedder`. Captions that are cut, or of words never learnt, are named in a note.

        Raises:
            UsageError: a caption is empty, or not a text.
        """
        known: dict[str, Tensor] = {}
        for text in check_captions(texts):
            if text not in known:
                known[text] = F.normalize(self.text_vector(self.token_ids(text)).float(), dim=-1).cpu()
        return torch.stack([known[text] for text in texts]) if known else torch.zeros(0, self.dim)

    @torch.no_grad()  # not inference_mode: what comes out goes into the training of others
    def embed_audio(self, wavs: Sequence[np.ndarray]) -> Tensor:
        """See `TextAudioEmbedder`. Any length from one sample on; silence has a vector, too, and is named in a note.

        Raises:
            AudioError: a clip is empty, not one-dimensional, not finite, or not on the scale of [-1, 1].
        """
        rows = []
        for index, wav in enumerate(check_clips(wavs)):
            if is_silent(wav):
                say(f"note: clip {index} is silent; its CLAP embedding says nothing")
            windows = split_windows(wav, self.window)
            parts = [self.audio_vectors(windows[i : i + WINDOWS_AT_ONCE]).float()
                     for i in range(0, len(windows), WINDOWS_AT_ONCE)]  # fmt: skip
            rows.append(F.normalize(F.normalize(torch.cat(parts), dim=-1).mean(dim=0), dim=-1).cpu())
        return torch.stack(rows) if rows else torch.zeros(0, self.dim)

    def token_ids(self, text: str) -> Tensor:
        """(1, S) ids of a caption; special tokens that are written out in it are not taken for such."""
        with quiet_transformers():
            whole = self.tokenizer(text, split_special_tokens=True).input_ids
            ids = whole
            if len(whole) > self.longest:
                ids = self.tokenizer(
                    text, split_special_tokens=True, truncation=True, max_length=self.longest
                ).input_ids
                say(f"note: {_shown(text)} has {len(whole)} tokens; {self.name} reads the first {self.longest}")
        if self.tokenizer.unk_token_id in ids:
            say(f"note: {self.name} cannot spell all of {_shown(text)}")
        words = caption_words(text)
        if self.known_words and words and not self.known_words & set(words):
            say(f"note: no word of {_shown(text)} was among the captions that {self.name} was trained on")
        return torch.tensor([ids])

    @abstractmethod
    def text_vector(self, ids: Tensor) -> Tensor:
        """(dim,) of the ids (1, S) of one caption."""

    @abstractmethod
    def audio_vectors(self, windows: Sequence[Tensor]) -> Tensor:
        """(W, dim) of windows (N,), N at most `window`."""


class ClapEmbedder(Embedder):
    """transformers' `ClapModel` with its tokenizer and the settings of its spectrogram.

    Args:
        model: in eval mode.
        tokenizer: of transformers.
        extractor: whose settings and filters are used; the spectrogram is computed here.
        name: shown in reports.
        ancestry: what it was trained on.
        known_words: see `Embedder`.
    """

    def __init__(
        self, model: ClapModel, tokenizer: Any, extractor: ClapFeatureExtractor, name: str = "clap",
        ancestry: dict[str, Any] | None = None, known_words: Sequence[str] = (),
    ):  # fmt: skip
        self.model, self.extractor = model, extractor
        self.fused = bool(model.config.audio_config.enable_fusion)
        text = model.config.text_config
        longest = min(int(tokenizer.model_max_length), text.max_position_embeddings - text.pad_token_id - 1)
        super().__init__(
            tokenizer, longest, name, ancestry or {}, model.config.projection_dim,
            extractor.sampling_rate, extractor.nb_max_samples, known_words,
        )  # fmt: skip

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over weights, vocabulary and spectrogram; a file and a folder made from it have the same."""
        weights = {name: value.detach().cpu().float() for name, value in self.model.state_dict().items()
                   if not name.endswith(NOT_LEARNT)}  # fmt: skip
        vocabulary = json.dumps(sorted(self.tokenizer.get_vocab().items()))
        settings = {
            "sizes": sizes_of(self.model.config),
            "vocabulary": hashlib.sha256(vocabulary.encode()).hexdigest(),
            "longest": self.longest,
            "spectrogram": spectrogram_settings(self.extractor),
        }
        return hash_tensors(sorted(weights.items()), settings)

    def text_vector(self, ids: Tensor) -> Tensor:
        """See `Embedder`."""
        ids = ids.to(self.model.device)
        return vectors_of(self.model.get_text_features(input_ids=ids, attention_mask=torch.ones_like(ids)))[0]

    def audio_vectors(self, windows: Sequence[Tensor]) -> Tensor:
        """See `Embedder`."""
        wavs = torch.stack([fill_window(wav, self.window, self.extractor.padding) for wav in windows])
        spectra = log_mel(wavs.to(self.model.device), self.extractor, self.fused).to(self.model.dtype)
        if not self.fused:
            return vectors_of(self.model.get_audio_features(input_features=spectra))
        # A model with feature fusion takes four views of a long clip; of a window they are all the same.
        not_longer = torch.zeros(len(spectra), 1, dtype=torch.bool, device=spectra.device)
        spectra = spectra.expand(-1, 4, -1, -1)
        return vectors_of(self.model.get_audio_features(input_features=spectra, is_longer=not_longer))


def load_clap(source: str | Path, device: str | torch.device = "cpu") -> TextAudioEmbedder:
    """A CLAP model from local files; nothing is ever downloaded.

    Args:
        source: the shipped `clap-tiny`; a run of `clap train`; a folder in transformers' layout, with tokenizer and
            preprocessor_config.json; or one of LAION's `.pt` files with RoBERTa's vocabulary beside it. With
            `laion-clap:` before it a `.pt` file is loaded by the `laion-clap` package instead.
        device: where it computes.

    Raises:
        XcodecLMError: no model is there, files are missing (the message names them), or weights do not fit.
    """
    from xcodec_lm.tasks.sound.clap_laion import load_laion_package
    from xcodec_lm.tasks.sound.clap_laion_files import load_laion_file

    if str(source).startswith(PACKAGE_PREFIX):
        return load_laion_package(Path(str(source).removeprefix(PACKAGE_PREFIX)), device)
    path = Path(source)
    if path.is_file():
        return load_laion_file(path, device)
    for folder in (path / "model", path, PRETRAINED / str(source)):
        if (folder / "config.json").is_file():
            return load_clap_folder(folder, device)
    if (path / "config.yaml").is_file():
        raise XcodecLMError(f"{path} has no model/ yet: its training has not finished", "give the train command again")
    shipped = [folder.name for folder in PRETRAINED.glob("clap-*") if folder.is_dir()]
    raise XcodecLMError(
        f"{source}: no CLAP model is there",
        "give a run of clap train, a folder in transformers' layout, one of LAION's .pt files"
        + (f", or the shipped {' or '.join(shipped)}" if shipped else "")
        + "; nothing is downloaded",
    )


def load_clap_folder(folder: Path, device: str | torch.device = "cpu") -> ClapEmbedder:
    """A CLAP model from a folder in transformers' layout, such as `clap train` writes.

    Raises:
        XcodecLMError: files are missing, it is another kind of model, or weights do not fit.
    """
    try:
        header = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise XcodecLMError(f"{folder / 'config.json'} cannot be read: {error}") from None
    kind = header.get("model_type") if isinstance(header, dict) else None
    if kind != "clap":
        raise XcodecLMError(f"{folder / 'config.json'} describes a {kind!r} model, not a 'clap'", "give another folder")
    if not (folder / "preprocessor_config.json").is_file():
        raise XcodecLMError(
            f"{folder}: preprocessor_config.json is missing", "it goes with the model; copy it into that folder"
        )
    need_tokenizer(folder)
    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
            extractor = ClapFeatureExtractor.from_pretrained(str(folder), local_files_only=True)
            model, found = ClapModel.from_pretrained(
                str(folder), local_files_only=True, dtype=torch.float32, output_loading_info=True
            )
    except Exception as error:  # what a broken folder raises depends on the file
        raise XcodecLMError(f"{folder} cannot be loaded: {error}", "copy the folder again from its source") from None
    missing = [name for name in found["missing_keys"] if not name.endswith(NOT_LEARNT)]
    wrong = sorted([*missing, *(str(key) for key in found["mismatched_keys"])])
    if wrong:
        raise XcodecLMError(f"{folder}: weights are missing or do not fit: {wrong[0]} ({len(wrong)} in all)")
    check_vocabulary(tokenizer, model.config, folder)
    own = header.get("xcodec_lm") or {}
    name = folder.parent.name if folder.name == "model" else folder.name
    return ClapEmbedder(
        model.eval().requires_grad_(False).to(device), tokenizer, extractor, own.get("name", name),
        own.get("ancestry", {"weights_from": name}), own.get("known_words", ()),
    )  # fmt: skip


def check_captions(texts: Sequence[str]) -> Sequence[str]:
    """Captions, as they are.

    Raises:
        UsageError: one is empty or not a text, or a single text was given instead of several.
    """
    if isinstance(texts, str):
        raise UsageError("captions must be a list of texts, got one text", "write [caption]")
    for index, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            what = "is empty" if isinstance(text, str) else f"is a {type(text).__name__}, not a text"
            raise UsageError(f"caption {index} {what}", "say in a few words what is to be heard")
    return texts


def caption_words(text: str) -> list[str]:
    """The words of a caption, in lower case."""
    return "".join(letter if letter.isalnum() else " " for letter in text.lower()).split()


def split_windows(wav: Tensor, size: int) -> list[Tensor]:
    """(N,) as windows of `size` samples: as few as cover all of it, evenly spaced; a short clip is its only window."""
    count = math.ceil(len(wav) / size)
    if count <= 1:
        return [wav]
    return [wav[int(start) : int(start) + size] for start in np.linspace(0, len(wav) - size, count).round()]


def fill_window(wav: Tensor, size: int, padding: str = "repeatpad") -> Tensor:
    """(N,) with N at most `size` as (size,).

    Args:
        wav: the clip.
        size: of the window.
        padding: `repeatpad`, as CLAP was trained: whole repetitions, then zeros; `repeat`: repeated to the end; `pad`:
            zeros.
    """
    if padding == "repeat":
        return wav.repeat(math.ceil(size / len(wav)))[:size]
    wav = wav.repeat(size // len(wav)) if padding == "repeatpad" else wav
    return F.pad(wav, (0, size - len(wav)))


def log_mel(wavs: Tensor, extractor: ClapFeatureExtractor, fused: bool = False, dtype: Any = torch.float64) -> Tensor:
    """The spectrogram that `ClapFeatureExtractor` computes, for many windows at once and on any device.

    Args:
        wavs: (B, N) windows of the extractor's length.
        extractor: whose settings are used.
        fused: a model with feature fusion has filters of another kind.
        dtype: that it is computed in; quiet bands beside loud ones need float64.

    Returns:
        (B, 1, T, bands) in dB.
    """
    bank = torch.from_numpy(extractor.mel_filters if fused else extractor.mel_filters_slaney).to(wavs.device, dtype)
    size, wavs = extractor.fft_window_size, wavs.to(dtype)
    window = torch.hann_window(size, dtype=dtype, device=wavs.device)
    spectra = torch.stft(wavs, size, extractor.hop_length, window=window, return_complex=True)  # (B, F, T)
    power = spectra.real.square() + spectra.imag.square()
    return (10 * (power.mT @ bank).clamp_min(1e-10).log10())[:, None]


def need_tokenizer(folder: Path, what: str = "the model's tokenizer") -> None:
    """Refuses a folder without the files of a tokenizer.

    Raises:
        XcodecLMError: names what is missing and where it goes.
    """
    if (folder / "tokenizer.json").is_file():
        return
    missing = [name for name in ("vocab.json", "merges.txt") if not (folder / name).is_file()]
    if missing:
        raise XcodecLMError(
            f"{folder} lacks {' and '.join(missing)} of {what} (tokenizer.json would do as well)",
            f"copy {'them' if len(missing) > 1 else 'it'} into {folder}; nothing is downloaded",
        )


def check_vocabulary(tokenizer: Any, config: ClapConfig, where: Path) -> None:
    """Refuses a tokenizer that writes ids which the model does not have.

    Raises:
        XcodecLMError: it has more tokens than the model.
    """
    if len(tokenizer) > config.text_config.vocab_size:
        raise XcodecLMError(
            f"{where}: the tokenizer has {len(tokenizer)} tokens, the model {config.text_config.vocab_size}",
            "use the tokenizer that the model was trained with",
        )


def sizes_of(config: ClapConfig) -> dict[str, Any]:
    """What decides the embeddings beside weights of given shapes."""
    audio, text = config.audio_config, config.text_config
    names = ("window_size", "num_mel_bins", "spec_size", "patch_size", "patch_stride", "enable_fusion", "hidden_act")
    sizes = {name: getattr(audio, name) for name in names}
    sizes |= {"depths": list(audio.depths), "audio_heads": list(audio.num_attention_heads)}
    sizes |= {"patch_stride": list(np.broadcast_to(audio.patch_stride, 2).tolist())}
    sizes |= {"text_heads": text.num_attention_heads, "text_eps": text.layer_norm_eps, "text_act": text.hidden_act}
    return sizes | {"pad": text.pad_token_id, "projection_act": config.projection_hidden_act}


def spectrogram_settings(extractor: ClapFeatureExtractor) -> dict[str, Any]:
    """The settings that decide the spectrogram of a window."""
    names = ("feature_size", "sampling_rate", "hop_length", "nb_max_samples", "fft_window_size", "frequency_min",
             "frequency_max", "padding")  # fmt: skip
    return {name: getattr(extractor, name) for name in names}


def vectors_of(features: Any) -> Tensor:
    """(B, dim) of what `get_text_features` and its like give: an output object, or a tensor before transformers 5."""
    return features if isinstance(features, Tensor) else features.pooler_output


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")
