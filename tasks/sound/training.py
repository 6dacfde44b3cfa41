"""Training a text-to-sound model: tokens and embeddings of the sounds first, then the trainer of `lm`.

RUN/tokens/          the token store, where the run was given manifests and no store
RUN/condition.json   what the run is conditioned on, so that it goes on with the same
RUN/left_out.json    recordings without a caption, or whose audio could not be embedded
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from xcodec_lm.codec.audio import save_audio
from xcodec_lm.codec.runtime.checkpoint import latest_checkpoint
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.runtime.run import Run, RunOptions
from xcodec_lm.codec.tokens import TokenSpec, stack_codes
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.configs.sound import SoundTrainConfig
from xcodec_lm.lm.condition_train import ConditionedStretches, make_trainer, parameter_count
from xcodec_lm.lm.conditioning import ConditionedGPT, Conditions
from xcodec_lm.lm.engine import Engine
from xcodec_lm.lm.layouts import layout_from
from xcodec_lm.lm.requests import Request
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.lm.shards import JoinedStore, TokenStore, open_stores
from xcodec_lm.lm.train import describe, summary
from xcodec_lm.lm.trainer import open_tokens
from xcodec_lm.tasks.music import training as music
from xcodec_lm.tasks.sound.captions import Found, captions_of, clap_conditions, label_conditions
from xcodec_lm.tasks.sound.source import embedder_facts

if TYPE_CHECKING:
    from xcodec_lm.tasks.sound.clap import TextAudioEmbedder

GUIDANCE = 3.0
"""Guidance scale where none is asked for, as MusicGen decodes (arXiv 2306.05284, section 3.2)."""
ASSUMED_SIZE = 512
"""Width of CLAP's vectors in a dry run that is not told another."""


def train(config: SoundTrainConfig, options: RunOptions) -> Path:
    """Trains a text-to-sound model, or goes on with it.

    Manifests are tokenized before the first step; several processes share the work. Every validation writes sounds that
    are made from captions of split dev.

    Args:
        config: model, condition, data, optimizer, run.
        options: folder, device, resume.

    Returns:
        The run folder; `model/` in it holds the model, and names its codec and its CLAP.

    Raises:
        XcodecLMError: no manifest and no usable token store, no captions, another run in the folder, a CLAP that does
            not fit, or a loss that is not finite.
    """
    config = with_store(config, options.out)
    if not config.data.tokens:
        raise ConfigError(
            "no sounds to train on: data.manifests and data.tokens are not set",
            "give a manifest with captions, --data captions.jsonl, or a token store, --data.tokens FOLDER",
        )
    clap = None if config.condition.kind == "label" else _load_clap(config, options.device)
    with Run(config, options, "sound") as run:
        if config.data.manifests:
            fill_store(config, run)
        store = open_tokens(config.data.tokens)
        if not len(store):
            raise XcodecLMError(f"{store.folder} holds no recording", "its failed.jsonl says why none could be encoded")
        with run.accelerator.main_process_first():  # one process embeds, the others read its cache
            found = find_conditions(config, store, clap)
        config = with_size(config, len(found.labels) if clap is None else clap.dim)
        facts = (
            {"labels": found.labels}
            if clap is None
            else {"embedder": embedder_facts(config.data.clap, clap, run.folder)}
        )
        trainer = make_trainer(run, config, store, found.conditions, facts, Listener(config, found.conditions))
        if run.is_main:
            _bind_conditions(run.folder, found, clap)
        say(summary(_described(config, store.spec, run.world)))
        say(f"{'conditions':<12}{found.summary()}")
        for name, part in (("train", trainer.material.train), ("dev", trainer.material.dev)):
            assert isinstance(part, ConditionedStretches)
            left_out = f"; {len(part.left_out)} recordings without any condition left out" if part.left_out else ""
            say(f"{name:<12}{len(part)} stretches{left_out}")
        return trainer.fit()


def dry_run(config: SoundTrainConfig) -> str:
    """What a run of this configuration would need on one device, without making it."""
    if config.data.manifests:  # what is not tokenized yet cannot be asked
        config = replace(config, data=replace(config.data, tokens=()))
    return summary(_described(with_size(config, config.condition.size or ASSUMED_SIZE)))


def _described(config: SoundTrainConfig, spec: TokenSpec | None = None, world: int = 1) -> dict[str, Any]:
    facts = describe(config, spec, world)
    return facts | {"parameters": parameter_count(config, facts["vocabulary"])}


# ------------------------------------------------------------------ before the first step


def with_store(config: SoundTrainConfig, folder: Path) -> SoundTrainConfig:
    """The configuration with the store that its manifests are tokenized into."""
    data = config.data
    if not data.manifests or data.tokens:
        return config
    return replace(config, data=replace(data, tokens=(str(folder / "tokens"),)))


