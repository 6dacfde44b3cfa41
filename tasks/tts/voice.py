"""Speaking: text and a voice become the codes of the AR, those of the NAR, and audio.

A long text is split at sentences, each spoken behind the same prompt, so that the voice stays and all are decoded
together. Nothing of the speech comes from a recording but the prompt itself.

Source: VALL-E, arXiv 2301.02111.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.audio import load_audio, resample
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.tokens import AudioTokenizer, TokenSpec, stack_codes
from xcodec_lm.configs.errors import TokenError, UsageError, XcodecLMError
from xcodec_lm.lm.gpt import read_kind
from xcodec_lm.lm.layouts import Layout, layout_from
from xcodec_lm.lm.llama import SpeechLlama
from xcodec_lm.lm.load import find_model, model_facts, named_codec
from xcodec_lm.lm.valle_ar import ValleAR, ar_layout
from xcodec_lm.lm.valle_nar import ValleNAR, refine
from xcodec_lm.tasks.tts.drafts import Speaker, Task, draft
from xcodec_lm.tasks.tts.speech import Line, Pace, Prompt, Speaking, Spoken, read_speaking
from xcodec_lm.tasks.tts.streaming import context_of, stream_frames
from xcodec_lm.tasks.tts.symbols import TextEncoder

LONGEST_PROMPT_S = 10.0
"""Of a longer recording the beginning is the prompt."""
SHORTEST_PROMPT_S = 1.0
"""A shorter one hardly carries a voice, which is said."""
PRETRAINED = Path(__file__).parents[1] / "pretrained"
"""Shipped language models."""
SILENCE = 1e-4
"""Largest sample of a prompt without a voice."""


class TTS:
    """Speech models with their text front end and codec; `load_tts` makes one.

    Args:
        ar: predicts the first codebook, or, as a single stream, all that its layout carries.
        nar: predicts the others; None speaks with those of `ar` alone.
        layout: of the ids of `ar`.
        encoder: text as ids.
        codec: anything with the tokenizer protocol.
        pace: of the training data.
        guidable: whether `ar` can speak without a text, which guidance needs.
        speaking: how it speaks unless it is told otherwise.

    Raises:
        TokenError: the codec has too few codebooks.
    """

    def __init__(
        self, ar: Speaker, nar: ValleNAR | None, layout: Layout, encoder: TextEncoder, codec: AudioTokenizer,
        pace: Pace, guidable: bool = False, speaking: Speaking = Speaking(),  # noqa: B008 - frozen
    ):  # fmt: skip
        self.ar, self.nar, self.layout, self.encoder, self.codec, self.pace = ar, nar, layout, encoder, codec, pace
        self.guidable, self.speaking = guidable, speaking
        if nar is not None and codec.spec.n_q < nar.config.n_q:
            raise TokenError(f"the NAR speaks {nar.config.n_q} codebooks, the codec has {codec.spec.n_q}")

    @property
    def device(self) -> torch.device:
        """Where the models are."""
        return self.ar.device

    @property
    def n_q(self) -> int:
        """Codebooks that are spoken."""
        return len(self.layout.books) if self.nar is None else self.nar.config.n_q

    @cached_property
    def code_vectors(self) -> list[Tensor] | None:
        """(K, V) what the codes of each codebook but the first add to what the codec decodes, but for a constant; None
        where the codec does not show it."""
        spec, codec = self.codec.spec, self.codec
        if self.nar is None or "post_vq" not in getattr(codec, "features", ()):
            return None
        found = []
        for book in range(1, self.nar.config.n_q):
            codes = torch.zeros(book + 1, spec.codebook_sizes[book], dtype=torch.int64)
            codes[book] = torch.arange(codes.shape[1])  # the others stay the same, and residual codes add up
            tokens = stack_codes([codes], spec.take(book + 1)).to(getattr(codec, "device", "cpu"))
            with torch.inference_mode():
                found.append(codec.extract(tokens, "post_vq", book + 1).values[0].T.float())
        return found

    # ------------------------------------------------------------------ prompts

    def prompt(self, source: str | Path | Tensor, text: str | None = None, seconds: float | None = None) -> Prompt:
        """A voice from a recording.

        Args:
            source: an audio file, or wav (1, N) at the codec's rate.
            text: what is said in it; without it the voice is used without text.
            seconds: use the first so many seconds alone, without ending; then `text` may go on beyond them.

        Raises:
            UsageError: it is silent.
            AudioError: it cannot be read.
        """
        rate = self.codec.spec.sample_rate
        longest = seconds or LONGEST_PROMPT_S
        if isinstance(source, Tensor):
            wav, name = source, "the prompt"
        else:
            audio = load_audio(source, rate)
            wav, name = audio.wav, str(source)
            for conversion in audio.conversions:
                say(f"{name}: {conversion}")
        total_s = wav.shape[-1] / rate
        if float(wav.abs().max()) < SILENCE:
            raise UsageError(f"{name} is silent: there is no voice in it", "give a recording of somebody speaking")
        if float((wav.abs() > 0.999).float().mean()) > 0.01:
            say(f"{name} is clipped: more than a hundredth of it is at full scale, and the voice will sound so")
        if total_s > longest:
            wav = wav[:, : round(longest * rate)]
            if seconds is None:
                say(f"{name} has {total_s:.1f} s: its first {longest:g} s are the prompt")
                if text is not None:
                    say("the prompt's text is left out, because it goes on beyond them")
                text = None
        if total_s < SHORTEST_PROMPT_S:
            say(f"{name} has {total_s:.2f} s, which hardly carries a voice: 3 s or more are better")
        hop = self.codec.spec.hop_samples
        if wav.shape[-1] > hop:
            wav = wav[:, : wav.shape[-1] // hop * hop]  # the silence that fills a last frame would sound like an end
        with torch.inference_mode():
            tokens = self.codec.encode(wav[None].to(getattr(self.codec, "device", "cpu")), sample_rate=rate)
        return Prompt(tokens.codes[0, :, : int(tokens.lengths[0])].cpu().clone(), text)

    def heard(self, prompt: Prompt, rate: int) -> np.ndarray:
        """(N,) a prompt as the codec renders it, at a rate in Hz."""
        spec, n_q = self.codec.spec, self.n_q
        with torch.inference_mode():
            wav, lengths = self.codec.decode(stack_codes([prompt.codes[:n_q]], spec.take(n_q)))
        return resample(wav[0, 0, : int(lengths[0])].float().cpu().numpy(), spec.output_sample_rate, rate)

    # ------------------------------------------------------------------ speech

    def say(
        self, text: str, prompt: str | Path | Prompt | None = None, prompt_text: str | None = None, seed: int = 0,
        speaking: Speaking | None = None,
    ) -> Spoken:  # fmt: skip
        """Speaks a text.

        Args:
            text: of any length.
            prompt: the voice: a recording or what `prompt` made of it; None lets the model choose one.
            prompt_text: what is said in it.
            seed: the same seed gives the same speech.
            speaking: how; None as this model speaks best.

        Raises:
            UsageError: nothing to say, or a silent prompt.
        """
        if prompt is not None and not isinstance(prompt, Prompt):
            prompt = self.prompt(prompt, prompt_text)
        return self.say_all([Line(text, prompt, seed)], speaking)[0]

    def say_all(
        self, lines: Sequence[Line], speaking: Speaking | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> list[Spoken]:  # fmt: skip
        """Speaks several texts together; each result is what `say` gives.

        Args:
            lines: what, in which voice.
            speaking: how; None as this model speaks best.
            progress: called with sentences done and in all.

        Raises:
            As `say`.
        """
        began, speaking = time.perf_counter(), speaking or self.speaking
        tasks = [task for number, line in enumerate(lines) for task in self._tasks(number, line, speaking)]
        self._speak(tasks, speaking, progress)
        wall = (time.perf_counter() - began) / max(1, len(lines))
        return [self._joined([task for task in tasks if task.line == number], wall) for number in range(len(lines))]

    def stream(
        self, text: str, prompt: Prompt | None = None, seed: int = 0, speaking: Speaking | None = None
    ) -> Iterator[Spoken]:  # fmt: skip
        """Speaks a text piece by piece, each as soon as it is made; together they are what `say` gives.

        A piece is a sentence. Of a single stream it is what became certain of it, 0.2 s or so: a sentence's last piece
        has its `sentences`, those before it have none, and no draft is tried again.
        """
        speaking = speaking or self.speaking
        for task in self._tasks(0, Line(text, prompt, seed), speaking):
            if isinstance(self.ar, SpeechLlama) and speaking.best_of == 1 and speaking.codec_stage == "nar":
                yield from stream_frames(self.ar, self.layout, self.pace, self.codec, task, speaking)
                continue
            began = time.perf_counter()
            self._speak([task], speaking)
            yield self._joined([task], time.perf_counter() - began)

    def _tasks(self, number: int, line: Line, speaking: Speaking) -> list[Task]:
        """The sentences of a line.

        Raises:
            UsageError: nothing to say, or guidance by a model that always had a text.
        """
        guided = speaking.sampling.cfg_scale != 1
        if (guided or (speaking.rank == "text" and speaking.best_of > 1)) and not self.guidable:
            raise UsageError(
                "this speech model never spoke without a text, so nothing can be compared with that",
                f"leave {'--cfg' if guided else '--rank text'} out, or train with --data.no-text 0.1",
            )
        whole = self.encoder.encode(line.text)  # raises where there is nothing to say
        if losses := whole.losses():
            say(losses)
        unsaid = tuple(words for _, words in whole.left_out)  # the sentences no longer have them; the first tells them
        said, tasks = None if line.prompt is None else line.prompt.text, []
        pieces = [line.text] if line.continual else self.encoder.split(line.text, speaking.most_units)
        begun = line.prompt.codes.shape[1] if line.continual and line.prompt is not None else 0
        for index, piece in enumerate(pieces):
            own = self.encoder.encode(piece)
            ids = own.ids if said is None else self.encoder.encode(f"{said} {piece}").ids
            seed = derive_seed(line.seed, "sentence", index)
            unknown = own.unknown if index else (*own.unknown, *unsaid)
            tasks.append(Task(number, piece, ids, len(own.ids), line.prompt, seed, unknown, begun))
        return tasks

    def _speak(self, tasks: list[Task], speaking: Speaking, progress: Callable[[int, int], None] | None = None) -> None:
        """Sets the `sentence` of every task, with all codebooks."""
        draft(self.ar, self.layout, self.pace, tasks, speaking, float(self.codec.spec.frame_rate), progress)
        sentences = [task.sentence for task in tasks if task.sentence is not None]
        if self.nar is None or speaking.codec_stage == "ar":
            for sentence in sentences if speaking.codec_stage == "ar" else ():
                sentence.codes = sentence.codes[:1]
            return
        n_q = self.nar.config.n_q
        prompts = [_prompt_codes(task.prompt, n_q) for task in tasks]
        firsts = [
            torch.cat([prompt[0], sentence.codes[0]]) for prompt, sentence in zip(prompts, sentences, strict=True)
        ]
        with torch.inference_mode():
            refined = refine(
                self.nar, [torch.tensor(list(task.ids)) for task in tasks], prompts, firsts, speaking.nar_sampling,
                [task.seed for task in tasks], vectors=self.code_vectors,
            )  # fmt: skip
        for prompt, sentence, codes in zip(prompts, sentences, refined, strict=True):
            sentence.codes = codes[:, prompt.shape[1] :]

    def _joined(self, tasks: list[Task], wall_s: float) -> Spoken:
        sentences = [task.sentence for task in tasks if task.sentence is not None]
        wav = torch.cat([self.render(sentence.codes, tasks[0].prompt) for sentence in sentences], dim=1)
        return Spoken(wav, self.codec.spec.output_sample_rate, sentences, wall_s)

    def render(self, codes: Tensor, prompt: Prompt | None) -> Tensor:
        """(1, N) audio of a sentence's codes (Q, T), decoded behind the end of its prompt."""
        spec, n_q = self.codec.spec, len(codes)
        context = context_of(prompt, n_q, spec)
        tokens = stack_codes([torch.cat([context, codes], dim=1)], spec.take(n_q))
        with torch.inference_mode():
            wav, lengths = self.codec.decode(tokens.to(getattr(self.codec, "device", "cpu")))
        start = round(context.shape[1] / spec.frame_rate * spec.output_sample_rate)
        return wav[0, :, start : int(lengths[0])].float().cpu()


