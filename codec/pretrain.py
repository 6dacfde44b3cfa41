"""Pre-training of HuBERT-General-Audio by masked prediction of a codec's first codes.

A step takes slots of `crop_s` seconds (see `codec.labels`); crops of one length pass the model together. The loss is
the mean over the masked frames of all devices and micro-batches, so a step means the same on any number of devices.
Order, crops, masks and dropout are functions of (seed, step, item), so a run that was killed goes on exactly.

Source: arXiv 2408.17175 section 4.2.1.
"""

from __future__ import annotations

import contextlib
import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from xcodec_lm.codec.hubert import IGNORED, MaskedPrediction, save_hubert
from xcodec_lm.codec.labels import Crop, LabelledCrops, Labeller
from xcodec_lm.codec.load import count_parameters, load_codec
from xcodec_lm.codec.runtime.ema import WeightAverage
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.runtime.run import Run, RunOptions
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.configs.hubert import HubertTrainConfig

DRY_RUN_CLASSES = 1024
"""Labels that a dry run without a codec reckons with."""


def train(config: HubertTrainConfig, options: RunOptions) -> Path:
    """Pre-trains a HuBERT, or goes on with it.

    Returns:
        The run folder; `model/` in it loads with `transformers.AutoModel` and as `semantic.teacher`.

    Raises:
        ConfigError: no codec or no training audio, or sizes that contradict each other.
        XcodecLMError: an unreadable recording, a folder of another run or begun with another codec, a loss that is
            not finite.
    """
    if not config.targets.codec:
        raise ConfigError("targets.codec is empty", "name the codec that gives the labels: --targets.codec RUN")
    with Run(config, options, label="hubert") as run:
        settings, optim, loss = config.run, config.optim, config.loss
        codec = load_codec(config.targets.codec, device=run.device)
        labeller = Labeller(codec, config.model.sample_rate, config.model.hop_samples)
        crops = LabelledCrops(config, labeller)
        slots = slots_per_step(config)
        if slots < run.world:
            raise ConfigError(
                f"data.batch_s {config.data.batch_s} holds {slots} crops of {config.data.crop_s} s, "
                f"fewer than the {run.world} devices",
                "raise data.batch_s or use fewer devices",
            )
        if run.is_main:
            _bind_codec(run.folder, codec.spec)
        model = build_model(config, labeller.classes).to(run.device)
        say(describe(config, model, crops))
        optimizer = make_optimizer(model, config)
        average = WeightAverage(model, optim.ema_decay) if optim.ema_decay else None
        run.track_state({"model": model}, {"optimizer": optimizer}, {"model": average} if average else {})
        done = run.resume()
        exported = copy.deepcopy(model) if average else model
        prepared = run.accelerator.prepare_model(model)
        dev = crops.validation() if run.is_main else []

        for step in run.steps(done):
            positions = range(step * slots + run.rank, (step + 1) * slots, run.world)
            batches = micro_batches([crop for p in positions for crop in crops.slot(p)], config)
            counts = sum((batch.counts() for batch in batches), torch.zeros(2, dtype=torch.int64))
            masked, unmasked = _over_devices(run, counts.to(run.device)).clamp_min(1).tolist()
            for group in optimizer.param_groups:
                group["lr"] = optim.lr_at(step)
            model.train()
            sums = torch.zeros(3, device=run.device)
            for index, batch in enumerate(batches):
                last = index == len(batches) - 1
                torch.manual_seed(derive_seed(settings.seed, "dropout", step, run.rank, index))
                with contextlib.nullcontext() if last else run.accelerator.no_sync(prepared):
                    output = prepared(*batch.to(run.device))
                    value = loss.masked_weight * output.masked_loss / masked
                    value = value + loss.unmasked_weight * output.unmasked_loss / unmasked
                    # Data-parallel training averages gradients over devices, hence the factor.
                    run.accelerator.backward(value * run.world)
                sums += torch.stack([output.masked_loss, output.unmasked_loss, output.correct.float()]).detach()
            norm = run.accelerator.clip_grad_norm_(model.parameters(), optim.clip_norm)
            totals = _over_devices(run, sums).tolist()
            run.check_finite(step, totals[0])
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if average:
                average.update(model)

            metrics: dict[str, float] = {}
            if run.due(step, settings.log_every):
                metrics = {
                    "loss": totals[0] / masked,
                    "accuracy": totals[2] / masked,
                    "lr": optim.lr_at(step),
                    "grad_norm": 0.0 if norm is None else float(norm),
                }
                if loss.unmasked_weight:
                    metrics["unmasked_loss"] = totals[1] / unmasked
            if run.is_main and run.due(step, settings.eval_every):
                if average:
                    average.copy_to(exported)
                metrics |= evaluate(exported, dev, labeller.classes)
            if metrics:
                shown = ("loss", "accuracy", "eval/accuracy")
                run.log(step, metrics, show=tuple(name for name in shown if name in metrics))
            run.accelerator.wait_for_everyone()
            done = step + 1

        if run.is_main:
            if average:
                average.copy_to(exported)
            facts = {"codec": codec.spec.to_dict(), "targets": config.targets.codec, "steps": done}
            save_hubert(exported.hubert, run.model_folder, config.model.sample_rate, facts)
        run.accelerator.wait_for_everyone()
    return options.out


