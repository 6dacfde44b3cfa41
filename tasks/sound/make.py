"""Makes sounds: the CLAP vector of a caption, or of another sound, becomes codes, and those become audio.

Source: X-Codec, arXiv 2408.17175, section 4.3; guidance: arXiv 2207.12598.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xcodec_lm.codec.audio import load_audio, save_audio
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.runtime.progress import Progress, say
from xcodec_lm.codec.tokens import AudioTokenizer, AudioTokens, TokenSpec, stack_codes
from xcodec_lm.configs.errors import AudioError, UsageError, XcodecLMError
from xcodec_lm.lm.conditioning import ConditionedGPT
from xcodec_lm.lm.engine import Engine
from xcodec_lm.lm.layouts import Layout
from xcodec_lm.lm.load import find_model, load_lm, model_facts, named_codec
from xcodec_lm.lm.precision import Precision, in_precision
from xcodec_lm.lm.requests import Request
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.tasks.eval.judge_audio import is_silent
from xcodec_lm.tasks.sound.source import load_embedder
from xcodec_lm.tasks.sound.training import GUIDANCE

if TYPE_CHECKING:
    from xcodec_lm.tasks.sound.clap import TextAudioEmbedder

PRETRAINED = Path(__file__).parents[1] / "pretrained"
"""Shipped models."""
MOST_LANES = 32
"""Rows decoded at once; guidance takes two a sound."""


@dataclass(frozen=True)
class Sounds:
    """Sounds that were made.

    Attributes:
        tokens: codes of each, (1, n_q, T) with as many codebooks as the model speaks; T is 0 where it made nothing.
        wavs: (1, N) audio of each.
        sample_rate: of `wavs`, in Hz.
        conditions: which of the conditions each is of.
        refills: how often the context of each was full, so that its last half was read again behind the condition.
    """

    tokens: list[AudioTokens]
    wavs: list[Tensor]
    sample_rate: int
    conditions: list[int]
    refills: list[int]


class SoundModel:
    """A text-to-sound model with its codec and its CLAP; `load_sound` makes one.

    Args:
        model: in eval mode.
        layout: what its ids mean.
        codec: anything with the tokenizer protocol.
        spec: of the tokens that the model was trained on.
        clap: what embeds captions and sounds; None for a model of labels.
        labels: the classes of such a model, in the order of their numbers.

    Raises:
        TokenError: the codec is not the one that made those tokens.
    """

    def __init__(
        self, model: ConditionedGPT, layout: Layout, codec: AudioTokenizer, spec: TokenSpec,
        clap: TextAudioEmbedder | None = None, labels: Sequence[str] = (),
    ):  # fmt: skip
        codec.spec.check_same_codec(spec, "the sound model's training data")
        self.model, self.layout, self.codec, self.spec, self.clap = model, layout, codec, spec, clap
        self.labels = list(labels)

    @property
    def default_guidance(self) -> float:
        """The guidance that is used where none is asked for: none, where the model was not trained for it."""
        return GUIDANCE if self.model.condition.config.drop else 1.0

    @property
    def seen_s(self) -> float:
        """Seconds that the model sees at once."""
        return float(self.layout.frames_in(self.model.config.block) / self.spec.frame_rate)

    def frames(self, seconds: float) -> int:
        """Whole frames that come nearest to so many seconds, at least one.

        Raises:
            UsageError: `seconds` is not above 0.
        """
        if not 0 < seconds < float("inf"):
            raise UsageError(f"seconds must be above 0, got {seconds}")
        return max(1, round(seconds * self.spec.frame_rate))

    # ------------------------------------------------------------------ conditions

    def embed_captions(self, captions: Sequence[str]) -> Tensor:
        """(N, dim) vectors of captions, or (N,) classes of labels.

        Raises:
            UsageError: a caption is empty, or no label of the model.
        """
        for caption in captions:
            if not caption.strip():
                raise UsageError("the caption is empty", "say what is to be heard, such as 'rain on a roof'")
        if self.clap is not None:
            return self.clap.embed_texts([caption.strip() for caption in captions])
        for caption in captions:
            if caption not in self.labels:
                close = difflib.get_close_matches(caption, self.labels, n=1)
                meant = f"; did you mean {close[0]!r}?" if close else ""
                raise UsageError(
                    f"{caption!r} is no label of this model{meant}", f"labels: {', '.join(self.labels[:20])}"
                )
        return torch.tensor([self.labels.index(caption) for caption in captions])

    def embed_file(self, path: str | Path) -> Tensor:
        """(1, dim) the vector of a recording of any rate; what is converted is said.

        Raises:
            AudioError: it cannot be read, or is silence.
            UsageError: the model knows labels alone.
        """
        if self.clap is None:
            raise UsageError("this model knows labels alone, no sounds", f"labels: {', '.join(self.labels[:20])}")
        audio = load_audio(path, self.clap.sample_rate)
        for conversion in audio.conversions:
            say(f"{path}: {conversion}")
        if is_silent(audio.wav[0]):
            raise AudioError(
                f"{path} is silence: there is nothing that a sound could be like", "give another recording"
            )
        return self.clap.embed_audio([audio.wav[0].numpy()])

    # ------------------------------------------------------------------ making

    def make(
        self,
        conditions: Sequence[str] | Tensor,
        seconds: float,
        seed: int | Sequence[int] = 0,
        guidance: float | None = None,
        sampling: Sampling = Sampling(),  # noqa: B008 - frozen
        samples: int = 1,
        may_end: bool = False,
        progress: Callable[[int, int], None] | None = None,
    ) -> Sounds:
        """Makes sounds.

        Args:
            conditions: N captions, or what `embed_captions` and `embed_file` give.
            seconds: length of each, above 0; rounded to whole frames. Beyond the model's block the last half of it is
                kept and read again behind the condition.
            seed: the first sound of each condition uses it itself, the others seeds derived from it and their number;
                or N seeds, one for each condition.
            guidance: how much further to go from what the model makes of no condition: 1 is none, 0 ignores the
                condition; None takes `default_guidance`.
            sampling: how codes are drawn; its `cfg_scale` is replaced by `guidance`.
            samples: sounds of each condition; those of one stand beside each other.
            may_end: whether a sound may end earlier, where the model takes it to be over.
            progress: called with frames done and frames in all.

        Raises:
            UsageError: an empty caption, or a value out of range.
            TokenError: vectors that do not fit the model.
            ConfigError: guidance by a model that was not trained for it.
        """
        if samples < 1:
            raise UsageError(f"samples must be at least 1, got {samples}")
        frames = self.frames(seconds)
        sampling = replace(sampling, cfg_scale=self.default_guidance if guidance is None else guidance)
        values = conditions if isinstance(conditions, Tensor) else self.embed_captions(conditions)
        guided = sampling.cfg_scale != 1
        with torch.inference_mode():
            fronts = self.model.prefix_of(values)  # (N, P, D)
            negative = self.model.null_prefix() if guided else None
        seeds = [seed] * len(fronts) if isinstance(seed, int) else list(seed)
        if len(seeds) != len(fronts):
            raise UsageError(f"{len(seeds)} seeds for {len(fronts)} conditions", "give one seed, or one for each")
        requests = [
            Request(
                frames, None, sampling, own if number == 0 else derive_seed(own, "sample", number),
                may_end, prefix=front, negative=negative,
            )
            for front, own in zip(fronts, seeds, strict=True)
            for number in range(samples)
        ]  # fmt: skip
        lanes = min(MOST_LANES, len(requests) * (1 + guided))
        made = Engine(self.model, self.layout, lanes).decode(requests, progress)
        for one in made:
            if one.error is not None:
                raise one.error
        spec = self.codec.spec.take(len(self.layout.books))
        tokens = [stack_codes([one.codes], spec) for one in made]
        wavs = [self.decode(one) for one in tokens]
        whose = [index for index in range(len(fronts)) for _ in range(samples)]
        return Sounds(tokens, wavs, self.codec.spec.output_sample_rate, whose, [one.refills for one in made])

    def decode(self, tokens: AudioTokens) -> Tensor:
        """(1, N) audio; each sound by itself, so that it does not depend on the others."""
        if not tokens.codes.shape[2]:
            return torch.zeros(1, 0)
        device = getattr(self.codec, "device", None)
        with torch.inference_mode():
            wav, lengths = self.codec.decode(tokens if device is None else tokens.to(device))
        return wav[0, :, : int(lengths[0])].cpu()


def load_sound(
    folder: str | Path,
    codec: AudioTokenizer | str | Path | None = None,
    clap: TextAudioEmbedder | str | Path | None = None,
    device: torch.device | str = "cpu",
    precision: Precision = "fp32",
) -> SoundModel:
    """A trained text-to-sound model with its codec and its CLAP.

    Args:
        folder: a run folder, the model folder in it, or the name of a shipped model.
        codec: the codec, or its folder or name; without it, the one that the model's config.json names.
        clap: the CLAP, or its folder, file or name; likewise.
        device: where all go.
        precision: of the language model, see `lm.precision`; the others stay in fp32.

    Raises:
        XcodecLMError: no model there, no codec or CLAP to be found, or a CLAP other than that of the training.
        TokenError: the codec is not the one whose tokens the model speaks.
    """
    shipped = PRETRAINED / str(folder)
    place = shipped if not Path(folder).exists() and shipped.is_dir() else find_model(folder)
    facts = model_facts(place, ConditionedGPT.kind)
    loaded = load_lm(place, device, ConditionedGPT)
    assert isinstance(loaded.model, ConditionedGPT)
    labels = facts.get("labels") or []
    if not labels:
        clap = load_embedder(place, facts.get("embedder"), clap, str(device))
    if codec is None:
        codec = named_codec(place, loaded.facts.get("path"))
    if isinstance(codec, (str, Path)):
        from xcodec_lm.codec import load_codec

        codec = load_codec(codec, device=device)
    model = in_precision(loaded.model, precision)
    assert isinstance(model, ConditionedGPT) and not isinstance(clap, (str, Path))
    return SoundModel(model, loaded.layout, codec, loaded.spec, None if labels else clap, labels)


def make_files(
    sound: SoundModel,
    caption: str | None,
    audio: Path | None,
    seconds: float,
    out: Path,
    samples: int = 1,
    seed: int = 0,
    guidance: float | None = None,
    sampling: Sampling = Sampling(),  # noqa: B008 - frozen
    may_end: bool = False,
) -> list[tuple[Path, float]]:
    """Makes sounds of a caption, or like a recording, and writes them as files.

    Args:
        sound: the model.
        caption: what is to be heard; or None.
        audio: a recording that they are to be like; or None. Exactly one of the two is given.
        seconds: see `SoundModel.make`, as what follows but `out`.
        out: folder, made if needed; a file is named after its caption, several are numbered.
        samples: sounds to make.
        seed: of the draws.
        guidance: None for the model's usual one.
        sampling: how codes are drawn.
        may_end: whether a sound may end earlier.

    Returns:
        Files, and their seconds.

    Raises:
        XcodecLMError: a folder or value that does not fit; nothing is written then.
    """
    if (caption is None) == (audio is None):
        raise UsageError("give either a caption or --audio", "sound make 'rain on a roof' --run RUN -o FOLDER")
    values = sound.embed_file(audio) if caption is None and audio is not None else sound.embed_captions([caption or ""])
    if (asked := sound.frames(seconds)) > sound.layout.frames_in(sound.model.config.block):
        say(
            f"{seconds:g} s are longer than the {sound.seen_s:.1f} s that the model sees at once: whenever those are "
            "full, their last half is kept and read again behind the condition"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise XcodecLMError(f"cannot make the folder {out}: {error.strerror}", "choose another with -o") from None
    with Progress("sound make", asked * samples) as shown:
        made = sound.make(
            values, seconds, seed, guidance, sampling, samples, may_end, lambda done, _: shown.update(done)
        )
    stem = file_stem(caption if caption is not None else f"like {Path(str(audio)).stem}")
    written = []
    for number, wav in enumerate(made.wavs, start=1):
        if not wav.shape[-1]:
            say(f"sound {number} ended before it began; nothing is written for it")
            continue
        path = out / (f"{stem}.wav" if samples == 1 else f"{stem}-{number}.wav")
        if clipped := save_audio(path, wav, made.sample_rate):
            say(f"{path}: {clipped} samples beyond full scale were clipped")
        written.append((path, wav.shape[-1] / made.sample_rate))
    return written


def file_stem(caption: str) -> str:
    """The words of a caption as the name of a file, in whatever script; at most 60 characters and 180 bytes."""
    words = "-".join(re.findall(r"\w+", caption.lower()))[:60]
    words = words.encode()[:180].decode(errors="ignore").strip("-_")
    return words or "sound"
