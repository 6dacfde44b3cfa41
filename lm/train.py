"""The trainer of every language model over tokens.

A step takes windows of `block` codes from random recordings of the store's train split. Windows begin with a frame and
never cross recordings; shorter recordings are padded, and padding has no loss. Order, crops and dropout are functions
of (seed, step, item), and the loss is the mean over the targets of all devices and micro-batches, so a step means the
same on any number of devices, and a run that was killed goes on exactly.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
import math
import os
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from xcodec_lm.codec.runtime.ema import WeightAverage
from xcodec_lm.codec.runtime.order import DataOrder, derive_seed, generator
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.runtime.run import Run, RunOptions
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.configs.lm import LMTrainConfig
from xcodec_lm.lm.anchors import window_bits
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import IGNORED, Layout, layout_from
from xcodec_lm.lm.shards import TokenStore

Batch = tuple[Tensor, Tensor]
"""Inputs and targets (B, L)."""


class Windows:
    """Windows of the recordings of one split.

    Args:
        store: the tokens.
        split: name of the split.
        layout: how codes become ids.
        block: most codes in a window.
        seed: of order and crops.
    """

    def __init__(self, store: TokenStore, split: str, layout: Layout, block: int, seed: int):
        self.store, self.layout, self.seed = store, layout, seed
        self.frames = block // layout.ids_per_frame
        documents = np.array(store.split(split), dtype=np.int64)
        lengths = np.array([store.rows[index]["frames"] for index in documents], dtype=np.int64)
        # One slot for every window's worth of a recording, so that an epoch sees all of it about once.
        counts = -(-lengths // self.frames)
        self.slots = np.repeat(documents, counts)
        self.firsts = np.concatenate([np.arange(n) * self.frames for n in counts]) if len(counts) else counts
        self._order: DataOrder | None = None

    def __len__(self) -> int:
        return len(self.slots)

    def random(self, position: int) -> Batch:
        """The window at a position of the endless random sequence: a slot's recording, cropped at random."""
        if self._order is None:
            self._order = DataOrder(len(self.slots), self.seed)
        document = int(self.slots[self._order[position]])
        spare = self.store.rows[document]["frames"] - self.frames
        start = 0
        if spare > 0:
            start = int(torch.randint(spare + 1, (), generator=generator(self.seed, "crop", position)))
        return self._example(document, start)

    def fixed(self, slot: int) -> Batch:
        """The window of a slot, for validation: all slots together predict every code once."""
        start = int(self.firsts[slot])
        inputs, targets = self._example(int(self.slots[slot]), start)
        if start and self.layout.lead:
            targets[: self.layout.lead] = IGNORED  # the window before predicts this code, with more to see than bos
        return inputs, targets

    def _example(self, document: int, start: int) -> Batch:
        stored = self.store.codes(document)[start : start + self.frames + 1]  # one frame more, for the last target
        return self.layout.example(self.layout.pack_frames(stored), 0, self.frames * self.layout.ids_per_frame)


