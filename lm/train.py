"""Training a language model on stored tokens: one trainer for every layout.

A step takes a fixed number of rows of packed stretches, shared out over devices and micro-batches; its loss is the mean
over all that is predicted in it. Data order, crops, packing and dropout are functions of (seed, position), so a resumed
run, one on other devices, and an uninterrupted one train on the same.
"""

from __future__ import annotations

import contextlib
import copy
import json
import math
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from xcodec_lm.codec.runtime.ema import WeightAverage
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.runtime.run import Run, RunOptions
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.configs.lm import LMTrainConfig
from xcodec_lm.lm.examples import IGNORED, Batch, cell_logits, cell_nats, code_bits, make_batch
from xcodec_lm.lm.flops import find_peak, flops_per_position, matmul_parameters, mfu
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import END, Layout, layout_from
from xcodec_lm.lm.optimizers import make_optimizer
from xcodec_lm.lm.packing import document_mask, flex_mask, rank_rows
from xcodec_lm.lm.shards import JoinedStore, TokenStore, open_stores
from xcodec_lm.lm.stretches import Stretches
from xcodec_lm.lm.warm_start import start_from

Listen = Callable[[GPT, Layout, list[np.ndarray], Path, int], None]
"""Writes samples as audio: (model, layout, codes (MQ, T) of dev recordings, folder, steps done)."""


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
    store = _open_store(config)
    layout = layout_from(config.model.layout, store.spec)
    with Run(config, options, label) as run:
        return Trainer(run, config, store, layout, listen).fit()


