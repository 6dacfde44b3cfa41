"""Adversarial training of codecs: X-Codec, its twin, X-Codec 2.

One generator pass serves both losses of a step: the discriminators learn from its detached output, the generator from
the discriminators as they were before the step. Codebooks move after the step, by all that the step saw. What differs
between the families is behind `Family`.

Source: arXiv 2408.17175 section 3.1 and the public training code; where that is broken, see the list in docs/codec.md.
"""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from xcodec_lm.codec.audio import save_audio
from xcodec_lm.codec.crops import CropLoader, Crops, StepPlan, TrainConfig, count_up, output_rate
from xcodec_lm.codec.evaluate import Evaluation, evaluate
from xcodec_lm.codec.load import count_parameters, save_codec
from xcodec_lm.codec.nn import losses
from xcodec_lm.codec.nn.discriminators import MultiFrequencyDiscriminator
from xcodec_lm.codec.runtime.ema import WeightAverage
from xcodec_lm.codec.runtime.order import derive_seed, generator
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.runtime.run import Run, RunOptions
from xcodec_lm.codec.semantic import UNTRAINED_NOTICE, build_teacher, is_untrained, quiet_transformers
from xcodec_lm.codec.train_xcodec2 import Xcodec2Family
from xcodec_lm.codec.warm_start import start_from
from xcodec_lm.codec.xcodec import TrainingOutput, XCodec
from xcodec_lm.configs.codec import CodecTrainConfig
from xcodec_lm.configs.xcodec2 import Xcodec2TrainConfig

SAMPLES_KEPT = 3
"""Validation clips whose reconstructions are written at every validation."""


def train(config: TrainConfig, options: RunOptions) -> Path:
    """Trains a codec, or continues to; returns the run folder, whose `model/` then holds the codec.

    Raises:
        ConfigError: no training audio, or sizes that contradict each other.
        XcodecLMError: an unreadable recording, a folder of another run, a loss that is not finite.
    """
    crops = Crops(config)
    with Run(config, options, label="codec") as run:
        if is_untrained(config.semantic.teacher):
            say(f"semantic.teacher {config.semantic.teacher}: {UNTRAINED_NOTICE}")
        family = family_of(config)
        codec = family.build()
        plan = StepPlan.of(config, run.world)
        if run.is_main:
            say(describe(family, codec, plan, crops))
        Trainer(run, family, codec, crops, plan).fit()
    return options.out


def dry_run(config: TrainConfig) -> str:
    """What a run of this configuration would need on one device, without making it."""
    family = family_of(config)
    return describe(family, family.build(), StepPlan.of(config, world=1), Crops(config))


def build_codec(config: TrainConfig) -> Any:
    """A codec with fresh weights; those of the acoustic stacks are the same with and without a teacher."""
    return family_of(config).build()


class Family(Protocol):
    """What the trainer asks of a family of codecs.

    Attributes:
        config: of the run.
        shown: metrics in the progress line.
        with_anchors: whether validations measure the anchors, too.
    """

    config: Any
    shown: tuple[str, ...]
    with_anchors: bool

    def build(self) -> Any:
        """A codec to train."""
        ...

    def widest(self, codec: Any) -> int:
        """Floats per frame of the widest activations, for the memory estimate."""
        ...

    def initialize(self, codec: Any, batch: Tensor, micro: int, run: Run) -> None:
        """Sets up codebooks by the first batch (B, 1, N)."""
        ...

    def forward(self, model: nn.Module, wav: Tensor, step: int, rank: int, part: int) -> TrainingOutput:
        """One training pass over micro-batch `part` of a process."""
        ...

    def terms(self, codec: Any, output: TrainingOutput) -> dict[str, Tensor]:
        """Losses beside those that compare audio."""
        ...

    def after_step(self, codec: Any, step: int) -> dict[str, float]:
        """Moves what the optimizer does not; returns metrics."""
        ...

    def validation(self, codec: Any, wavs: list[Tensor], result: Evaluation, step: int) -> dict[str, float]:
        """Metrics of a validation beside those of every family."""
        ...

    def save(self, codec: Any, folder: Path, name: str) -> None:
        """Exports the codec for inference."""
        ...


