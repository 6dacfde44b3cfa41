"""Training of the small judges: a recogniser of speech, an embedder of speakers, each in a run folder of its own.

Both train on split train of manifests, on clips that are varied anew in every step and, where given, on copies through
codecs. Order, variations and dropout are functions of (seed, step, item), so a run that was stopped goes on exactly.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import Clip, Split, read_manifests
from xcodec_lm.codec.load import count_parameters
from xcodec_lm.codec.runtime.order import DataOrder, derive_seed, generator
from xcodec_lm.codec.runtime.progress import say, track
from xcodec_lm.codec.runtime.run import Run, RunOptions
from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.evaluators import EvaluatorTrainConfig
from xcodec_lm.tasks.data.provenance import provenance
from xcodec_lm.tasks.eval import speaker as speakers
from xcodec_lm.tasks.eval import wer
from xcodec_lm.tasks.eval.judge_audio import SAMPLE_RATE, features, is_silent, voice_features
from xcodec_lm.tasks.eval.judge_augment import augment
from xcodec_lm.tasks.eval.tiny_ctc import Alphabet, TinyCTC, TinyTranscriber, save_tiny_ctc
from xcodec_lm.tasks.eval.tiny_speaker import TinySpeaker, TinySpeakerEmbedder, save_tiny_speaker


class Trainee(Protocol):
    """A judge in training.

    Attributes:
        module: the network.
    """

    module: nn.Module

    def loss(self, step: int) -> Tensor:
        """Loss of the batch of a step."""
        ...

    def validate(self, clips: Sequence[Clip]) -> dict[str, float]:
        """Metrics on clips, by name; the network is in eval mode."""
        ...

    def save(self, folder: Path, ancestry: dict[str, Any]) -> None:
        """Writes the judge."""
        ...


class TrainingClips:
    """Clips of the manifests and copies of some, as batches of varied waveforms.

    Args:
        config: of the run.
        groups: clips that are trained on; every group is drawn from equally often.
    """

    def __init__(self, config: EvaluatorTrainConfig, groups: Sequence[Sequence[Clip]]):
        self.config, self.groups, self.seed = config, groups, config.run.seed
        known = {clip.id for group in groups for clip in group}
        copies = read_manifests([config.data.copies], "train") if config.data.copies else []
        self.copies = [copy for copy in copies if copy.row.get("copy_of") in known]
        self.order = DataOrder(len(groups), self.seed)

    def batch(self, step: int) -> list[tuple[Clip, Tensor]]:
        """The clips of a step with their varied waveforms (N,) at 16 kHz."""
        size, found = self.config.data.batch_clips, []
        for item in range(size):
            rng = generator(self.seed, "judge", step, item)
            group = self.groups[self.order[step * size + item]]
            clip = group[int(torch.randint(len(group), (), generator=rng)) if len(group) > 1 else 0]
            if self.copies and float(torch.rand((), generator=rng)) < self.config.data.copied_share:
                clip = self.copies[int(torch.randint(len(self.copies), (), generator=rng))]
            start, longest = 0.0, self.config.data.longest_s
            if clip.duration_s > longest:
                start = float(torch.rand((), generator=rng)) * (clip.duration_s - longest)
            wav = load_audio(clip.path, SAMPLE_RATE, start, longest).wav[0]
            found.append((clip, augment(wav, self.config.augment, rng)))
        return found


class RecogniserTrainee:
    """The recogniser in training.

    Args:
        config: of the run.

    Raises:
        ConfigError: no training clip has a text and is short enough.
    """

    def __init__(self, config: EvaluatorTrainConfig):
        rows = read_manifests(config.data.manifests, "train")
        clips = [clip for clip in rows if text_of(clip) and clip.duration_s <= config.data.longest_s]
        left_out = len(rows) - len(clips)
        if left_out:
            say(f"recogniser: {left_out} of {len(rows)} clips have no text or more than {config.data.longest_s:g} s")
        alphabet = Alphabet.build((text_of(clip) for clip in clips), config.recogniser.units)
        say(f"recogniser: names {len(alphabet.symbols)} {alphabet.units}")
        self.clips = TrainingClips(config, [[clip] for clip in clips])
        torch.manual_seed(derive_seed(config.run.seed, "recogniser"))
        self.module: TinyCTC = TinyCTC(config.recogniser, alphabet)
        self.seed = config.run.seed

    def loss(self, step: int) -> Tensor:
        """CTC loss."""
        batch = self.clips.batch(step)
        rows = [features(wav, self.module.bands) for _, wav in batch]
        return self.module.loss(rows, [text_of(clip) for clip, _ in batch])

    def validate(self, clips: Sequence[Clip]) -> dict[str, float]:
        """`eval/wer` over all clips that have a text."""
        pairs = transcribe_clips(TinyTranscriber(self.module), clips)
        return {"eval/wer": wer.corpus_rate(wer.word_counts(pairs))} if pairs else {}

    def save(self, folder: Path, ancestry: dict[str, Any]) -> None:
        """Writes the recogniser."""
        save_tiny_ctc(self.module, folder, ancestry)


class SpeakerTrainee:
    """The embedder in training; its batches draw speakers evenly, then one of the speaker's clips.

    Args:
        config: of the run.

    Raises:
        ConfigError: there are fewer than two speakers, or fewer than two clips in a batch.
    """

    def __init__(self, config: EvaluatorTrainConfig):
        rows = read_manifests(config.data.manifests, "train")
        clips = [clip for clip in rows if clip.row.get("speaker")]
        if len(clips) < len(rows):
            say(f"speaker: {len(rows) - len(clips)} of {len(rows)} clips without a speaker left out")
        names = sorted({clip.row["speaker"] for clip in clips})
        if len(names) < 2:
            raise ConfigError(
                f"the training clips have {len(names)} speakers", "give manifests whose rows have a `speaker`"
            )
        if config.data.batch_clips < 2:
            raise ConfigError("data.batch_clips must be at least 2 for the embedder, which compares clips of a batch")
        self.index = {name: number for number, name in enumerate(names)}
        groups = [[clip for clip in clips if clip.row["speaker"] == name] for name in names]
        longest = min(config.data.longest_s, config.speaker.crop_s * 1.5)
        self.clips = TrainingClips(replace(config, data=replace(config.data, longest_s=longest)), groups)
        torch.manual_seed(derive_seed(config.run.seed, "speaker"))
        self.module: TinySpeaker = TinySpeaker(config.speaker, names)
        self.crop, self.seed, self.steps = (
            round(config.speaker.crop_s * SAMPLE_RATE),
            config.run.seed,
            config.optim.steps,
        )

    def loss(self, step: int) -> Tensor:
        """Additive-margin loss on crops."""
        rows, answers = [], []
        for item, (clip, wav) in enumerate(self.clips.batch(step)):
            rng = generator(self.seed, "crop", step, item)
            start = int(torch.randint(max(1, len(wav) - self.crop + 1), (), generator=rng))
            crop = wav[start : start + self.crop]
            rows.append(voice_features(wav if is_silent(crop) else crop, self.module.bands))
            answers.append(self.index[clip.row["speaker"]])
        margin = self.module.config.margin * min(1.0, 2 * step / self.steps)
        return self.module.loss(rows, answers, margin)

    def validate(self, clips: Sequence[Clip]) -> dict[str, float]:
        """`eval/eer`: the mean of the sources' equal-error rates."""
        found = verify_clips(TinySpeakerEmbedder(self.module), clips)
        rates = [entry["eer"] for entry in found.values() if entry["eer"] is not None]
        return {"eval/eer": float(np.mean(rates))} if rates else {}

    def save(self, folder: Path, ancestry: dict[str, Any]) -> None:
        """Writes the embedder."""
        save_tiny_speaker(self.module, folder, ancestry)