def dry_run(config: HubertTrainConfig) -> str:
    """What a run of this configuration would need on one device, without making it."""
    classes, labeller = DRY_RUN_CLASSES, None
    if config.targets.codec:
        labeller = Labeller(load_codec(config.targets.codec), config.model.sample_rate, config.model.hop_samples)
        classes = labeller.classes
    with torch.device("meta"):
        model = MaskedPrediction(config.model, config.loss, classes)
    return describe(config, model, LabelledCrops(config, labeller))


def build_model(config: HubertTrainConfig, classes: int) -> MaskedPrediction:
    """A model with fresh weights, which the seed decides."""
    torch.manual_seed(derive_seed(config.run.seed, "hubert"))
    return MaskedPrediction(config.model, config.loss, classes)


def make_optimizer(model: MaskedPrediction, config: HubertTrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels, not biases and norms."""
    optim = config.optim
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)


def slots_per_step(config: HubertTrainConfig) -> int:
    """Slots of `crop_s` seconds in one optimizer step, over all devices."""
    return max(1, int(config.data.batch_s / config.data.crop_s + 1e-6))


@dataclass(frozen=True)
class Batch:
    """Crops of one length.

    Attributes:
        wav: (B, N).
        mask: (B, T) bool.
        labels: (B, T) int64.
    """

    wav: Tensor
    mask: Tensor
    labels: Tensor

    def counts(self) -> Tensor:
        """(2,) frames with a label: masked, not masked."""
        known = self.labels != IGNORED
        return torch.stack([(self.mask & known).sum(), (~self.mask & known).sum()])

    def to(self, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
        """The arguments of `MaskedPrediction.forward`, on a device."""
        return self.wav.to(device), self.mask.to(device), self.labels.to(device)


def micro_batches(crops: list[Crop], config: HubertTrainConfig) -> list[Batch]:
    """Crops as batches of one length each, of at most `data.micro_batch_s` seconds."""
    groups: dict[int, list[Crop]] = {}
    for crop in crops:
        groups.setdefault(len(crop.labels), []).append(crop)
    batches = []
    for frames, members in sorted(groups.items()):
        seconds = frames * config.model.hop_samples / config.model.sample_rate
        size = max(1, int(config.data.micro_batch_s / seconds + 1e-6))
        for i in range(0, len(members), size):
            part = members[i : i + size]
            batches.append(
                Batch(
                    torch.stack([crop.wav for crop in part]),
                    torch.stack([crop.mask for crop in part]),
                    torch.stack([crop.labels for crop in part]),
                )
            )
    return batches


@torch.no_grad()
def evaluate(model: MaskedPrediction, crops: list[Crop], classes: int) -> dict[str, float]:
    """Masked prediction on validation clips, beside what needs no model.

    Returns:
        `eval/loss` in nats and `eval/accuracy` on masked frames; `eval/majority_accuracy` of always naming the most
        frequent label, `eval/nearest_accuracy` of naming the nearest label that is not masked; `eval/label_bits`, the
        entropy of the labels.
    """
    model.eval()
    device = model.label_embeddings.device
    loss = correct = nearest = 0.0
    histogram = torch.zeros(classes, dtype=torch.int64)
    for crop in crops:
        answers = crop.mask & (crop.labels != IGNORED)
        output = model(crop.wav[None].to(device), crop.mask[None].to(device), crop.labels[None].to(device))
        loss, correct = loss + float(output.masked_loss), correct + float(output.correct)
        histogram += torch.bincount(crop.labels[answers], minlength=classes)
        seen, asked = (~crop.mask).nonzero()[:, 0], answers.nonzero()[:, 0]
        if len(seen):
            closest = seen[(asked[:, None] - seen[None]).abs().argmin(dim=1)]
            nearest += float((crop.labels[closest] == crop.labels[asked]).sum())
    total = max(1, int(histogram.sum()))
    shares = histogram[histogram > 0].double() / total
    return {
        "eval/loss": loss / total,
        "eval/accuracy": correct / total,
        "eval/majority_accuracy": int(histogram.max()) / total,
        "eval/nearest_accuracy": nearest / total,
        "eval/label_bits": float(-(shares * shares.log2()).sum()),
    }


def describe(config: HubertTrainConfig, model: MaskedPrediction, crops: LabelledCrops) -> str:
    """What a run will need, for the user before it starts."""
    kept, whole = count_parameters(model.hubert), count_parameters(model)
    slots, data = slots_per_step(config), config.data
    rate = config.model.sample_rate / config.model.hop_samples
    head = (whole - kept) / 1e6
    # Kept for the backward pass: about 20 widths a layer and frame, and 6 copies of each convolution's output.
    frames = data.micro_batch_s * rate
    floats = 20 * config.model.num_hidden_layers * config.model.hidden_size * frames
    step = config.model.hop_samples
    for width, stride in zip(config.model.conv_dim, config.model.conv_stride, strict=True):
        step //= stride
        floats += 6 * width * step * frames
    return "\n".join(
        [
            f"hubert: {kept / 1e6:.2f} M parameters, and {head:.2f} M of the head, which is not exported",
            f"data: {crops.recordings} recordings, {crops.seconds / 60:.1f} min; {len(crops) / slots:.0f} steps a pass",
            f"step: {slots} slots of {data.crop_s:g} s = {round(slots * data.crop_s * rate)} frames; "
            f"{config.optim.steps} steps",
            f"memory: about {(16 * whole + 4 * floats) / 2**30:.1f} GiB per device, besides the codec",
        ]
    )


def _over_devices(run: Run, value: Tensor) -> Tensor:
    """The sum of a tensor over all devices."""
    return cast(Tensor, run.accelerator.reduce(value, "sum"))


def _bind_codec(folder: Path, spec: TokenSpec) -> None:
    """Notes whose codes a run learns, and refuses to go on with another codec's."""
    path = folder / "targets.json"
    if (folder / "checkpoints").is_dir() and path.is_file():
        old: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if old.get("fingerprint") != spec.fingerprint:
            raise XcodecLMError(
                f"{folder} was begun with the labels of {old.get('name')} ({str(old.get('fingerprint'))[:12]}), "
                f"but targets.codec is now {spec.name} ({spec.fingerprint[:12]})",
                "give that codec, or choose another --out",
            )
    path.write_text(json.dumps(spec.to_dict(), indent=1) + "\n", encoding="utf-8")