def train(config: LMTrainConfig, options: RunOptions, label: str = "music") -> Path:
    """Trains a language model, or goes on with it.

    Args:
        config: model, data, optimizer, run.
        options: folder, device, resume.
        label: what the progress line calls it.

    Returns:
        The run folder; `model/` in it holds the model, and names the codec whose tokens it speaks.

    Raises:
        XcodecLMError: no usable token store, another run in the folder, or a loss that is not finite.
    """
    store = _open_store(config)
    layout = layout_from(config.model.layout, store.spec)
    with Run(config, options, label) as run:
        settings, optim = config.run, config.optim
        data = Windows(store, "train", layout, config.model.block, settings.seed)
        dev = Windows(store, "dev", layout, config.model.block, settings.seed)
        per_step, per_micro = _window_counts(config, layout)
        if not len(data):
            raise XcodecLMError(f"{store.folder} has no recordings of split train", "tokenize a manifest that has some")
        if per_step < run.world:
            raise ConfigError(
                f"data.batch_codes {config.data.batch_codes} holds {per_step} windows of model.block "
                f"{config.model.block}, fewer than the {run.world} devices",
                "raise data.batch_codes or use fewer devices",
            )
        if run.is_main:
            _bind_data(run.folder, store)
        say(summary(describe(config, store.spec, run.world)))
        if not len(dev):
            say(f"{store.folder} has no recordings of split dev: no validation")

        model = GPT(config.model, layout.vocabulary.size).to(run.device)
        optimizer = make_optimizer(model, config)
        average = WeightAverage(model, optim.ema_decay) if optim.ema_decay else None
        run.track_state({"model": model}, {"optimizer": optimizer}, {"model": average} if average else {})
        done = run.resume()
        exported = copy.deepcopy(model) if average else model  # before `prepare`, which may replace `forward`
        prepared = run.accelerator.prepare(model)

        for step in run.steps(done):
            items = range(step * per_step + run.rank, (step + 1) * per_step, run.world)
            groups = [items[i : i + per_micro] for i in range(0, len(items), per_micro)]
            batches = [layout.batch([data.random(item) for item in group]) for group in groups]
            counted = torch.tensor(sum(int((targets != IGNORED).sum()) for _, targets in batches), device=run.device)
            total = int(_over_devices(run, counted))
            for group in optimizer.param_groups:
                group["lr"] = optim.lr_at(step)
            model.train()
            loss_sum = torch.zeros((), device=run.device)
            for index, batch in enumerate(batches):
                if config.model.dropout:
                    torch.manual_seed(derive_seed(settings.seed, "dropout", step, groups[index][0]))
                with _sync_only_if(run, prepared, index == len(batches) - 1):
                    loss = _loss(prepared, batch, run.device)
                    # Data-parallel training averages gradients over devices, hence the factor.
                    run.accelerator.backward(loss * (run.world / total))
                loss_sum += loss.detach()
            norm = run.accelerator.clip_grad_norm_(prepared.parameters(), optim.clip_norm)
            norm = torch.zeros(()) if norm is None else norm
            loss_value = float(_over_devices(run, loss_sum)) / total
            run.check_finite(step, loss_value)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average:
                average.update(model)

            metrics: dict[str, float] = {}
            if run.due(step, settings.log_every):
                metrics = {
                    "loss": loss_value,
                    "bits": loss_value / math.log(2),
                    "lr": optim.lr_at(step),
                    "grad_norm": float(norm),
                }
            if len(dev) and run.due(step, settings.eval_every):
                if average:
                    average.copy_to(exported)
                metrics["eval/bits"] = evaluate(run, exported, dev, per_micro, config.data.eval_batches)
            if metrics:
                run.log(step, metrics, show=tuple(name for name in ("loss", "eval/bits") if name in metrics))
            done = step + 1

        if run.is_main:
            if average:
                average.copy_to(exported)
            exported.save_pretrained(run.model_folder, {"codec": _codec_facts(run.folder, store), "steps": done})
        run.accelerator.wait_for_everyone()
    return options.out


@torch.no_grad()
def evaluate(run: Run, model: GPT, dev: Windows, per_micro: int, most_batches: int) -> float:
    """Bits per token on windows of the dev split, spread evenly over it when it is larger than `most_batches`.

    A recording's first code is left out in a vocabulary without bos, where nothing predicts it.
    """
    count = min(len(dev), most_batches * per_micro)
    slots = np.unique(np.linspace(0, len(dev) - 1, count).round().astype(int)).tolist()[run.rank :: run.world]
    model.eval()
    sums = torch.zeros(2, dtype=torch.float64)
    for i in range(0, len(slots), per_micro):
        inputs, targets = dev.layout.batch([dev.fixed(slot) for slot in slots[i : i + per_micro]])
        with run.accelerator.autocast():
            bits = window_bits(model, dev.layout, inputs, targets)
        is_code = (targets >= 0) & (targets < dev.layout.vocabulary.codes)
        sums += torch.tensor([float(bits.double().sum()), float(is_code.sum())], dtype=torch.float64)
    bits_sum, count = _over_devices(run, sums.to(run.device, torch.float32)).tolist()
    return bits_sum / count