TRAINEES = {"recogniser": RecogniserTrainee, "speaker": SpeakerTrainee}


def train(config: EvaluatorTrainConfig, options: RunOptions) -> Path:
    """Trains a judge, or goes on with it.

    Returns:
        The run folder; `model/` in it loads with `transcribers.load_transcriber` or `speaker.load_speaker_embedder`.

    Raises:
        ConfigError: no manifests, or none with what the kind needs.
        XcodecLMError: an unreadable recording, a folder of another run, a loss that is not finite.
    """
    if not config.data.manifests:
        raise ConfigError("data.manifests is empty", "name manifests: --data corpus/speech.jsonl")
    with Run(config, options, label=config.kind) as run:
        trainee: Trainee = TRAINEES[config.kind](config)
        module, optim = trainee.module.to(run.device), config.optim
        say(f"{config.kind}: {count_parameters(module) / 1e6:.2f} M parameters, {optim.steps} steps")
        optimizer = torch.optim.AdamW(
            module.parameters(), lr=optim.lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay
        )
        run.track_state({"model": module}, {"optimizer": optimizer})
        done = run.resume()
        held_out = validation_clips(config)
        for step in run.steps(done):
            for group in optimizer.param_groups:
                group["lr"] = optim.lr_at(step)
            module.train()
            torch.manual_seed(derive_seed(config.run.seed, "dropout", step))
            loss = trainee.loss(step)
            value = float(loss.detach())
            run.check_finite(step, value)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(module.parameters(), optim.max_grad_norm)
            optimizer.step()
            metrics: dict[str, float] = {}
            if run.due(step, config.run.log_every):
                metrics = {"loss": value, "lr": optim.lr_at(step)}
            if run.due(step, config.run.eval_every):
                metrics |= trainee.validate(held_out)
                module.train()
            if metrics:
                run.log(step, metrics, show=tuple(name for name in metrics if name != "lr"))
        if run.is_main:
            trainee.save(run.model_folder, ancestry_of(config))
    return options.out


