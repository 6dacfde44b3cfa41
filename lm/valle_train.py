"""Training VALL-E: the losses of AR and NAR, and a run of either."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.runtime.run import Run, RunOptions
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.configs.tts import Stage, TTSTrainConfig
from xcodec_lm.lm.examples import IGNORED, cell_nats, code_bits, known_steps
from xcodec_lm.lm.layouts import Layout
from xcodec_lm.lm.objective import Material, Objective
from xcodec_lm.lm.shards import JoinedStore, TokenStore
from xcodec_lm.lm.speech import Encode, SpeechBatch, Utterances
from xcodec_lm.lm.trainer import Listen, Trainer, open_tokens
from xcodec_lm.lm.valle_ar import ValleAR, ar_layout
from xcodec_lm.lm.valle_blocks import full_mask, prefix_mask
from xcodec_lm.lm.valle_nar import ValleNAR
from xcodec_lm.lm.warm_start import start_from


class ARObjective(Objective):
    """Cross entropy of the first codebook and of the end.

    Args:
        model: the AR.
        layout: of its ids.
        pace: frames for each symbol of text, of the training data: least, usual, most.
        guidable: whether it is trained without text as well.
    """

    model: ValleAR

    def __init__(self, model: ValleAR, layout: Layout, pace: dict[str, float], guidable: bool = False):
        super().__init__(model, layout.books)
        self.layout, self.facts = layout, {"pace": pace, "guidable": guidable}

    def empty(self) -> ValleAR:
        """See `Objective.empty`."""
        with torch.device("meta"):
            return ValleAR(self.model.config)

    def prepare(self, batch: SpeechBatch, flex: bool = False) -> tuple[Any, ...]:
        """Inputs, targets, which positions are text, places and mask."""
        return batch.inputs, batch.targets, batch.text, batch.places, prefix_mask(batch.document, batch.text)

    def forward(self, inputs: Tensor, targets: Tensor, text: Tensor, places: Tensor, mask: Tensor) -> Tensor:
        """(B, L, W) nats."""
        return cell_nats(self.layout, self._logits(self.model, inputs, targets, text, places, mask), targets)

    def bits(self, model: nn.Module, batch: SpeechBatch) -> Tensor:
        """See `Objective.bits`."""
        return code_bits(self.layout, self._logits(model, *self.prepare(batch)), batch)

    def _logits(
        self, model: Any, inputs: Tensor, targets: Tensor, text: Tensor, places: Tensor, mask: Tensor
    ) -> list[Tensor]:
        hidden = model.read_rows(inputs, text, places, mask)
        return model.slot_logits(hidden, self.layout, known_steps(self.layout, targets))


class NARObjective(Objective):
    """Cross entropy of the book that each document's stage predicts.

    Args:
        model: the NAR.
    """

    model: ValleNAR

    def __init__(self, model: ValleNAR):
        super().__init__(model, range(1, model.config.n_q))

    def empty(self) -> ValleNAR:
        """See `Objective.empty`."""
        with torch.device("meta"):
            return ValleNAR(self.model.config)

    def prepare(self, batch: SpeechBatch, flex: bool = False) -> tuple[Any, ...]:
        """Inputs, targets, which positions are text, places, mask, stages and what is given."""
        mask = full_mask(batch.document)
        return batch.inputs, batch.targets, batch.text, batch.places, mask, batch.stage, batch.given

    def forward(
        self, inputs: Tensor, targets: Tensor, text: Tensor, places: Tensor, mask: Tensor, stage: Tensor, given: Tensor
    ) -> Tensor:
        """(B, L, 1) nats."""
        return self._nats(self.model, inputs, targets, text, places, mask, stage, given)

    def bits(self, model: nn.Module, batch: SpeechBatch) -> Tensor:
        """See `Objective.bits`."""
        return self._nats(model, *self.prepare(batch)) / torch.log(torch.tensor(2.0))

    def _nats(
        self, model: Any, inputs: Tensor, targets: Tensor, text: Tensor, places: Tensor, mask: Tensor, stage: Tensor,
        given: Tensor,
    ) -> Tensor:  # fmt: skip
        logits = model.read_rows(inputs[..., 0], inputs, text, places, mask, stage, given)  # (B, L, K)
        flat = F.cross_entropy(logits.float().flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="none")
        return flat.view(targets.shape)


def train_stage(
    config: TTSTrainConfig, options: RunOptions, stage: Stage, encode: Encode, text_size: int,
    listen: Listen | None = None,
) -> Path:  # fmt: skip
    """Trains the AR or the NAR, or goes on with it.

    Args:
        config: of the whole; `of_stage` is applied.
        options: folder of this stage's run, device, resume.
        stage: which of the two.
        encode: text as ids.
        text_size: ids that it may give.
        listen: writes samples at every validation.

    Returns:
        The run folder.

    Raises:
        XcodecLMError: no usable token store, another run in the folder, or a loss that is not finite.
    """
    config = config.of_stage(stage)
    store = open_tokens(config.data.tokens)
    if text_size > config.model.text_size:
        raise ConfigError(
            f"model.text_size {config.model.text_size} is below the {text_size} symbols of the texts",
            "raise model.text_size",
        )
    with Run(config, options, f"tts {stage}") as run:
        trainer = make_trainer(run, config, store, stage, encode, listen)
        say(summary(describe(config, stage, store.spec, run.world)))
        for name, part in (("train", trainer.material.train), ("dev", trainer.material.dev)):
            assert isinstance(part, Utterances)
            say(f"{name:<12}{part.summary()}")
            if run.is_main and part.left_out:
                path = run.folder / f"left_out_{name}.json"
                path.write_text(json.dumps(part.left_out, indent=1) + "\n", encoding="utf-8")
        return trainer.fit()


def make_trainer(
    run: Run, config: TTSTrainConfig, store: TokenStore | JoinedStore, stage: Stage, encode: Encode,
    listen: Listen | None = None,
) -> Trainer:  # fmt: skip
    """The trainer of a run over all utterances that the store holds."""
    model, data = config.model, config.data
    layout = ar_layout(model, store.spec)
    parts = [
        Utterances(
            store, split, encode, layout, stage, model.n_q, model.block, data, config.run.seed, model.text_over_speech
        )
        for split in ("train", "dev")
    ]
    if not len(parts[0]):
        raise XcodecLMError(
            f"{store.folder} has no utterance to train on: {parts[0].summary()}",
            "tokenize a manifest with the field text",
        )
    per_step, per_micro = row_counts(config)
    material = Material(store, parts[0], parts[1], per_step, per_micro)
    if stage == "ar" and not model.text_pace:
        config = replace(config, model=replace(model, text_pace=round(parts[0].unit_frames() / model.group, 2)))
    made = make_model(config, stage).to(run.device)
    if config.init:
        start_from(made, Path(config.init) / stage, store.spec)
    if isinstance(made, ValleAR):
        return Trainer(run, config, ARObjective(made, layout, parts[0].pace(), data.no_text > 0), material, listen)
    return Trainer(run, config, NARObjective(made), material, listen)


def make_model(config: TTSTrainConfig, stage: Stage) -> ValleAR | ValleNAR:
    """The untrained model of a stage."""
    return ValleAR(config.model) if stage == "ar" else ValleNAR(config.model)


def row_counts(config: TTSTrainConfig) -> tuple[int, int]:
    """Rows in a step over all devices, and rows that one device takes at once."""
    block, data = config.model.block, config.data
    return max(1, data.batch_codes // block), max(1, data.micro_batch_codes // block)


def describe(config: TTSTrainConfig, stage: Stage, spec: TokenSpec | None = None, world: int = 1) -> dict[str, Any]:
    """What a run would be, without making it.

    Args:
        config: of the stage.
        stage: which.
        spec: of the tokens; None takes codebooks of 1024 codes at 50 frames/s.
        world: number of devices.
    """
    model = config.model
    spec = spec or TokenSpec("1024 codes at 50 frames/s (assumed)", 16_000, 16_000, 320, (1024,) * model.n_q)
    with torch.device("meta"):
        made = make_model(config, stage)
    parameters = sum(parameter.numel() for parameter in made.parameters())
    per_step, per_micro = row_counts(config)
    per_device = -(-per_step // world)
    state = parameters * 4 * (4 + (config.optim.ema_decay > 0)) / (world if config.run.shard else 1)
    # About 16 widths a layer and position are kept for the backward pass, and the attention mask.
    positions = min(per_micro, per_device) * model.block
    width = 16 * model.layers * model.dim * (2 if config.run.precision == "bf16" else 4)
    return {
        "codec": spec.name,
        "stage": stage,
        "parameters": parameters,
        "books": 1 if stage == "ar" else model.n_q - 1,
        "positions_per_step": per_step * model.block,
        "rows_per_step": per_step,
        "block": model.block,
        "micro_batches": -(-per_device // per_micro),
        "devices": world,
        "steps": config.optim.steps,
        "memory_gib": (state + positions * (width + model.block + 12 * spec.codebook_sizes[0])) / 2**30,
    }


def summary(facts: dict[str, Any]) -> str:
    """The facts of `describe` as a few lines of text."""
    what = {"ar": "the first codebook", "nar": f"{facts['books']} further codebooks"}[facts["stage"]]
    split = f"{facts['devices']} device(s), {facts['micro_batches']} micro-batch(es) each"
    return "\n".join(
        [
            f"tokens      {facts['codec']}; the {facts['stage'].upper()} predicts {what}",
            f"model       {facts['parameters'] / 1e6:.2f} M parameters; row {facts['block']} positions",
            f"step        {facts['positions_per_step']} positions = {facts['rows_per_step']} rows over {split}",
            f"steps       {facts['steps']}",
            f"memory      about {facts['memory_gib']:.2f} GiB a device",
        ]
    )