def _prompt_codes(prompt: Prompt | None, n_q: int) -> Tensor:
    return torch.zeros(n_q, 0, dtype=torch.int64) if prompt is None else prompt.codes[:n_q]


def _load_single(folder: Path, codec: AudioTokenizer | str | Path | None, device: torch.device | str) -> TTS:
    """`load_tts` of a single stream."""
    model_folder = find_model(folder)
    facts = model_facts(model_folder, SpeechLlama.kind)
    model = SpeechLlama.from_pretrained(model_folder, device)
    spec = TokenSpec.from_dict(facts["codec"]["spec"])
    codec = _codec_of(facts, model_folder, codec, device)
    layout = layout_from(model.config.layout, spec)
    text, pace = TextEncoder.load(folder / "text"), Pace(**facts["pace"])
    return TTS(model, None, layout, text, codec, pace, speaking=read_speaking(folder))


def _codec_of(
    facts: dict[str, Any], model_folder: Path, codec: AudioTokenizer | str | Path | None, device: torch.device | str
) -> AudioTokenizer:
    """The codec that was given, or that a model's config.json names, if it is the one of the model's tokens."""
    if codec is None or isinstance(codec, (str, Path)):
        from xcodec_lm.codec import load_codec

        found = load_codec(codec or named_codec(model_folder, facts["codec"].get("path")), device=device)
    else:
        found = codec
    found.spec.check_same_codec(TokenSpec.from_dict(facts["codec"]["spec"]), "the speech model's training data")
    return found