class Trainer:
    """One training run.

    Args:
        run: the open run folder.
        config: of the run.
        store: the tokens.
        layout: how they become ids.
        listen: see `train`.
    """

    def __init__(
        self, run: Run, config: LMTrainConfig, store: TokenStore | JoinedStore, layout: Layout, listen: Listen | None
    ):
        self.run, self.config, self.store, self.layout, self.listen = run, config, store, layout, listen
        settings, block = config.run, config.model.block
        self.data = Stretches(store, "train", layout, block, settings.seed, config.data.pack)
        self.dev = Stretches(store, "dev", layout, block, settings.seed)
        self.per_step, self.per_micro = row_counts(config, layout)
        if not len(self.data):
            raise XcodecLMError(f"{store.folder} has no recordings of split train", "tokenize a manifest that has some")
        if self.per_step < run.world:
            raise ConfigError(
                f"data.batch_codes {config.data.batch_codes} holds {self.per_step} rows of model.block {block}, fewer "
                f"than the {run.world} devices",
                "raise data.batch_codes or use fewer devices",
            )
        if run.is_main:
            _bind_data(run.folder, store)
        say(summary(describe(config, store.spec, run.world)))
        if not len(self.dev):
            say(f"{store.folder} has no recordings of split dev: no validation")
        self.packer = self.data.packer()
        self.model = GPT(config.model, layout.vocabulary.size).to(run.device)
        if config.init:
            start_from(self.model, config.init, store.spec)
        if settings.shard:
            from xcodec_lm.lm.sharding import shard

            shard(self.model, run)
        self.optimizer = make_optimizer(self.model, config.optim)
        decay = config.optim.ema_decay
        if decay and settings.shard:
            raise ConfigError(
                "optim.ema_decay keeps whole weights, but run.shard spreads them", "leave one of them out"
            )
        self.average = WeightAverage(self.model, decay) if decay else None
        averages = {"model": self.average} if self.average else {}
        model, optimizer = self.model, self.optimizer
        if settings.shard:
            from xcodec_lm.lm.sharding import WholeModel, WholeOptimizer

            model, optimizer = WholeModel(self.model), WholeOptimizer(self.model, self.optimizer)
        run.track_state({"model": model}, {"optimizer": optimizer}, averages, lambda: {"packer": self.packer.state()})
        self._clock, self._seen = time.perf_counter(), np.zeros(2)
        self._peak: float | None = None
        self._weights = matmul_parameters(self.model, self.model.wte.weight)

    def fit(self) -> Path:
        """Trains to the last step and exports the model."""
        run, config = self.run, self.config
        done = run.resume()
        if "packer" in run.restored:
            self.packer.restore(run.restored["packer"])
        self.exported = copy.deepcopy(self.model) if self.average else self.model  # `prepare` may replace `forward`
        prepared = self.model if config.run.shard else run.accelerator.prepare_model(Cells(self.model, self.layout))
        forward = Cells(self.model, self.layout) if config.run.shard else prepared
        if config.run.compile:
            forward = torch.compile(forward)
        self._clock = time.perf_counter()
        for step in run.steps(done):
            metrics = self._step(step, forward)
            if len(self.dev) and run.due(step, config.run.eval_every):
                metrics |= self._validate(step)
            if run.due(step, config.run.log_every) or "eval/bits" in metrics:
                metrics |= self._speed()
                run.log(step, metrics, show=tuple(name for name in ("loss", "eval/bits") if name in metrics))
            done = step + 1
        if self.average:
            self.average.copy_to(self.exported)
        facts = {"codec": _codec_facts(run.folder, self.store), "steps": done}
        if config.run.shard:
            from xcodec_lm.lm.sharding import gathered

            self.exported = gathered(self.exported, config.model, self.layout.vocabulary.size)
        if run.is_main:
            self.exported.save_pretrained(run.model_folder, facts)
        run.accelerator.wait_for_everyone()
        return run.folder

    def _step(self, step: int, forward: Any) -> dict[str, float]:
        run, config, optim = self.run, self.config, self.config.optim
        rows = rank_rows(self.packer.take(self.per_step), run.rank, run.world)
        groups = [rows[i : i + self.per_micro] for i in range(0, len(rows), self.per_micro)]
        batches = [self.data.batch(list(group)) for group in groups]
        counted = torch.tensor(sum(int((batch.targets != IGNORED).sum()) for batch in batches), device=run.device)
        total = int(_over_devices(run, counted))
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr_at(step) * group.get("lr_scale", 1)
        self.model.train()
        books = len(self.layout.books)
        sums = torch.zeros(2, books + 1, device=run.device, dtype=torch.float64)  # nats and counts; eos is the last
        for index, batch in enumerate(batches):
            if config.model.dropout:
                torch.manual_seed(derive_seed(config.run.seed, "dropout", step, groups[index][0][0]))
            batch = batch.to(run.device)
            with self._sync_only_if(forward, index == len(batches) - 1), run.accelerator.autocast():
                nats = forward(batch.inputs, batch.targets, *self._attention(batch))
                # Data-parallel training averages gradients over devices, hence the factor.
                run.accelerator.backward(nats.sum() * (run.world / total))
            owners = torch.where(batch.rows == END, books, batch.rows)
            held = owners >= 0
            sums[0].index_add_(0, owners[held], nats.detach()[held].double())
            sums[1].index_add_(0, owners[held], torch.ones_like(nats.detach()[held]).double())
            lengths = batch.places.max(dim=1).values + 1 if batch.document is None else None
            self._seen += self._work(batch, lengths)
        norm = self._clip()
        sums = cast(Tensor, _over_devices(run, sums.float())).double()
        loss = float(sums[0].sum()) / total
        run.check_finite(step, loss if math.isfinite(norm) else norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.average:
            self.average.update(self.model)
        metrics = {"loss": loss, "bits": loss / math.log(2), "lr": optim.lr_at(step), "grad_norm": norm}
        if books > 1:
            each = (sums[0] / sums[1].clamp(min=1) / math.log(2)).tolist()
            metrics |= {f"bits_q{book + 1}": each[row] for row, book in enumerate(self.layout.books)}
        return metrics

    def _clip(self) -> float:
        norm = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.max_grad_norm)
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        return float(norm)

    def _attention(self, batch: Batch) -> tuple[Tensor | None, Any]:
        """Positions and mask of rows that hold several stretches."""
        if batch.document is None:
            return None, None
        if self.run.device.type == "cuda" and self.config.run.compile:
            return batch.places, flex_mask(batch.document)
        return batch.places, document_mask(batch.document)

    def _sync_only_if(self, forward: Any, last: bool) -> Any:
        """Exchanges gradients between devices after the last micro-batch alone."""
        if last or self.config.run.shard:
            return contextlib.nullcontext()
        return self.run.accelerator.no_sync(forward)

    # ------------------------------------------------------------------ what is said

    def _work(self, batch: Batch, lengths: Tensor | None) -> np.ndarray:
        """Codes predicted, and operations that the model needs for them."""
        config = self.config.model
        if batch.document is None:
            positions = batch.inputs.shape[0] * batch.inputs.shape[1]
            attended = float(batch.inputs.shape[1])
        else:
            held = batch.document >= 0
            positions = int(held.sum())
            # A position's stretch is as long as its last place says; sum(l^2) / sum(l).
            attended = float(2 * batch.places[held].double().mean() + 1)
        flops = positions * flops_per_position(self._weights, config.layers, config.dim, attended)
        return np.array([float((batch.rows >= 0).sum()), flops])

    def _speed(self) -> dict[str, float]:
        """Codes a second and the share of the devices' peak, since the last time."""
        run, now = self.run, time.perf_counter()
        if self._peak is None:
            dtype = torch.bfloat16 if self.config.run.precision == "bf16" else torch.float32
            self._peak, _ = find_peak(run.device, dtype)
            now = time.perf_counter() if now - self._clock < 1e-3 else now
        seconds, seen = max(now - self._clock, 1e-9), torch.tensor(self._seen, device=run.device)
        codes, flops = _over_devices(run, seen.float()).tolist()
        self._clock, self._seen = time.perf_counter(), np.zeros(2)
        return {
            "speed/codes_per_s": codes / seconds,
            "speed/mfu": mfu(flops, seconds, self._peak * run.world),
            "speed/row_fill": self.packer.fill,
        }

    def _validate(self, step: int) -> dict[str, float]:
        run = self.run
        if self.average:
            self.average.copy_to(self.exported)
        bits = evaluate(run, self.exported, self.dev, self.per_micro, self.config.data.eval_batches)
        rate = float(self.store.spec.frame_rate)
        metrics = {"eval/bits": float(bits.mean()), "eval/bits_per_s": float(bits.sum()) * rate}
        if len(bits) > 1:
            metrics |= {f"eval/bits_q{book + 1}": float(bits[row]) for row, book in enumerate(self.layout.books)}
        if self.listen is not None and self.config.run.samples and not self.config.run.shard and run.is_main:
            slots = np.linspace(0, len(self.dev) - 1, self.config.run.samples).round().astype(int)
            documents = [self.store.codes(int(self.dev.slots[slot])).T for slot in dict.fromkeys(slots.tolist())]
            self.exported.eval()
            self.listen(self.exported, self.layout, documents, run.folder / "samples", step + 1)
        return metrics