def validation_clips(config: EvaluatorTrainConfig) -> list[Clip]:
    """Clips of split dev, else of test, else of train; at most `data.eval_clips`, evenly over the manifests' order."""
    splits: tuple[Split, ...] = ("dev", "test", "train")
    for split in splits:
        clips = [clip for clip in read_manifests(config.data.manifests, split)
                 if clip.duration_s <= config.data.longest_s]  # fmt: skip
        if clips:
            if split != "dev":
                say(f"note: no row has split: dev; validation uses {split}")
            return thin(clips, config.data.eval_clips)
    return []


def thin(clips: Sequence[Clip], count: int) -> list[Clip]:
    """At most `count` clips, spread evenly."""
    if len(clips) <= count:
        return list(clips)
    return [clips[index * len(clips) // count] for index in range(count)]


def ancestry_of(config: EvaluatorTrainConfig) -> dict[str, Any]:
    """What a judge descends from: manifests with their hashes, and the codecs whose copies it heard."""
    copies = read_manifests([config.data.copies]) if config.data.copies else []
    return {
        "trained_on": provenance(config.data.manifests),
        "codecs_heard": sorted({str(clip.row.get("codec")) for clip in copies}),
        "copies": len(copies),
        "weights_from": "none: random initial values",
        "seed": config.run.seed,
        "steps": config.optim.steps,
    }


def text_of(clip: Clip) -> str:
    """A clip's normalised text; "" where it has none."""
    text = clip.row.get("text")
    return wer.normalise(text) if isinstance(text, str) else ""


def transcribe_clips(transcriber: Any, clips: Sequence[Clip]) -> list[wer.Pair]:
    """What a recogniser hears in the clips that have a text; the unit is the speaker."""
    if isinstance(transcriber, TinyTranscriber):
        transcriber.model.eval()
    pairs = []
    for clip in track([clip for clip in clips if text_of(clip)], "recognising", len(clips)):
        heard = transcriber.transcribe([load_audio(clip.path, SAMPLE_RATE).wav[0].numpy()])[0]
        pairs.append(wer.Pair(clip.id, text_of(clip), heard, str(clip.row.get("speaker") or "")))
    return pairs


def verify_clips(embedder: Any, clips: Sequence[Clip]) -> dict[str, dict[str, Any]]:
    """`speaker.verification` of the clips that have a speaker, by their `source`."""
    if isinstance(embedder, TinySpeakerEmbedder):
        embedder.model.eval()
    known = [clip for clip in clips if clip.row.get("speaker")]
    if not known:
        return {}
    vectors = np.concatenate(
        [
            speakers.voice_vectors(embedder, [load_audio(clip.path, SAMPLE_RATE).wav[0].numpy()])
            for clip in track(known, "comparing voices", len(known))
        ]
    )
    names, sources = ([str(clip.row.get(key) or "all") for clip in known] for key in ("speaker", "source"))
    return speakers.verification(vectors, names, sources)