def with_size(config: SoundTrainConfig, size: int) -> SoundTrainConfig:
    """The configuration with the size of its conditions.

    Raises:
        ConfigError: it asks for another.
    """
    asked = config.condition.size
    if asked and asked != size:
        if config.condition.kind == "label":
            raise ConfigError(f"condition.size is {asked}, but the data has {size} labels", "leave it out")
        raise ConfigError(
            f"condition.size is {asked}, but {config.data.clap} gives vectors of {size}",
            f"give a CLAP of that size with --clap, or --condition.size {size}",
        )
    return replace(config, condition=replace(config.condition, size=size))


def fill_store(config: SoundTrainConfig, run: Run) -> None:
    """Tokenizes the manifests into the store, but for what it has; a run that has begun keeps the store as it is.

    Raises:
        XcodecLMError: no such codec, a manifest at fault, or no recording that can be read.
    """
    store = Path(config.data.tokens[0])
    if latest_checkpoint(run.folder / "checkpoints") is None:
        from xcodec_lm.codec import load_codec
        from xcodec_lm.tasks.data.tokenize import tokenize

        name = config.data.codec
        codec, path = load_codec(name, device=run.device), Path(name)
        done = tokenize(config.data.manifests, codec, store, codec_path=path, rank=run.rank, world=run.world)
        say(f"{'tokens':<12}{done.done} recordings encoded, {done.skipped} already there, {done.failed} failed")
    run.accelerator.wait_for_everyone()


def find_conditions(config: SoundTrainConfig, store: TokenStore | JoinedStore, clap: TextAudioEmbedder | None) -> Found:
    """What the recordings of a store are conditioned on."""
    if clap is None:
        return label_conditions(config, store)
    return clap_conditions(config, store, clap, Path(config.data.cache or store.folder / "clap-cache"))


def _load_clap(config: SoundTrainConfig, device: str) -> TextAudioEmbedder:
    from xcodec_lm.tasks.sound.clap import load_clap

    wanted = "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"
    clap = load_clap(config.data.clap, wanted)
    with_size(config, clap.dim)
    return clap


def _bind_conditions(folder: Path, found: Found, clap: TextAudioEmbedder | None) -> None:
    """Notes what a run is conditioned on, and refuses to go on with something else."""
    facts = {"clap": None if clap is None else clap.fingerprint, "digest": found.conditions.digest()}
    path = folder / "condition.json"
    if (folder / "checkpoints").is_dir() and path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if old != facts:
            what = "another CLAP" if old.get("clap") != facts["clap"] else "other captions, labels or audio files"
            raise XcodecLMError(
                f"{folder} was begun with {what}", "give the same data and CLAP to go on, or choose another --out"
            )
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    left_out = {"without_caption": found.without_caption, "without_audio": found.without_audio}
    (folder / "left_out.json").write_text(json.dumps(left_out, indent=1) + "\n", encoding="utf-8")


# ------------------------------------------------------------------ samples


class Listener(music.Listener):
    """Writes sounds made from captions of split dev. Without a codec that can be loaded it says so and writes none.

    Args:
        config: of the run.
        conditions: of the recordings of its store.
    """

    def __init__(self, config: SoundTrainConfig, conditions: Conditions):
        super().__init__(config)
        self.conditions = conditions

    def __call__(self, model: ConditionedGPT, recordings: list[int], folder: Path, steps: int) -> None:  # type: ignore[override]
        """Writes `folder/sample-I.flac` and `.txt`, the recording and its caption, and `sample-I-step-N.flac`.

        Args:
            model: in eval mode.
            recordings: of the store, of split dev.
            folder: the run's `samples/`.
            steps: done so far.
        """
        codec = self._load()
        if codec is None:
            return
        settings, layout = self.config.run, layout_from(self.config.model.layout, codec.spec)
        store, guided = open_stores(self.config.data.tokens), model.condition.config.drop > 0
        frames = max(1, round(settings.sample_s * codec.spec.frame_rate))
        with torch.inference_mode():
            fronts = model.prefix_of(torch.stack([self.conditions.fixed(recording) for recording in recordings]))
            negative = model.null_prefix() if guided else None
            sampling = Sampling(cfg_scale=GUIDANCE if guided else 1.0)
            requests = [
                Request(frames, None, sampling, settings.seed + number, prefix=front, negative=negative)
                for number, front in enumerate(fronts)
            ]
            made = Engine(model, layout, 2 * len(requests)).decode(requests)
        for number, (recording, one) in enumerate(zip(recordings, made, strict=True)):
            if one.error is not None:
                say(f"sample {number} cannot be made: {one.error}")
                continue
            known = torch.from_numpy(store.codes(recording).T.astype(np.int64))[list(layout.books)]
            row = store.rows[recording]
            text = "\n".join(captions_of(row)) or str(row.get("label", ""))
            (folder / f"sample-{number}.txt").write_text(text + "\n", encoding="utf-8")
            for name, codes in ((f"sample-{number}", known), (f"sample-{number}-step-{steps}", one.codes)):
                if not (folder / f"{name}.flac").exists():
                    with torch.inference_mode():
                        wav, lengths = codec.decode(stack_codes([codes], codec.spec.take(len(layout.books))))
                    path = folder / f"{name}.flac"
                    save_audio(path, wav[0, :, : int(lengths[0])].cpu(), codec.spec.output_sample_rate)