class Cells(torch.nn.Module):
    """A model and its loss as one module, so that data parallelism and compilation see one forward pass.

    Args:
        model: the language model.
        layout: of its ids.
    """

    def __init__(self, model: GPT, layout: Layout):
        super().__init__()
        self.model, self.layout = model, layout

    def forward(self, inputs: Tensor, targets: Tensor, places: Tensor | None, mask: Any) -> Tensor:
        """(B, L, W) nats of every cell; 0 where there is nothing to predict."""
        return cell_nats(self.layout, cell_logits(self.model, self.layout, inputs, targets, places, mask), targets)


@torch.no_grad()
def evaluate(run: Run, model: GPT, dev: Stretches, per_micro: int, most_batches: int) -> np.ndarray:
    """Bits per code of each codebook (R,), on stretches of the dev split, spread evenly over it when it is larger than
    `most_batches`."""
    count = min(len(dev), most_batches * per_micro)
    slots = np.unique(np.linspace(0, len(dev) - 1, count).round().astype(int)).tolist()[run.rank :: run.world]
    model.eval()
    sums = torch.zeros(2, len(dev.layout.books), dtype=torch.float64, device=run.device)
    for i in range(0, len(slots), per_micro):
        examples = [example for slot in slots[i : i + per_micro] if len(example := dev.fixed(slot))]
        if not examples:
            continue
        batch = make_batch(dev.layout, [[example] for example in examples]).to(run.device)
        with run.accelerator.autocast():
            logits = cell_logits(model, dev.layout, batch.inputs, batch.targets)
        bits = code_bits(dev.layout, logits, batch)
        held = batch.rows >= 0
        sums[0].index_add_(0, batch.rows[held], bits[held].double())
        sums[1].index_add_(0, batch.rows[held], torch.ones_like(bits[held]).double())
    sums = _over_devices(run, sums.float()).double()
    return (sums[0] / sums[1].clamp(min=1)).cpu().numpy()


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


def _over_devices(run: Run, value: Tensor) -> Tensor:
    """The sum of a tensor over all devices."""
    return cast(Tensor, run.accelerator.reduce(value, "sum"))


def _open_store(config: LMTrainConfig) -> TokenStore | JoinedStore:
    if not config.data.tokens:
        raise ConfigError(
            "data.tokens is not set", "give a token store: --data.tokens FOLDER (xcodec-lm data tokenize makes one)"
        )
    return open_stores(config.data.tokens)


def _bind_data(folder: Path, store: TokenStore | JoinedStore) -> None:
    """Notes which tokens a run is trained on, and refuses to go on with others."""
    facts = {"fingerprint": store.spec.fingerprint, "recordings": len(store), "digest": store.digest()}
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


def _codec_facts(folder: Path, store: TokenStore | JoinedStore) -> dict[str, Any]:
    """What a model's config.json says of its codec; a folder is named relative to the run, so that both can move."""
    path = store.codec
    if path is not None and Path(path).exists():
        path = os.path.relpath(Path(path).resolve(), folder.resolve())
    return {"fingerprint": store.spec.fingerprint, "path": path, "spec": store.spec.to_dict()}