class XCodecFamily:
    """X-Codec and its twin."""

    shown: tuple[str, ...] = ("mel", "stft", "commitment")
    with_anchors = False

    def __init__(self, config: CodecTrainConfig):
        self.config = config

    def build(self) -> XCodec:
        """A codec with fresh weights, or those of `model.start_from`."""
        config = self.config
        with quiet_transformers():
            teacher = None if config.semantic.teacher == "none" else build_teacher(config.semantic)
        torch.manual_seed(derive_seed(config.run.seed, "codec"))
        codec = XCodec(replace(config.model, start_from=""), config.semantic, teacher)
        torch.manual_seed(derive_seed(config.run.seed, "acoustic"))
        codec.init_for_training()
        if config.model.start_from:
            start_from(codec, config.model.start_from)
        return codec

    def widest(self, codec: XCodec) -> int:
        """Floats per frame of the widest activations."""
        return codec.acoustic_encoder.floats_per_frame + codec.acoustic_decoder.floats_per_frame

    @torch.no_grad()
    def initialize(self, codec: XCodec, batch: Tensor, micro: int, run: Run) -> None:
        """Codebooks by k-means on the latents of the first batch of all processes."""
        if self.config.model.start_from:
            return
        codec.eval()
        parts = []
        for wav in batch.split(micro):
            latents = codec.latents(wav, codec.teacher_features(wav))  # (B, D, T)
            parts.append(latents.permute(0, 2, 1).reshape(-1, latents.shape[1]))
        gathered = run.accelerator.gather(torch.cat(parts).contiguous())
        codec.quantizer.initialize(gathered, self.config.run.seed)

    def forward(self, model: nn.Module, wav: Tensor, step: int, rank: int, part: int) -> TrainingOutput:
        """A pass with the number of layers that the step draws."""
        return model(wav, self._n_q(step))

    def terms(self, codec: XCodec, output: TrainingOutput) -> dict[str, Tensor]:
        """Commitment, and with a teacher the error of its restored features."""
        return {"commitment": output.commitment} | ({"semantic": output.semantic} if codec.has_semantics else {})

    def after_step(self, codec: XCodec, step: int) -> dict[str, float]:
        """Moves the codebooks and replaces dead codes."""
        replaced = codec.quantizer.update_codebooks(self.config.run.seed, step)
        return {"n_q": self._n_q(step), "dead_codes": sum(replaced)}

    def validation(self, codec: XCodec, wavs: list[Tensor], result: Evaluation, step: int) -> dict[str, float]:
        """Nothing beside what every family has."""
        return {}

    def save(self, codec: XCodec, folder: Path, name: str) -> None:
        """Exports the codec."""
        save_codec(codec.exported().cpu(), folder, name=name)

    def _n_q(self, step: int) -> int:
        choices = self.config.model.quantizer.n_q_choices
        return choices[int(torch.randint(len(choices), (), generator=generator(self.config.run.seed, "n_q", step)))]


def family_of(config: TrainConfig) -> Family:
    """The family that a configuration belongs to."""
    return Xcodec2Family(config) if isinstance(config, Xcodec2TrainConfig) else XCodecFamily(config)


def describe(family: Family, codec: nn.Module, plan: StepPlan, crops: Crops) -> str:
    """What a run will need, for the user before it starts."""
    config = family.config
    parts = {
        name: sum(p.numel() for p in module.parameters() if p.requires_grad) for name, module in codec.named_children()
    }
    trained, held = sum(parts.values()), count_parameters(codec)
    frozen = held - trained
    frames = plan.clips * round(config.data.crop_s * config.model.sample_rate) // config.model.hop_samples
    local_frames = plan.micro * frames / plan.clips
    # About 60 copies of the widest activations are alive at the end of the forward pass (tiny preset: 0.3 GiB of 0.35).
    memory = 16 * trained + 4 * held + 60 * 4 * family.widest(codec) * local_frames
    return "\n".join(
        [
            f"codec: {trained / 1e6:.2f} M trained parameters ("
            + ", ".join(f"{name} {count / 1e6:.2f}" for name, count in parts.items() if count)
            + ")"
            + (f", {frozen / 1e6:.2f} M frozen" if frozen else ""),
            f"data: {crops.recordings} recordings, {crops.seconds / 60:.1f} min",
            f"step: {plan.clips} clips of {config.data.crop_s:g} s = {frames} frames, "
            f"in micro-batches of {plan.micro} clips; {config.optim.steps} steps",
            f"memory: about {memory / 2**30:.1f} GiB per device",
        ]
    )