def make_optimizer(model: GPT, config: LMTrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and embeddings, not biases and norms."""
    optim = config.optim
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)


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
        spec = _open_store(config).spec
    assumed = spec is None
    spec = spec or TokenSpec("1024 codes at 50 frames/s", 16_000, 16_000, 320, (1024,) * config.model.layout.n_q)
    layout = layout_from(config.model.layout, spec)
    with torch.device("meta"):
        model = GPT(config.model, layout.vocabulary.size)
    parameters = model.parameter_count()
    per_step, per_micro = _window_counts(config, layout)
    window = config.model.block // layout.ids_per_frame * layout.ids_per_frame
    per_device = -(-per_step // world)
    # Weights, gradients and two moments, all fp32, and the average if there is one.
    state = parameters * 4 * (4 + (config.optim.ema_decay > 0))
    # Kept for the backward pass: about 16 widths a layer and position (half as many bytes under bf16), and the logits.
    positions = min(per_micro, per_device) * (window + layout.lead)
    width = 16 * config.model.layers * config.model.dim * (2 if config.run.precision == "bf16" else 4)
    activations = positions * (width + 12 * layout.vocabulary.size)
    return {
        "codec": spec.name,
        "codec_assumed": assumed,
        "parameters": parameters,
        "vocabulary": layout.vocabulary.size,
        "layout": f"{layout.name}, n_q {layout.n_q}, {config.model.layout.ids} ids",
        "window_codes": window,
        "window_s": float(window / layout.ids_per_frame / spec.frame_rate),
        "steps": config.optim.steps,
        "windows_per_step": per_step,
        "codes_per_step": per_step * window,
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
    window = f"{facts['window_codes']} codes = {facts['window_s']:.1f} s"
    split = f"{facts['devices']} device(s), {facts['micro_batches']} micro-batch(es) each"
    return "\n".join(
        [
            f"tokens      {codec}; {facts['layout']}, {facts['vocabulary']} ids",
            f"model       {facts['parameters'] / 1e6:.2f} M parameters; window {window}",
            f"step        {facts['codes_per_step']} codes = {facts['windows_per_step']} windows over {split}",
            f"steps       {facts['steps']}",
            f"memory      about {facts['memory_gib']:.2f} GiB a device",
        ]
    )


def _loss(model: torch.nn.Module, batch: Batch, device: torch.device) -> Tensor:
    """Cross entropy in nats, summed over the targets that exist."""
    inputs, targets = (tensor.to(device) for tensor in batch)
    logits = model(inputs).float()  # (B, L, V)
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED, reduction="sum")


def _over_devices(run: Run, value: Tensor) -> Tensor:
    """The sum of a tensor over all devices."""
    return cast(Tensor, run.accelerator.reduce(value, "sum"))


def _sync_only_if(run: Run, model: torch.nn.Module, last: bool) -> Any:
    """Exchanges gradients between devices after the last micro-batch alone."""
    return contextlib.nullcontext() if last else run.accelerator.no_sync(model)


def _window_counts(config: LMTrainConfig, layout: Layout) -> tuple[int, int]:
    """Windows in a step over all devices, and windows that one device takes at once."""
    window = config.model.block // layout.ids_per_frame * layout.ids_per_frame
    return max(1, config.data.batch_codes // window), max(1, config.data.micro_batch_codes // window)


def _open_store(config: LMTrainConfig) -> TokenStore:
    if not config.data.tokens:
        raise ConfigError(
            "data.tokens is not set", "give a token store: --data.tokens FOLDER (xcodec-lm data tokenize makes one)"
        )
    return TokenStore.open(config.data.tokens)


def _bind_data(folder: Path, store: TokenStore) -> None:
    """Notes which tokens a run is trained on, and refuses to go on with others."""
    rows = (store.folder / "rows.jsonl").read_bytes()
    facts = {
        "fingerprint": store.spec.fingerprint,
        "recordings": len(store),
        "rows_sha256": hashlib.sha256(rows).hexdigest(),
    }
    path = folder / "data.json"
    if (folder / "checkpoints").is_dir() and path.is_file():
        old = json.loads(path.read_text(encoding="utf-8"))
        if old != facts:
            raise XcodecLMError(
                f"{store.folder} is not the token store that {folder} was begun with: "
                f"{old['recordings']} recordings then, {len(store)} now, or other codes",
                "give that store, or choose another --out",
            )
    path.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _codec_facts(folder: Path, store: TokenStore) -> dict[str, Any]:
    """What a model's config.json says of its codec; a folder is named relative to the run, so that both can move."""
    path = store.codec
    if path is not None and Path(path).exists():
        path = os.path.relpath(Path(path).resolve(), folder.resolve())
    return {"fingerprint": store.spec.fingerprint, "path": path, "spec": store.spec.to_dict()}
