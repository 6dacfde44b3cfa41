"""The trainer of every language model.

A step takes a fixed number of rows of packed examples, shared out over devices and micro-batches; its loss is the mean
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
from torch import Tensor, nn

from xcodec_lm.codec.runtime.ema import WeightAverage
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.runtime.run import Run
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.lm.examples import IGNORED
from xcodec_lm.lm.flops import find_peak, flops_per_position, mfu
from xcodec_lm.lm.layouts import END
from xcodec_lm.lm.objective import Examples, Material, Objective
from xcodec_lm.lm.optimizers import make_optimizer
from xcodec_lm.lm.packing import rank_rows
from xcodec_lm.lm.shards import JoinedStore, TokenStore, open_stores

Listen = Callable[[Any, list[int], Path, int], None]
"""Writes samples as audio: (model in eval mode, dev recordings of the store, folder, steps done)."""


class Trainer:
    """One training run.

    Args:
        run: the open run folder.
        config: of the run: `model` with `layers` and `dim`, and the groups `data`, `optim`, `run`.
        objective: model and loss, on the run's device.
        material: what it trains on.
        listen: writes samples at every validation; a language model alone does not know how tokens sound.
    """

    def __init__(self, run: Run, config: Any, objective: Objective, material: Material, listen: Listen | None = None):
        self.run, self.config, self.objective, self.material, self.listen = run, config, objective, material, listen
        settings, store = config.run, material.store
        if not len(material.train):
            raise XcodecLMError(f"{store.folder} has no recordings of split train", "tokenize a manifest that has some")
        if material.per_step < run.world:
            raise ConfigError(
                f"data.batch_codes {config.data.batch_codes} holds {material.per_step} rows of model.block "
                f"{config.model.block}, fewer than the {run.world} devices",
                "raise data.batch_codes or use fewer devices",
            )
        if run.is_main:
            _bind_data(run.folder, store)
        if not len(material.dev):
            say(f"{store.folder} has no recordings of split dev: no validation")
        self.packer = material.train.packer()
        self.model = objective.model
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
        self.random = any(isinstance(module, nn.Dropout) and module.p > 0 for module in self.model.modules())
        self._clock, self._seen = time.perf_counter(), np.zeros(2)
        self._peak: float | None = None

    def fit(self) -> Path:
        """Trains to the last step and exports the model."""
        run, config, objective = self.run, self.config, self.objective
        done = run.resume()
        if "packer" in run.restored:
            self.packer.restore(run.restored["packer"])
        self.exported = copy.deepcopy(self.model) if self.average else self.model  # `prepare` may replace `forward`
        forward = objective if config.run.shard else run.accelerator.prepare_model(objective)
        if config.run.compile:
            forward = torch.compile(forward)
        self._clock = time.perf_counter()
        for step in run.steps(done):
            metrics = self.step(step, forward)
            if len(self.material.dev) and run.due(step, config.run.eval_every):
                metrics |= self._validate(step)
            if run.due(step, config.run.log_every) or "eval/bits" in metrics:
                metrics |= self._speed()
                run.log(step, metrics, show=tuple(name for name in ("loss", "eval/bits") if name in metrics))
            done = step + 1
        if self.average:
            self.average.copy_to(self.exported)
        facts = {"codec": codec_facts(run.folder, self.material.store), "steps": done, **objective.facts}
        if config.run.shard:
            from xcodec_lm.lm.sharding import gathered

            self.exported = gathered(self.exported, objective.empty())
        if run.is_main:
            cast(Any, self.exported).save_pretrained(run.model_folder, facts)
        run.accelerator.wait_for_everyone()
        return run.folder

    def step(self, step: int, forward: Any) -> dict[str, float]:
        """One optimizer step, with the objective as data parallelism or compilation wrapped it; returns its metrics."""
        run, config, optim, material = self.run, self.config, self.config.optim, self.material
        rows = rank_rows(self.packer.take(material.per_step), run.rank, run.world)
        groups = [rows[i : i + material.per_micro] for i in range(0, len(rows), material.per_micro)]
        batches = [material.train.batch(list(group)) for group in groups]
        counted = torch.tensor(sum(int((batch.targets != IGNORED).sum()) for batch in batches), device=run.device)
        total = int(_over_devices(run, counted))
        for group in self.optimizer.param_groups:
            group["lr"] = optim.lr_at(step) * group.get("lr_scale", 1)
        self.model.train()
        books = len(self.objective.books)
        sums = torch.zeros(2, books + 1, device=run.device, dtype=torch.float64)  # nats and counts; eos is the last
        for index, batch in enumerate(batches):
            if self.random:
                torch.manual_seed(derive_seed(config.run.seed, "dropout", step, groups[index][0][0]))
            batch = batch.to(run.device)
            parts = self.objective.prepare(batch, flex=run.device.type == "cuda" and config.run.compile)
            with self._sync_only_if(forward, index == len(batches) - 1), run.accelerator.autocast():
                nats = forward(*parts)
                # Data-parallel training averages gradients over devices, hence the factor.
                run.accelerator.backward(nats.sum() * (run.world / total))
            owners = torch.where(batch.rows == END, books, batch.rows)
            held = owners >= 0
            sums[0].index_add_(0, owners[held], nats.detach()[held].double())
            sums[1].index_add_(0, owners[held], torch.ones_like(nats.detach()[held]).double())
            self._seen += self._work(batch)
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
            metrics |= {f"bits_q{book + 1}": each[row] for row, book in enumerate(self.objective.books)}
        return metrics

    def _clip(self) -> float:
        norm: Any = torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.max_grad_norm)
        if hasattr(norm, "full_tensor"):
            norm = norm.full_tensor()
        return float(norm)

    def _sync_only_if(self, forward: Any, last: bool) -> Any:
        """Exchanges gradients between devices after the last micro-batch alone."""
        if last or self.config.run.shard:
            return contextlib.nullcontext()
        return self.run.accelerator.no_sync(forward)

    # ------------------------------------------------------------------ what is said

    def _work(self, batch: Any) -> np.ndarray:
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
        flops = positions * flops_per_position(self.objective.weights, config.layers, config.dim, attended)
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
        run, dev, settings = self.run, self.material.dev, self.config.run
        if self.average:
            self.average.copy_to(self.exported)
        per_micro, most = self.material.per_micro, self.config.data.eval_batches
        bits = evaluate(run, self.objective, self.exported, dev, per_micro, most)
        rate, books = float(self.material.store.spec.frame_rate), self.objective.books
        metrics = {"eval/bits": float(bits.mean()), "eval/bits_per_s": float(bits.sum()) * rate}
        if len(bits) > 1:
            metrics |= {f"eval/bits_q{book + 1}": float(bits[row]) for row, book in enumerate(books)}
        if self.listen is not None and settings.samples and not settings.shard and run.is_main:
            slots = np.linspace(0, len(dev) - 1, settings.samples).round().astype(int)
            recordings = [dev.recording(slot) for slot in dict.fromkeys(slots.tolist())]
            self.exported.eval()
            self.listen(self.exported, recordings, run.folder / "samples", step + 1)
        return metrics


@torch.no_grad()
def evaluate(
    run: Run, objective: Objective, model: nn.Module, dev: Examples, per_micro: int, most_batches: int
) -> np.ndarray:
    """Bits per code of each codebook (R,), on examples of the dev split, spread evenly over it when it is larger than
    `most_batches`."""
    count = min(len(dev), most_batches * per_micro)
    slots = np.unique(np.linspace(0, len(dev) - 1, count).round().astype(int)).tolist()[run.rank :: run.world]
    model.eval()
    sums = torch.zeros(2, len(objective.books), dtype=torch.float64, device=run.device)
    for i in range(0, len(slots), per_micro):
        batch = dev.fixed_batch(slots[i : i + per_micro])
        if batch is None:
            continue
        batch = batch.to(run.device)
        with run.accelerator.autocast():
            bits = objective.bits(model, batch)
        held = batch.rows >= 0
        sums[0].index_add_(0, batch.rows[held], bits[held].double())
        sums[1].index_add_(0, batch.rows[held], torch.ones_like(bits[held]).double())
    sums = _over_devices(run, sums.float()).double()
    return (sums[0] / sums[1].clamp(min=1)).cpu().numpy()


def open_tokens(tokens: tuple[str, ...]) -> TokenStore | JoinedStore:
    """The stores of a run's `data.tokens`, as one.

    Raises:
        XcodecLMError: none is given, or one cannot be opened.
    """
    if not tokens:
        raise ConfigError(
            "data.tokens is not set", "give a token store: --data.tokens FOLDER (xcodec-lm data tokenize makes one)"
        )
    return open_stores(tokens)


def codec_facts(folder: Path, store: TokenStore | JoinedStore) -> dict[str, Any]:
    """What a model's config.json says of its codec; a folder is named relative to the run, so that both can move."""
    path = store.codec
    if path is not None and Path(path).exists():
        path = os.path.relpath(Path(path).resolve(), folder.resolve())
    return {"fingerprint": store.spec.fingerprint, "path": path, "spec": store.spec.to_dict()}


def _over_devices(run: Run, value: Tensor) -> Tensor:
    """The sum of a tensor over all devices."""
    return cast(Tensor, run.accelerator.reduce(value, "sum"))


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
