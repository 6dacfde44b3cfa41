"""Training a decoder over a token layout: what the run is, and its parts for the trainer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.runtime.run import Run, RunOptions
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.lm import LMTrainConfig
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import Layout, layout_from
from xcodec_lm.lm.objective import Cells, Material
from xcodec_lm.lm.shards import JoinedStore, TokenStore
from xcodec_lm.lm.stretches import Stretches
from xcodec_lm.lm.trainer import Listen, Trainer, open_tokens
from xcodec_lm.lm.warm_start import start_from


def train(config: LMTrainConfig, options: RunOptions, label: str = "music", listen: Listen | None = None) -> Path:
    """Trains a language model, or goes on with it.

    Args:
        config: model, data, optimizer, run.
        options: folder, device, resume.
        label: what the progress line calls it.
        listen: writes samples at every validation; a language model alone does not know how tokens sound.

    Returns:
        The run folder; `model/` in it holds the model, and names the codec whose tokens it speaks.

    Raises:
        XcodecLMError: no usable token store, another run in the folder, or a loss that is not finite.
    """
    store = open_tokens(config.data.tokens)
    with Run(config, options, label) as run:
        say(summary(describe(config, store.spec, run.world)))
        return make_trainer(run, config, store, listen).fit()


def make_trainer(
    run: Run, config: LMTrainConfig, store: TokenStore | JoinedStore, listen: Listen | None = None
) -> Trainer:
    """The trainer of a run over all that the store holds."""
    layout = layout_from(config.model.layout, store.spec)
    seed, block = config.run.seed, config.model.block
    per_step, per_micro = row_counts(config, layout)
    material = Material(
        store,
        Stretches(store, "train", layout, block, seed, config.data.pack),
        Stretches(store, "dev", layout, block, seed),
        per_step,
        per_micro,
    )
    model = GPT(config.model, layout.vocabulary.size).to(run.device)
    if config.init:
        start_from(model, config.init, store.spec)
    return Trainer(run, config, Cells(model, layout), material, listen)


def describe(config: LMTrainConfig, spec: TokenSpec | None = None, world: int = 1) -> dict[str, Any]:
    """What a run would be, without making it.

    Args:
        config: the run.
        spec: of the tokens; None takes that of `data.tokens`, or, without one, codebooks of 1024 codes at 50 frames/s.
        world: number of devices.

    Returns:
        Plain values; `summary` makes text of them.

    Raises:
        XcodecLMError: the store cannot be opened, or the layout does not fit it.
    """
    if spec is None and config.data.tokens:
        spec = open_tokens(config.data.tokens).spec
    assumed = spec is None
    name = config.model.layout.name
    spec = spec or TokenSpec(
        "65,536 codes at 50 frames/s" if name == "single" else "1024 codes at 50 frames/s",
        16_000, 16_000, 320,
        (65_536,) if name == "single" else (1024,) * config.model.layout.n_q,
        ("vocal", "accompaniment") if name == "dual_track" else ("mix",),
    )  # fmt: skip
    layout = layout_from(config.model.layout, spec)
    with torch.device("meta"):
        model = GPT(config.model, layout.vocabulary.size)
    parameters = model.parameter_count()
    per_step, per_micro = row_counts(config, layout)
    frames = layout.frames_in(config.model.block)
    per_device = -(-per_step // world)
    # Weights, gradients and two moments, all fp32, and the average if there is one.
    state = parameters * 4 * (4 + (config.optim.ema_decay > 0)) / (world if config.run.shard else 1)
    # Kept for the backward pass: about 16 widths a layer and position (half as many bytes under bf16), and the logits.
    positions = min(per_micro, per_device) * (config.model.block + layout.lead)
    kept = 1 if config.model.recompute else 16
    width = kept * config.model.layers * config.model.dim * (2 if config.run.precision == "bf16" else 4)
    activations = positions * (width + 12 * layout.vocabulary.size)
    return {
        "codec": spec.name,
        "codec_assumed": assumed,
        "parameters": parameters,
        "vocabulary": layout.vocabulary.size,
        "layout": f"{layout.name}, {len(layout.books)} of {spec.n_q * len(spec.tracks)} codebooks, "
        f"{layout.width} id(s) a step, {config.model.layout.ids} ids",
        "row_codes": frames * len(layout.books),
        "row_s": float(frames / spec.frame_rate),
        "steps": config.optim.steps,
        "rows_per_step": per_step,
        "codes_per_step": per_step * frames * len(layout.books),
        "micro_batches": -(-per_device // per_micro),
        "devices": world,
        "memory_gib": (state + activations) / 2**30,
    }


def dry_run(config: LMTrainConfig) -> str:
    """What a run of this configuration would need on one device, without making it."""
    return summary(describe(config))


def summary(facts: dict[str, Any]) -> str:
    """The facts of `describe` as a few lines of text."""
    codec = facts["codec"] + (" (assumed: data.tokens is not set)" if facts["codec_assumed"] else "")
    row = f"{facts['row_codes']} codes = {facts['row_s']:.1f} s"
    split = f"{facts['devices']} device(s), {facts['micro_batches']} micro-batch(es) each"
    return "\n".join(
        [
            f"tokens      {codec}; {facts['layout']}, {facts['vocabulary']} ids",
            f"model       {facts['parameters'] / 1e6:.2f} M parameters; row {row}",
            f"step        {facts['codes_per_step']} codes = {facts['rows_per_step']} rows over {split}",
            f"steps       {facts['steps']}",
            f"memory      about {facts['memory_gib']:.2f} GiB a device",
        ]
    )


def row_counts(config: LMTrainConfig, layout: Layout) -> tuple[int, int]:
    """Rows in a step over all devices, and rows that one device takes at once."""
    row = max(1, layout.frames_in(config.model.block) * len(layout.books))
    return max(1, config.data.batch_codes // row), max(1, config.data.micro_batch_codes // row)
