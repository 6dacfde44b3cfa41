"""Continues a recording: codec tokens of the prompt, the language model's tokens after them, and the audio of both.

The result holds the prompt as the codec renders it, with as many codebooks as the language model speaks, so that the
seam between prompt and continuation is the language model's alone. Source: X-Codec, arXiv 2408.17175, section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from xcodec_lm import configs
from xcodec_lm.codec.audio import Audio, load_audio, save_audio
from xcodec_lm.codec.runtime.progress import Progress, say
from xcodec_lm.codec.tokens import AudioTokenizer, AudioTokens, TokenSpec, stack_codes
from xcodec_lm.configs.errors import TokenError, UsageError, XcodecLMError
from xcodec_lm.configs.lm import LMTrainConfig
from xcodec_lm.lm.engine import Engine, continue_codes
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import Layout
from xcodec_lm.lm.load import find_model, load_lm, named_codec
from xcodec_lm.lm.precision import Precision, in_precision
from xcodec_lm.lm.requests import Request
from xcodec_lm.lm.sampling import Sampling

PRETRAINED = Path(__file__).parents[1] / "pretrained"
"""Shipped language models."""


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
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        samples: int = 1,
        *,
        sample_rate: int | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Continuation:
        """Continues prompts.

        Args:
            prompt: wav (B, 1, N) in [-1, 1] at the codec's rate, or tokens of this codec; all rows equally long. A
                last frame that is not full is left out: its silence would be taken for an ending.
            seconds: how much to add, above 0; rounded to whole frames. Beyond the model's block the last half of it is
                kept and read again.
            seed: the same seed gives the same continuation.
            sampling: how codes are drawn.
            samples: continuations of each prompt; those of one prompt stand beside each other.
            sample_rate: of `prompt`, if it is to be checked.
            progress: called with frames done and frames in all.

        Raises:
            AudioError: the wav does not fit the codec.
            TokenError: the tokens are another codec's, have too few codebooks, or rows of several lengths.
            UsageError: `seconds` or `samples` is out of range.
        """
        if samples < 1:
            raise UsageError(f"samples must be at least 1, got {samples}")
        frames = self.frames(seconds)
        codes = self._prompt_codes(prompt, sample_rate)  # (B, n_q, T)
        codes = codes.repeat_interleave(samples, dim=0)
        new = continue_codes(self.model, self.layout, codes, frames, sampling, seed, progress).to(codes.device)
        whole = torch.cat([codes, new], dim=2)
        tokens = stack_codes(list(whole), self.codec.spec.take(self.n_q))
        with torch.inference_mode():
            wav, _ = self.codec.decode(tokens)
        return Continuation(tokens, wav, self.codec.spec.output_sample_rate, codes.shape[2])

    def stream(
        self,
        prompt: Tensor | AudioTokens,
        seconds: float,
        seed: int = 0,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        *,
        sample_rate: int | None = None,
    ) -> Iterator[Tensor]:
        """Continues one prompt and gives its audio as it is made, through the codec's streaming decoder.

        Args:
            prompt: as for `continue_`, one row.
            seconds: see `continue_`.
            seed: see `continue_`.
            sampling: see `continue_`.
            sample_rate: see `continue_`.

        Yields:
            (n,) stretches of audio at the codec's output rate, which together are prompt and continuation. A codec
            whose decoder looks ahead gives each frame that many frames later; together they may differ from
            `continue_` by what the streaming decoder declares.

        Raises:
            As `continue_`.
        """
        codes, frames = self._prompt_codes(prompt, sample_rate), self.frames(seconds)
        if len(codes) != 1:
            raise UsageError(f"one prompt can be streamed at a time, got {len(codes)}")
        decoder = self.codec.stream_decoder(1)
        with torch.inference_mode():
            first = decoder.push(codes)
        if first.shape[-1]:
            yield first[0, 0]
        for event in Engine(self.model, self.layout).run([Request(frames, codes[0], sampling, seed)]):
            if event.made is not None and event.made.error is not None:
                raise event.made.error
            if event.codes is not None:
                with torch.inference_mode():
                    piece = decoder.push(event.codes[None].to(codes.device))
                if piece.shape[-1]:
                    yield piece[0, 0]
        with torch.inference_mode():
            rest = decoder.flush()
        if rest.shape[-1]:
            yield rest[0, 0]

    @property
    def n_q(self) -> int:
        """Codebooks that the language model speaks."""
        return len(self.layout.books)

    def _prompt_codes(self, prompt: Tensor | AudioTokens, sample_rate: int | None) -> Tensor:
        n_q, hop = self.n_q, self.codec.spec.hop_samples
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
    folder: str | Path,
    codec: AudioTokenizer | str | Path | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> MusicModel:
    """A trained music model with its codec.

    Args:
        folder: a run folder, the model folder in it, or the name of a shipped model.
        codec: the codec, or its folder or name; without it, the one that the model's config.json names.
        device: where both go.
        precision: of the language model, see `lm.precision`; the codec stays in fp32.

    Raises:
        XcodecLMError: no model there, or no codec to be found.
        TokenError: the codec is not the one whose tokens the model speaks.
    """
    shipped = PRETRAINED / str(folder)
    model_folder = shipped if not Path(folder).exists() and shipped.is_dir() else find_model(folder)
    loaded = load_lm(model_folder, device)
    if codec is None:
        codec = named_codec(model_folder, loaded.facts.get("path"))
    if isinstance(codec, (str, Path)):
        from xcodec_lm.codec import load_codec

        codec = load_codec(codec, device=device)
    return MusicModel(in_precision(loaded.model, precision), loaded.layout, codec, loaded.spec)


def stores_of(run: str | Path) -> list[Path]:
    """The token stores that a run was trained on.

    Raises:
        XcodecLMError: it is no run folder, or a store is gone.
    """
    path = Path(run) / "config.yaml"
    if not path.is_file():
        raise XcodecLMError(f"{run} is no run folder, so it names no token store", "give the store with --tokens")
    stores = [Path(store) for store in configs.load(path, LMTrainConfig).data.tokens]
    for store in stores:
        if not (store / "store.json").is_file():
            raise XcodecLMError(
                f"{store}, which {run} was trained on, is no token store", "give the store with --tokens"
            )
    return stores


def read_prompt(music: MusicModel, path: str | Path, prompt_s: float | None = None) -> Audio:
    """A recording of any rate and channel count as the model's codec takes it; what is converted is said.

    Args:
        music: the model that is to continue it.
        path: an audio file.
        prompt_s: read the first so many seconds of it; None reads all.

    Raises:
        AudioError: it cannot be read.
    """
    audio = load_audio(path, music.codec.spec.sample_rate, duration_s=prompt_s)
    for conversion in audio.conversions:
        say(f"{path}: {conversion}")
    return audio


def continue_file(
    music: MusicModel,
    prompt: Audio,
    seconds: float,
    out: str | Path,
    seed: int = 0,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    samples: int = 1,
) -> Continuation:
    """Continues a recording and writes prompt and continuation as one file, or several.

    Args:
        music: the model.
        prompt: what `read_prompt` gives.
        seconds: how much to add.
        out: the file to write; with several samples `-1`, `-2`, ... goes before its ending.
        seed: of the sampling.
        sampling: how codes are drawn.
        samples: continuations to make.

    Raises:
        XcodecLMError: a folder or value that does not fit; nothing is written then.
    """
    out = Path(out)
    if not out.parent.is_dir():
        raise XcodecLMError(f"cannot write {out}: {out.parent} is no folder", "make the folder first")
    with Progress("music continue", _say_refills(music, prompt, seconds) * samples) as shown:
        result = music.continue_(
            prompt.wav[None],
            seconds,
            seed,
            sampling,
            samples,
            sample_rate=prompt.sample_rate,
            progress=lambda done, _: shown.update(done),
        )
    for path, wav in zip(sample_paths(out, samples), result.wav, strict=True):
        clipped = save_audio(path, wav, result.sample_rate)
        if clipped:
            say(f"{path}: {clipped} samples beyond full scale were clipped")
    return replace(result, wav=result.wav.cpu())


def sample_paths(out: Path, samples: int) -> list[Path]:
    """Where several continuations of one prompt go."""
    if samples == 1:
        return [out]
    return [out.with_stem(f"{out.stem}-{number}") for number in range(1, samples + 1)]


def stream_pcm(
    music: MusicModel,
    prompt: Audio,
    seconds: float,
    write: Callable[[bytes], object],
    seed: int = 0,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
) -> tuple[int, int]:
    """Continues a recording and writes the audio as it is made: 16-bit little-endian PCM, mono, without a header.

    Args:
        music: the model.
        prompt: what `read_prompt` gives.
        seconds: how much to add.
        write: takes the bytes, such as `sys.stdout.buffer.write`.
        seed: of the sampling.
        sampling: how codes are drawn.

    Returns:
        Samples written, and their rate in Hz.
    """
    _say_refills(music, prompt, seconds)
    written = 0
    for piece in music.stream(prompt.wav[None], seconds, seed, sampling, sample_rate=prompt.sample_rate):
        samples = (piece.clamp(-1, 1) * 32767).round().to(torch.int16).cpu().numpy()
        write(samples.astype("<i2").tobytes())
        written += len(samples)
    return written, music.codec.spec.output_sample_rate


def _say_refills(music: MusicModel, prompt: Audio, seconds: float) -> int:
    """The frames to be added; says when they and the prompt are longer than what the model sees at once."""
    frames, given = music.frames(seconds), prompt.wav.shape[-1] // music.codec.spec.hop_samples
    seen = music.layout.frames_in(music.model.config.block)
    if given + frames > seen:
        seen_s = float(seen / music.spec.frame_rate)
        say(
            f"prompt and continuation are longer than the {seen_s:.1f} s that the model sees at once: whenever those "
            "are full, their last half is kept and read again"
        )
    return frames