class Trainer:
    """The state of one training run."""

    def __init__(self, run: Run, family: Family, codec: Any, crops: Crops, plan: StepPlan):
        self.run, self.family, self.crops, self.plan = run, family, crops, plan
        self.config = config = family.config
        self.codec = codec.to(run.device)
        self.rate = output_rate(config)
        loss = config.loss
        self.adversarial = loss.adversarial_weight > 0 or loss.feature_weight > 0
        torch.manual_seed(derive_seed(config.run.seed, "discriminator"))
        self.disc = MultiFrequencyDiscriminator(self.rate, loss.disc_hops, loss.disc_channels).to(run.device)
        self.optimizer = self._adamw(self.codec, config.optim.lr)
        self.disc_optimizer = self._adamw(self.disc, loss.disc_lr)
        decay = config.optim.ema_decay
        self.average = WeightAverage(self.codec, decay) if decay else None
        modules: dict[str, nn.Module] = {"codec": self.codec}
        optimizers = {"codec": self.optimizer}
        if self.adversarial:
            modules["discriminator"], optimizers["discriminator"] = self.disc, self.disc_optimizer
        run.track_state(modules, optimizers, {"codec": self.average} if self.average else None)
        self.shapes = losses.full_band_shapes(loss.stft_windows)

    def _adamw(self, module: nn.Module, lr: float) -> torch.optim.AdamW:
        optim = self.config.optim
        parameters = [p for p in module.parameters() if p.requires_grad]
        groups = [
            {"params": [p for p in parameters if p.dim() >= 2 and p.numel() > max(p.shape)]},
            {"params": [p for p in parameters if not (p.dim() >= 2 and p.numel() > max(p.shape))], "weight_decay": 0.0},
        ]
        return torch.optim.AdamW(
            [group for group in groups if group["params"]],
            lr=lr, betas=optim.betas, eps=optim.eps, weight_decay=optim.weight_decay,
        )  # fmt: skip

    def fit(self) -> None:
        """Trains to the last step, validating and saving on the way, and exports the codec."""
        run, config = self.run, self.config
        done = run.resume()
        validation = self.crops.validation() if run.is_main else []
        loader = torch.utils.data.DataLoader(
            CropLoader(self.crops, self.plan, run.rank, done),
            batch_size=self.plan.local,
            sampler=count_up(),
            num_workers=config.data.workers,
        )
        batches = iter(loader)
        model = run.accelerator.prepare_model(self.codec)
        disc = run.accelerator.prepare_model(self.disc) if self.adversarial else self.disc
        for step in run.steps(done):
            batch = next(batches)
            heard, target = self.crops.heard(batch).to(run.device), batch.to(run.device)
            if step == 0:
                self.family.initialize(self.codec, heard, self.plan.micro, run)
            metrics = self._step(step, model, disc, heard, target)
            if run.due(step, config.run.log_every):
                run.log(step, run.mean_over_processes(metrics), show=self.family.shown)
            if run.due(step, config.run.eval_every):
                if run.is_main:
                    self._validate(step, validation)
                run.accelerator.wait_for_everyone()
        if run.is_main:
            self._export()

    def _step(self, step: int, model: nn.Module, disc: nn.Module, heard: Tensor, target: Tensor) -> dict[str, float]:
        """One optimizer step; heard (B, 1, N) is what the encoder gets, target (B, 1, N') what is to come out."""
        config, accelerator, family = self.config, self.run.accelerator, self.family
        adversarial = self.adversarial and step >= config.loss.disc_start_step
        micros = list(zip(heard.split(self.plan.micro), target.split(self.plan.micro), strict=True))
        rate = config.optim.lr_at(step) / config.optim.lr
        for optimizer, peak in ((self.optimizer, config.optim.lr), (self.disc_optimizer, config.loss.disc_lr)):
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        model.train()
        disc.train()
        totals: dict[str, Tensor] = {}
        for index, (wav, wanted) in enumerate(micros):
            with contextlib.ExitStack() as stack:
                if index + 1 < len(micros):
                    stack.enter_context(accelerator.no_sync(model))
                    if adversarial:
                        stack.enter_context(accelerator.no_sync(disc))
                output = family.forward(model, wav, step, self.run.rank, index)
                terms = self._reconstruction_terms(output.wav, wanted) | family.terms(self.codec, output)
                if adversarial:
                    terms |= self._adversarial_terms(disc, output.wav, wanted, len(micros))
                loss = torch.stack(
                    [self._weight(name) * value for name, value in terms.items() if self._weight(name)]
                ).sum()
                accelerator.backward(loss / len(micros))
            for name, value in {**terms, "loss": loss}.items():
                totals[name] = totals.get(name, torch.zeros((), device=wav.device)) + value.detach() / len(micros)
        norm = nn.utils.clip_grad_norm_([p for p in self.codec.parameters() if p.requires_grad], config.optim.clip_norm)
        self.run.check_finite(step, float(totals["loss"]))
        self.optimizer.step()
        if adversarial:
            nn.utils.clip_grad_norm_(self.disc.parameters(), config.optim.clip_norm)
            self.disc_optimizer.step()
        moved = family.after_step(self.codec, step)
        if self.average:
            self.average.update(self.codec)
        metrics = {name: float(value) for name, value in totals.items()}
        return metrics | {"grad_norm": float(norm), "lr": config.optim.lr * rate, **moved}

    def _weight(self, name: str) -> float:
        loss = self.config.loss
        return {
            "adversarial": loss.adversarial_weight,
            "feature": loss.feature_weight,
            "stft": loss.stft_weight,
            "subband_stft": loss.subband_stft_weight,
            "waveform": loss.waveform_weight,
            "mel": loss.mel_weight,
            "commitment": loss.commitment_weight,
            "spread": loss.spread_weight,
            "semantic": self.config.semantic.loss_weight,
        }.get(name, 0.0)

    def _reconstruction_terms(self, estimate: Tensor, target: Tensor) -> dict[str, Tensor]:
        loss = self.config.loss
        estimate, target = estimate[:, 0].float(), target[:, 0]
        terms = {
            "stft": losses.stft_loss(estimate, target, self.shapes),
            "mel": losses.mel_loss(estimate, target, self.rate, loss.mel_windows, loss.mel_bands),
        }
        if loss.waveform_weight:
            terms["waveform"] = (estimate - target).abs().mean()
        if loss.subband_stft_weight:
            terms["subband_stft"] = losses.subband_stft_loss(estimate, target)
        return terms

    def _adversarial_terms(self, disc: nn.Module, estimate: Tensor, target: Tensor, micros: int) -> dict[str, Tensor]:
        accelerator = self.run.accelerator
        # One pass over recordings and reconstructions: data parallelism allows one forward before a backward.
        maps = disc(torch.cat([target, estimate.detach()]))
        real, fake = _halves(maps)
        disc_loss = losses.discriminator_loss(real, fake)
        accelerator.backward(disc_loss / micros)
        self.disc.requires_grad_(False)
        with accelerator.autocast():
            real, fake = _halves(self.disc(torch.cat([target, estimate])))
        self.disc.requires_grad_(True)
        return {
            "adversarial": losses.generator_adversarial_loss(fake),
            "feature": losses.feature_matching_loss(real, fake),
            "discriminator": disc_loss.detach(),
        }

    def _validate(self, step: int, wavs: list[Tensor]) -> None:
        codec = self.codec.eval()
        n_q = codec.spec.n_q
        result = evaluate(codec, wavs, (1, n_q) if n_q > 1 else (1,), self.family.with_anchors)
        row = {f"eval/{name}_nq{n}": value for n, values in result.codec.items() for name, value in values.items()}
        row |= {f"eval/codes_used_{layer + 1}": float(used) for layer, used in enumerate(result.codes_used)}
        self.run.log(step, row | self.family.validation(codec, wavs, result, step))
        folder = self.run.folder / "samples"
        for index, wav in enumerate(wavs[:SAMPLES_KEPT]):
            original = folder / f"clip-{index}.flac"
            if not original.exists():
                save_audio(original, wav, codec.spec.sample_rate)
            estimate, _ = codec.decode(codec.encode(wav[None]))
            save_audio(folder / f"clip-{index}-step-{step + 1}.flac", estimate[0], codec.spec.output_sample_rate)

    def _export(self) -> None:
        own = {name: value.detach().clone() for name, value in self.codec.named_parameters()} if self.average else {}
        if self.average:
            self.average.copy_to(self.codec)
        self.family.save(self.codec, self.run.model_folder, self.run.folder.name)
        with torch.no_grad():
            for name, value in self.codec.named_parameters():
                if name in own:
                    value.copy_(own[name])


def _halves(maps: losses.Maps) -> tuple[losses.Maps, losses.Maps]:
    """Feature maps of [recordings; reconstructions], apart."""
    first = [[x[: len(x) // 2] for x in group] for group in maps]
    second = [[x[len(x) // 2 :] for x in group] for group in maps]
    return first, second
