"""Adversarial training of X-Codec and its twin.

One generator pass serves both losses of a step: the discriminators learn from its detached output, the generator from
the discriminators as they were before the step. Codebooks move after the step, by all that the step saw.

Source: arXiv 2408.17175 section 3.1 and the public training code; where that is broken, see the list in docs/codec.md.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from xcodec_lm.codec.audio import load_audio, save_audio
from xcodec_lm.codec.clips import Clip, read_manifests
from xcodec_lm.codec.evaluate import evaluate
from xcodec_lm.codec.load import count_parameters, save_codec
from xcodec_lm.codec.nn import losses
from xcodec_lm.codec.nn.discriminators import MultiFrequencyDiscriminator
from xcodec_lm.codec.runtime.ema import WeightAverage
from xcodec_lm.codec.runtime.order import DataOrder, derive_seed, generator
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.runtime.run import Run, RunOptions
from xcodec_lm.codec.semantic import UNTRAINED_NOTICE, build_teacher, is_untrained, quiet_transformers
from xcodec_lm.codec.warm_start import start_from
from xcodec_lm.codec.xcodec import XCodec
from xcodec_lm.configs.codec import CodecTrainConfig
from xcodec_lm.configs.errors import ConfigError

CROP_DRAWS = 4
"""Places of a recording that are tried for a crop that is not silent."""
QUIET = 1e-3
"""RMS level (-60 dB) under which a crop counts as silent."""
SAMPLES_KEPT = 3
"""Validation clips whose reconstructions are written at every validation."""
CACHE_BYTES = 512 * 2**20
"""Decoded recordings kept in memory, so that small corpora are decoded once."""


def train(config: CodecTrainConfig, options: RunOptions) -> Path:
    """Trains a codec, or continues to; returns the run folder, whose `model/` then holds the codec.

    Raises:
        ConfigError: no training audio, or sizes that contradict each other.
        XcodecLMError: an unreadable recording, a folder of another run, a loss that is not finite.
    """
    crops = Crops(config)
    with Run(config, options, label="codec") as run:
        if is_untrained(config.semantic.teacher):
            say(f"semantic.teacher {config.semantic.teacher}: {UNTRAINED_NOTICE}")
        codec = build_codec(config)
        plan = StepPlan.of(config, run.world)
        if run.is_main:
            say(describe(config, codec, plan, crops))
        Trainer(run, config, codec, crops, plan).fit()
    return options.out


def dry_run(config: CodecTrainConfig) -> str:
    """What a run of this configuration would need on one device, without making it."""
    return describe(config, build_codec(config), StepPlan.of(config, world=1), Crops(config))


def build_codec(config: CodecTrainConfig) -> XCodec:
    """A codec with fresh weights; those of the acoustic stacks are the same with and without a teacher."""
    with quiet_transformers():
        teacher = None if config.semantic.teacher == "none" else build_teacher(config.semantic)
    torch.manual_seed(derive_seed(config.run.seed, "codec"))
    codec = XCodec(replace(config.model, start_from=""), config.semantic, teacher)
    torch.manual_seed(derive_seed(config.run.seed, "acoustic"))
    codec.init_for_training()
    if config.model.start_from:
        start_from(codec, config.model.start_from)
    return codec


@dataclass(frozen=True)
class StepPlan:
    """How the clips of one optimizer step are spread over processes and micro-batches.

    Process r takes the contiguous clips r*local .. (r+1)*local of the step, so the order of clips does not depend on
    the number of processes.

    Attributes:
        clips: in a step, over all processes.
        local: of one process.
        micro: at once.
    """

    clips: int
    local: int
    micro: int

    @staticmethod
    def of(config: CodecTrainConfig, world: int) -> StepPlan:
        """The plan for `world` processes.

        Raises:
            ConfigError: the clips cannot be spread evenly.
        """
        data = config.data
        clips = max(1, round(data.batch_s / data.crop_s))
        if clips % world:
            raise ConfigError(
                f"a step has {clips} clips (data.batch_s {data.batch_s} / data.crop_s {data.crop_s}), "
                f"which {world} processes cannot share evenly",
                f"choose data.batch_s as a multiple of {world * data.crop_s:g}",
            )
        local = clips // world
        micro = max(1, min(local, int(data.micro_batch_s / data.crop_s)))
        while local % micro:
            micro -= 1
        return StepPlan(clips, local, micro)


class Crops:
    """Training crops and validation clips of the manifests.

    Crop k of the run is a function of the seed and k alone. A recording counts once for every crop length it holds.
    Recordings shorter than a crop are followed by others that are, and silent stretches are passed over: in digital
    silence log spectra have gradients a thousand times those of sound, and clipping would leave nothing else of a step.
    """

    def __init__(self, config: CodecTrainConfig):
        data = config.data
        if not data.manifests:
            raise ConfigError("data.manifests is empty", "name a manifest: --data.manifests corpus/music.jsonl")
        self.config, self.seed, self.rate = data, config.run.seed, config.model.sample_rate
        self.samples = round(data.crop_s * self.rate)
        clips = read_manifests(data.manifests, "train")
        if not clips:
            raise ConfigError(f"{', '.join(data.manifests)}: no row has split: train")
        self.items = [clip for clip in clips for _ in range(max(1, int(clip.duration_s // data.crop_s)))]
        self.recordings, self.seconds = len(clips), sum(clip.duration_s for clip in clips)
        self.short = [clip for clip in clips if clip.duration_s < data.crop_s]
        self.order = DataOrder(len(self.items), self.seed)
        self._cache: dict[Path, Tensor] = {}
        self._cached_bytes = 0

    def __getitem__(self, position: int) -> Tensor:
        """Crop (1, N) number `position` of the run."""
        rng = generator(self.seed, "crop", position)
        wav = self._recording(self.items[self.order[position]])
        while wav.shape[1] < self.samples and self.short:
            other = self.short[int(torch.randint(len(self.short), (), generator=rng))]
            wav = torch.cat([wav, self._recording(other)], dim=1)
        wav = nn.functional.pad(wav, (0, max(0, self.samples - wav.shape[1])))
        crops = []
        for _ in range(CROP_DRAWS):
            start = int(torch.rand((), generator=rng).item() * (wav.shape[1] - self.samples + 1))
            crops.append(wav[:, start : start + self.samples])
            if crops[-1].square().mean().sqrt() >= QUIET:
                break
        return max(crops, key=lambda crop: crop.square().mean().item()) * self.config.gain

    def validation(self) -> list[Tensor]:
        """The fixed validation clips, (1, N_i) each."""
        clips = read_manifests(self.config.manifests, "dev")
        if not clips:
            say("note: no row has split: dev; validation uses training clips")
            clips = read_manifests(self.config.manifests, "train")
        chosen = torch.randperm(len(clips), generator=generator(self.seed, "validation"))[: self.config.eval_clips]
        limit = self.config.eval_clip_s
        return [load_audio(clips[i].path, self.rate, duration_s=limit).wav for i in sorted(chosen.tolist())]

    def _recording(self, clip: Clip) -> Tensor:
        if clip.path in self._cache:
            return self._cache[clip.path]
        wav = load_audio(clip.path, self.rate).wav
        if self._cached_bytes + wav.nbytes <= CACHE_BYTES:
            self._cache[clip.path] = wav
            self._cached_bytes += wav.nbytes
        return wav


class CropLoader(torch.utils.data.Dataset):
    """The crops of this process, position by position, for a DataLoader."""

    def __init__(self, crops: Crops, plan: StepPlan, rank: int, first_step: int):
        self.crops, self.plan, self.offset = crops, plan, rank * plan.local
        self.first_step = first_step

    def __len__(self) -> int:
        return 2**62  # the run ends it

    def __getitem__(self, index: int) -> Tensor:
        step, clip = divmod(index, self.plan.local)
        return self.crops[(self.first_step + step) * self.plan.clips + self.offset + clip]


def describe(config: CodecTrainConfig, codec: XCodec, plan: StepPlan, crops: Crops) -> str:
    """What a run will need, for the user before it starts."""
    parts = {name: count_parameters(module) for name, module in codec.named_children()}
    trained = sum(p.numel() for p in codec.parameters() if p.requires_grad)
    frames = plan.clips * round(config.data.crop_s * config.model.sample_rate) // config.model.hop_samples
    local_frames = plan.micro * frames / plan.clips
    # About 60 copies of the widest activations are alive at the end of the forward pass (tiny preset: 0.3 GiB of 0.35).
    widest = codec.acoustic_encoder.floats_per_frame + codec.acoustic_decoder.floats_per_frame
    memory = 16 * trained + 4 * sum(parts.values()) + 60 * 4 * widest * local_frames
    return "\n".join(
        [
            f"codec: {trained / 1e6:.2f} M trained parameters ("
            + ", ".join(f"{name} {count / 1e6:.2f}" for name, count in parts.items() if count)
            + ")",
            f"data: {crops.recordings} recordings, {crops.seconds / 60:.1f} min",
            f"step: {plan.clips} clips of {config.data.crop_s:g} s = {frames} frames, "
            f"in micro-batches of {plan.micro} clips; {config.optim.steps} steps",
            f"memory: about {memory / 2**30:.1f} GiB per device",
        ]
    )


class Trainer:
    """The state of one training run."""

    def __init__(self, run: Run, config: CodecTrainConfig, codec: XCodec, crops: Crops, plan: StepPlan):
        self.run, self.config, self.crops, self.plan = run, config, crops, plan
        self.codec = codec.to(run.device)
        loss = config.loss
        self.adversarial = loss.adversarial_weight > 0 or loss.feature_weight > 0
        torch.manual_seed(derive_seed(config.run.seed, "discriminator"))
        self.disc = MultiFrequencyDiscriminator(config.model.sample_rate, loss.disc_hops, loss.disc_channels).to(
            run.device
        )
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
            sampler=_count_up(),
            num_workers=config.data.workers,
        )
        batches = iter(loader)
        model = run.accelerator.prepare_model(self.codec)
        disc = run.accelerator.prepare_model(self.disc) if self.adversarial else self.disc
        for step in run.steps(done):
            batch = next(batches).to(run.device)
            if step == 0 and not config.model.start_from:
                self._initialize_codebooks(batch)
            metrics = self._step(step, model, disc, batch)
            if run.due(step, config.run.log_every):
                run.log(step, run.mean_over_processes(metrics), show=("mel", "stft", "commitment"))
            if run.due(step, config.run.eval_every):
                if run.is_main:
                    self._validate(step, validation)
                run.accelerator.wait_for_everyone()
        if run.is_main:
            self._export()

    @torch.no_grad()
    def _initialize_codebooks(self, batch: Tensor) -> None:
        codec = self.codec.eval()
        parts = []
        for wav in batch.split(self.plan.micro):
            latents = codec.latents(wav, codec.teacher_features(wav))  # (B, D, T)
            parts.append(latents.permute(0, 2, 1).reshape(-1, latents.shape[1]))
        gathered = self.run.accelerator.gather(torch.cat(parts).contiguous())
        codec.quantizer.initialize(gathered, self.config.run.seed)

    def _step(self, step: int, model: nn.Module, disc: nn.Module, batch: Tensor) -> dict[str, float]:
        config, accelerator = self.config, self.run.accelerator
        choices = config.model.quantizer.n_q_choices
        n_q = choices[int(torch.randint(len(choices), (), generator=generator(config.run.seed, "n_q", step)))]
        adversarial = self.adversarial and step >= config.loss.disc_start_step
        micros = batch.split(self.plan.micro)
        rate = config.optim.lr_at(step) / config.optim.lr
        for optimizer, peak in ((self.optimizer, config.optim.lr), (self.disc_optimizer, config.loss.disc_lr)):
            optimizer.zero_grad(set_to_none=True)
            for group in optimizer.param_groups:
                group["lr"] = peak * rate
        model.train()
        disc.train()
        totals: dict[str, Tensor] = {}
        for index, wav in enumerate(micros):
            with contextlib.ExitStack() as stack:
                if index + 1 < len(micros):
                    stack.enter_context(accelerator.no_sync(model))
                    if adversarial:
                        stack.enter_context(accelerator.no_sync(disc))
                output = model(wav, n_q)
                terms = self._reconstruction_terms(output.wav, wav)
                terms["commitment"] = output.commitment
                if self.codec.has_semantics:
                    terms["semantic"] = output.semantic
                if adversarial:
                    terms |= self._adversarial_terms(disc, output.wav, wav, len(micros))
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
        replaced = self.codec.quantizer.update_codebooks(config.run.seed, step)
        if self.average:
            self.average.update(self.codec)
        metrics = {name: float(value) for name, value in totals.items()}
        return metrics | {
            "grad_norm": float(norm),
            "lr": config.optim.lr * rate,
            "n_q": n_q,
            "dead_codes": sum(replaced),
        }

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
            "semantic": self.config.semantic.loss_weight,
        }.get(name, 0.0)

    def _reconstruction_terms(self, estimate: Tensor, target: Tensor) -> dict[str, Tensor]:
        loss = self.config.loss
        estimate, target = estimate[:, 0].float(), target[:, 0]
        rate = self.config.model.sample_rate
        terms = {
            "stft": losses.stft_loss(estimate, target, self.shapes),
            "mel": losses.mel_loss(estimate, target, rate, loss.mel_windows, loss.mel_bands),
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
        result = evaluate(codec, wavs, (1, n_q) if n_q > 1 else (1,), with_anchors=False)
        row = {f"eval/{name}_nq{n}": value for n, values in result.codec.items() for name, value in values.items()}
        row |= {f"eval/codes_used_{layer + 1}": float(used) for layer, used in enumerate(result.codes_used)}
        self.run.log(step, row)
        folder = self.run.folder / "samples"
        rate = codec.spec.output_sample_rate
        for index, wav in enumerate(wavs[:SAMPLES_KEPT]):
            original = folder / f"clip-{index}.flac"
            if not original.exists():
                save_audio(original, wav, rate)
            estimate, _ = codec.decode(codec.encode(wav[None]))
            save_audio(folder / f"clip-{index}-step-{step + 1}.flac", estimate[0], rate)

    def _export(self) -> None:
        own = {name: value.detach().clone() for name, value in self.codec.named_parameters()} if self.average else {}
        if self.average:
            self.average.copy_to(self.codec)
        save_codec(self.codec.exported().cpu(), self.run.model_folder, name=self.run.folder.name)
        with torch.no_grad():
            for name, value in self.codec.named_parameters():
                if name in own:
                    value.copy_(own[name])


def _count_up():
    position = 0
    while True:
        yield position
        position += 1


def _halves(maps: losses.Maps) -> tuple[losses.Maps, losses.Maps]:
    """Feature maps of [recordings; reconstructions], apart."""
    first = [[x[: len(x) // 2] for x in group] for group in maps]
    second = [[x[len(x) // 2 :] for x in group] for group in maps]
    return first, second
