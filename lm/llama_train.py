"""Training the single-stream speech model: its examples, what training starts from, and a run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from xcodec_lm.codec.runtime.order import generator
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.runtime.run import Run, RunOptions
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import ConfigError, TokenError, XcodecLMError
from xcodec_lm.configs.tts_llama import LlamaTTSTrainConfig
from xcodec_lm.lm.examples import Batch, Example, make_batch
from xcodec_lm.lm.interop_llama import read_sizes, take_over
from xcodec_lm.lm.layouts import Layout, layout_from
from xcodec_lm.lm.llama import SpeechLlama, text_example
from xcodec_lm.lm.load import find_model
from xcodec_lm.lm.lora import add_adapters
from xcodec_lm.lm.model_files import read_model_config
from xcodec_lm.lm.objective import Cells, Material
from xcodec_lm.lm.shards import JoinedStore, TokenStore
from xcodec_lm.lm.speech import Encode, Utterances
from xcodec_lm.lm.trainer import Listen, Trainer, open_tokens
from xcodec_lm.lm.warm_start import start_from


class SpokenTexts(Utterances):
    """Utterances as documents of the single stream: text, then speech, positions counted on."""

    def batch(self, rows: Sequence[Sequence[int]]) -> Batch:  # type: ignore[override]
        """Rows of positions as a batch."""
        return make_batch(self.layout, [[self._document(self.place(place).slots) for place in row] for row in rows])

    def fixed_batch(self, slots: Sequence[int]) -> Batch:  # type: ignore[override]
        """Utterances as a batch, one a row."""
        return make_batch(self.layout, [[self._document((slot,))] for slot in slots])

    def _document(self, slots: tuple[int, ...]) -> Example:
        return text_example(self.layout, *self.content(slots))


class SpeechObjective(Cells):
    """Cross entropy of every code and of the end; text is read, not predicted.

    Args:
        model: the decoder.
        layout: of its ids.
        pace: frames for each symbol of text, of the training data: least, usual, most.
    """

    def __init__(self, model: SpeechLlama, layout: Layout, pace: dict[str, float]):
        super().__init__(model, layout)
        self.facts = {"pace": pace}


def is_transformers(folder: str | Path) -> bool:
    """Whether a folder holds a model of transformers, and no run or model of ours.

    Raises:
        XcodecLMError: it holds no model at all.
    """
    path = find_model(folder) / "config.json"
    try:
        kind = json.loads(path.read_text(encoding="utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError):
        raise XcodecLMError(f"{path} cannot be read", "give a run of tts train, or the folder of a LLaMA") from None
    return not str(kind).startswith("xcodec_lm")


def settled(config: LlamaTTSTrainConfig, text_size: int) -> LlamaTTSTrainConfig:
    """The configuration with what follows from its start and its text: sizes, and the number of text ids.

    Args:
        config: of the run.
        text_size: ids that text may have.

    Raises:
        XcodecLMError: `init` holds no model that training can start from.
        ConfigError: there are more text ids than the layout has room for.
    """
    model = config.model
    if config.init and is_transformers(config.init):
        model = read_sizes(find_model(config.init), model.block, model.layout)
    first = model.layout.first_id or text_size
    if config.init and not is_transformers(config.init):
        header = read_model_config(find_model(config.init), SpeechLlama.kind)
        first = model.layout.first_id or int(header["model"]["layout"]["first_id"])
    elif text_size > first and config.text.front_end != "transformers":
        raise ConfigError(
            f"model.layout.first_id {first} is below the {text_size} symbols of the texts",
            "raise it, or give 0 for as many as there are",
        )
    return replace(config, model=replace(model, layout=replace(model.layout, first_id=first)))


def train_speech(
    config: LlamaTTSTrainConfig, options: RunOptions, encode: Encode, text_size: int, listen: Listen | None = None
) -> Path:
    """Trains the single-stream model, or goes on with it.

    Args:
        config: of the run.
        options: folder, device, resume.
        encode: text as ids.
        text_size: ids that it may give.
        listen: writes samples at every validation.

    Returns:
        The run folder.

    Raises:
        XcodecLMError: no usable token store, another run in the folder, or a loss that is not finite.
    """
    config = settled(config, text_size)
    store = open_tokens(config.data.tokens)
    with Run(config, options, "tts llama") as run:
        trainer = make_trainer(run, config, store, encode, listen)
        say(summary(describe(config, store.spec, run.world)))
        trained = sum(p.numel() for p in trainer.model.parameters() if p.requires_grad)
        if config.lora.rank:
            say(f"{'adapters':<12}{trained / 1e6:.2f} M parameters are trained, the others stay")
        for name, part in (("train", trainer.material.train), ("dev", trainer.material.dev)):
            assert isinstance(part, Utterances)
            say(f"{name:<12}{part.summary()}")
            if run.is_main and part.left_out:
                path = run.folder / f"left_out_{name}.json"
                path.write_text(json.dumps(part.left_out, indent=1) + "\n", encoding="utf-8")
        return trainer.fit()


def make_trainer(
    run: Run, config: LlamaTTSTrainConfig, store: TokenStore | JoinedStore, encode: Encode,
    listen: Listen | None = None,
) -> Trainer:  # fmt: skip
    """The trainer of a run over all utterances that the store holds; `config` as `settled` gives it."""
    model, data = config.model, config.data
    layout = layout_from(model.layout, store.spec)
    checked = _checked(encode, model.layout.first_id)
    train, dev = (
        SpokenTexts(store, split, checked, layout, "ar", len(layout.books), model.block, data, config.run.seed)
        for split in ("train", "dev")
    )
    if not len(train):
        raise XcodecLMError(
            f"{store.folder} has no utterance to train on: {train.summary()}",
            "tokenize a manifest with the field text, or raise model.block",
        )
    made = SpeechLlama(model, layout.vocabulary.size)
    if config.init and is_transformers(config.init):
        ids = layout.vocabulary
        new = take_over(made, find_model(config.init), ids.base + ids.codes, generator(config.run.seed, "new-ids"))
        say(f"{'start':<12}{config.init}, {new} of {made.vocab_size} ids are new")
        if config.lora.rank and not config.lora.embedding and new > ids.size - ids.base - ids.codes:
            raise ConfigError(
                f"{config.init} has no ids of speech, and adapters alone do not learn them",
                "add --lora.embedding, or train without lora.rank first",
            )
    elif config.init:
        start_from(made, config.init, store.spec)
    if config.lora.rank:
        add_adapters(made, config.lora)
    objective = SpeechObjective(made.to(run.device), layout, train.pace())
    return Trainer(run, config, objective, Material(store, train, dev, *row_counts(config)), listen)


def _checked(encode: Encode, text_size: int) -> Encode:
    """The encoder, whose ids must be those of text."""

    def ids(text: str) -> Sequence[int]:
        found = encode(text)
        if max(found) >= text_size:
            raise TokenError(
                f"text id {max(found)} of {text[:40]!r} is one of speech: model.layout.first_id is {text_size}",
                "raise model.layout.first_id, or give 0 for as many as the text has",
            )
        return found

    return ids


def row_counts(config: LlamaTTSTrainConfig) -> tuple[int, int]:
    """Rows in a step over all devices, and rows that one device takes at once."""
    block, data = config.model.block, config.data
    return max(1, data.batch_codes // block), max(1, data.micro_batch_codes // block)


def describe(config: LlamaTTSTrainConfig, spec: TokenSpec | None = None, world: int = 1) -> dict[str, Any]:
    """What a run would be, without making it.

    Args:
        config: of the run.
        spec: of the tokens; None takes 65,536 codes for the layout `single`, else codebooks of 1024, at 50 frames/s.
        world: number of devices.
    """
    model, name = config.model, config.model.layout.name
    if spec is None:
        sizes = (65_536,) if name == "single" else (1024,) * model.layout.n_q
        spec = TokenSpec(f"{sizes[0]} codes at 50 frames/s (assumed)", 16_000, 16_000, 320, sizes)
    layout = layout_from(model.layout, spec)
    with torch.device("meta"):
        parameters = SpeechLlama(model, layout.vocabulary.size).parameter_count()
    per_step, per_micro = row_counts(config)
    per_device = -(-per_step // world)
    state = parameters * 4 * (4 + (config.optim.ema_decay > 0)) / (world if config.run.shard else 1)
    positions = min(per_micro, per_device) * model.block
    # Kept for the backward pass: about 16 widths a layer and position, the mask of packed rows, and the logits.
    kept = (1 if model.recompute else 16) * model.layers * model.dim * (2 if config.run.precision == "bf16" else 4)
    return {
        "codec": spec.name,
        "parameters": parameters,
        "vocabulary": layout.vocabulary.size,
        "text_ids": model.layout.first_id,
        "layout": f"{name}, {len(layout.books)} of {spec.n_q} codebooks",
        "row_s": float(layout.frames_in(model.block) / spec.frame_rate),
        "block": model.block,
        "rows_per_step": per_step,
        "positions_per_step": per_step * model.block,
        "micro_batches": -(-per_device // per_micro),
        "devices": world,
        "steps": config.optim.steps,
        "memory_gib": (state + positions * (kept + model.block + 12 * layout.vocabulary.size)) / 2**30,
    }


def summary(facts: dict[str, Any]) -> str:
    """The facts of `describe` as a few lines of text."""
    text = f"{facts['text_ids']} of text" if facts["text_ids"] else "those of text not counted"
    split = f"{facts['devices']} device(s), {facts['micro_batches']} micro-batch(es) each"
    return "\n".join(
        [
            f"tokens      {facts['codec']}; {facts['layout']}, {facts['vocabulary']} ids, {text}",
            f"model       {facts['parameters'] / 1e6:.2f} M parameters; row {facts['block']} positions, at most "
            f"{facts['row_s']:.1f} s",
            f"step        {facts['positions_per_step']} positions = {facts['rows_per_step']} rows over {split}",
            f"steps       {facts['steps']}",
            f"memory      about {facts['memory_gib']:.2f} GiB a device",
        ]
    )
