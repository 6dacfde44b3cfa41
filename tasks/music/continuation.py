"""Continues a recording: codec tokens of the prompt, the language model's tokens after them, and the audio of both.

The result holds the prompt as the codec renders it, with as many codebooks as the language model speaks, so that the
seam between prompt and continuation is the language model's alone. Source: X-Codec, arXiv 2408.17175, section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from xcodec_lm.codec.audio import load_audio, save_audio
from xcodec_lm.codec.runtime.progress import Progress, say
from xcodec_lm.codec.tokens import AudioTokenizer, AudioTokens, TokenSpec, stack_codes
from xcodec_lm.configs.errors import TokenError, UsageError, XcodecLMError
from xcodec_lm.lm.engine import generate
from xcodec_lm.lm.gpt import GPT, read_model_config
from xcodec_lm.lm.layouts import Layout, layout_from
from xcodec_lm.lm.sampling import Sampling


@dataclass(frozen=True)
class Continuation:
    """Prompts and what was made after them.

    Attributes:
        tokens: codes of prompt and continuation, with the codebooks that the language model speaks.
        wav: (B, 1, N) audio of both.
        sample_rate: of `wav`, in Hz.
        prompt_frames: frames of `tokens` that are the prompt.
    """

    tokens: AudioTokens
    wav: Tensor
    sample_rate: int
    prompt_frames: int

    @property
    def prompt_samples(self) -> int:
        """Samples of `wav` that are the prompt."""
        return round(self.prompt_frames / self.tokens.spec.frame_rate * self.sample_rate)


class MusicModel:
    """A language model with its codec; `load_music` makes one.

    Args:
        model: the language model, in eval mode.
        layout: what its ids mean.
        codec: anything with the tokenizer protocol.
        spec: of the tokens that the language model was trained on.

    Raises:
        TokenError: the codec is not the one that made those tokens.
    """

    def __init__(self, model: GPT, layout: Layout, codec: AudioTokenizer, spec: TokenSpec):
        codec.spec.check_same_codec(spec, "the language model's training data")
        self.model, self.layout, self.codec, self.spec = model, layout, codec, spec

    def frames(self, seconds: float) -> int:
        """Whole frames that come nearest to so many seconds, at least one.

        Raises:
            UsageError: `seconds` is not above 0.
        """
        if not 0 < seconds < float("inf"):
            raise UsageError(f"seconds must be above 0, got {seconds}")
        return max(1, round(seconds * self.spec.frame_rate))

    def continue_(
        self,
        prompt: Tensor | AudioTokens,
        seconds: float,
        seed: int = 0,
        temperature: float = 1.0,
        top_k: int = 0,
        top_p: float = 1.0,
        *,
        sample_rate: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Continuation:
        """Continues prompts.

        Args:
            prompt: wav (B, 1, N) in [-1, 1] at the codec's rate, or tokens of this codec; all rows equally long. A
                last frame that is not full is left out: its silence would be taken for an ending.
            seconds: how much to add, above 0; rounded to whole frames.
            seed: the same seed gives the same continuation.
            temperature: of the sampling; 0 takes the most likely id.
            top_k: keep the k most likely ids; 0 keeps all.
            top_p: keep the most likely ids up to this probability.
            sample_rate: of `prompt`, if it is to be checked.
            progress: called with frames done and frames in all.

        Raises:
            AudioError: the wav does not fit the codec.
            TokenError: the tokens are another codec's, have too few codebooks, or rows of several lengths.
            UsageError: `seconds` or a sampling argument is out of range.
        """
        sampling, frames = Sampling(temperature, top_k, top_p), self.frames(seconds)
        codes = self._prompt_codes(prompt, sample_rate)  # (B, n_q, T)
        ids = generate(self.model, self.layout, self.layout.pack(codes), frames, sampling, seed, progress)
        new = self.layout.unpack(ids).to(codes.device)  # (B, n_q, frames)
        whole = torch.cat([codes, new], dim=2)
        tokens = stack_codes(list(whole), self.codec.spec.take(self.layout.n_q))
        with torch.inference_mode():
            wav, _ = self.codec.decode(tokens)
        return Continuation(tokens, wav, self.codec.spec.output_sample_rate, codes.shape[2])

    def _prompt_codes(self, prompt: Tensor | AudioTokens, sample_rate: int | None) -> Tensor:
        n_q, hop = self.layout.n_q, self.codec.spec.hop_samples
        if isinstance(prompt, AudioTokens):
            self.codec.spec.check_same_codec(prompt.spec, "the prompt")
            if prompt.spec.n_q < n_q:
                raise TokenError(f"the prompt has {prompt.spec.n_q} codebooks, the language model needs {n_q}")
            if int(prompt.lengths.min()) != int(prompt.lengths.max()):
                raise TokenError(f"prompts must be equally long, got {prompt.lengths.tolist()} frames", "crop them")
            tokens = prompt.take(n_q)
            if prompt.samples is not None and bool((prompt.samples % hop).any()) and int(prompt.lengths.min()) > 1:
                tokens = tokens.crop(0, int(prompt.lengths.min()) - 1)
            return tokens.codes[:, :, : int(tokens.lengths.min())]
        if isinstance(prompt, Tensor) and prompt.dim() == 3 and prompt.shape[2] > hop:
            prompt = prompt[:, :, : prompt.shape[2] // hop * hop]
        device = getattr(self.codec, "device", None)
        with torch.inference_mode():
            tokens = self.codec.encode(
                prompt if device is None else prompt.to(device), n_q=n_q, sample_rate=sample_rate
            )
        return tokens.codes.clone()


def load_music(
    folder: str | Path, codec: AudioTokenizer | str | Path | None = None, device: torch.device | str = "cpu"
) -> MusicModel:
    """A trained music model with its codec.

    Args:
        folder: a run folder, or the model folder in it.
        codec: the codec, or its folder or name; without it, the one that the model's config.json names.
        device: where both go.

    Raises:
        XcodecLMError: no model there, or no codec to be found.
        TokenError: the codec is not the one whose tokens the model speaks.
    """
    model_folder = find_model(folder)
    header = read_model_config(model_folder)
    facts = header.get("codec")
    if not isinstance(facts, dict) or "spec" not in facts:
        raise XcodecLMError(
            f"{model_folder / 'config.json'} names no codec", "export the model with the trainer of music train"
        )
    spec = TokenSpec.from_dict(facts["spec"])
    model = GPT.from_pretrained(model_folder, device)
    layout = layout_from(model.config.layout, spec)
    if model.vocab_size != layout.vocabulary.size:
        raise XcodecLMError(
            f"{model_folder} has {model.vocab_size} ids, but its layout of the codec's tokens {layout.vocabulary.size}",
            "its config.json was changed; export the model again",
        )
    if codec is None:
        codec = _named_codec(model_folder, facts.get("path"))
    if isinstance(codec, (str, Path)):
        from xcodec_lm.codec import load_codec

        codec = load_codec(codec, device=device)
    return MusicModel(model, layout, codec, spec)


def find_model(folder: str | Path) -> Path:
    """The model folder of a run folder or model folder.

    Raises:
        XcodecLMError: there is none.
    """
    folder = Path(folder)
    for candidate in (folder / "model", folder):
        if (candidate / "config.json").is_file():
            return candidate
    if (folder / "config.yaml").is_file():
        raise XcodecLMError(
            f"{folder} has no model/ yet: its training has not finished", "give the music train command again"
        )
    raise XcodecLMError(f"{folder} holds no music model", "give a run folder of music train, or its model/")


def continue_file(
    prompt: str | Path,
    run: str | Path,
    seconds: float,
    out: str | Path,
    seed: int = 0,
    *,
    codec: str | Path | None = None,
    device: torch.device | str = "cpu",
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    prompt_s: float | None = None,
) -> Continuation:
    """Continues a recording and writes prompt and continuation as one file.

    Args:
        prompt: a recording of any rate and channel count; what is converted is said.
        run: run folder or model folder of the language model.
        seconds: how much to add.
        out: the file to write.
        seed: of the sampling.
        codec: folder or name of the codec, where the model's own note of it does not lead there.
        device: where the models go.
        temperature: see `MusicModel.continue_`.
        top_k: see `MusicModel.continue_`.
        top_p: see `MusicModel.continue_`.
        prompt_s: use the first so many seconds of the recording; None uses all of it.

    Raises:
        XcodecLMError: a file, folder or value that does not fit; nothing is written then.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise XcodecLMError(f"cannot write {out}: {out.parent} is no folder", "make the folder first")
    music = load_music(run, codec, device)
    audio = load_audio(prompt, music.codec.spec.sample_rate, duration_s=prompt_s)
    for conversion in audio.conversions:
        say(f"{prompt}: {conversion}")
    with Progress("music continue", music.frames(seconds)) as shown:
        result = music.continue_(
            audio.wav[None],
            seconds,
            seed,
            temperature,
            top_k,
            top_p,
            sample_rate=audio.sample_rate,
            progress=lambda done, _: shown.update(done),
        )
    clipped = save_audio(out, result.wav[0], result.sample_rate)
    if clipped:
        say(f"{out}: {clipped} samples beyond full scale were clipped")
    return replace(result, wav=result.wav.cpu())


def _named_codec(model_folder: Path, path: str | None) -> str:
    """The codec that a model's config.json names: a folder relative to the run, or a name."""
    if path is None:
        raise XcodecLMError(
            f"{model_folder / 'config.json'} does not say where the codec is: its tokens were stored without a path",
            "give the codec with --codec",
        )
    local = (model_folder.resolve().parent / path).resolve()
    if local.exists():
        return str(local)
    if path.startswith(("..", "/")):
        raise XcodecLMError(
            f"the codec of {model_folder} is not at {local}, where its config.json says", "give the codec with --codec"
        )
    return path