def load_tts(
    run: str | Path, codec: AudioTokenizer | str | Path | None = None, device: torch.device | str = "cpu"
) -> TTS:
    """Trained speech models with their codec.

    Args:
        run: folder of `tts train`, with or without a NAR, or the name of a shipped model.
        codec: the codec, or its folder or name; without it, the one that the AR's config.json names.
        device: where all go.

    Raises:
        XcodecLMError: no model there, or no codec to be found.
        TokenError: the codec, or the NAR's, is not the one whose tokens the AR speaks.
    """
    folder = find_run(run)
    if not (folder / "ar").is_dir():
        return _load_single(folder, codec, device)
    ar_folder = find_model(folder / "ar")
    facts = model_facts(ar_folder, ValleAR.kind)
    ar = ValleAR.from_pretrained(ar_folder, device)
    spec = TokenSpec.from_dict(facts["codec"]["spec"])
    nar = None
    if (folder / "nar").is_dir():
        try:
            nar_folder = find_model(folder / "nar")
        except XcodecLMError:
            say(f"{folder}: the NAR has not finished training; the first codebook is spoken alone")
        else:
            nar = ValleNAR.from_pretrained(nar_folder, device)
            theirs = TokenSpec.from_dict(model_facts(nar_folder, ValleNAR.kind)["codec"]["spec"])
            spec.check_same_codec(theirs, str(nar_folder))
    else:
        say(f"{folder} holds no NAR: the first codebook is spoken alone")
    codec = _codec_of(facts, ar_folder, codec, device)
    pace = Pace(**facts["pace"])
    guidable, text = bool(facts.get("guidable")), TextEncoder.load(folder / "text")
    return TTS(ar, nar, ar_layout(ar.config, spec), text, codec, pace, guidable, read_speaking(folder))


def find_run(run: str | Path) -> Path:
    """The folder of a run or of a shipped model.

    Raises:
        XcodecLMError: it holds no speech model.
    """
    folder, shipped = Path(run), PRETRAINED / str(run)
    if not folder.exists() and shipped.is_dir():
        return shipped
    if folder.name in ("ar", "nar", "model") and (folder.parent / "text").is_dir():
        folder = folder.parent
    single = (folder / "text").is_dir() and read_kind(folder / "model") == SpeechLlama.kind
    if not (folder / "ar").is_dir() and not single:
        if (folder / "text").is_dir() and (folder / "config.yaml").is_file():
            find_model(folder)  # says that training has not finished
        raise XcodecLMError(
            f"{run} holds no speech model: there is no AR in it, and no single stream",
            "give the folder that tts train made",
        )
    return folder
