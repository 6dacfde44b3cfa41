"""What is particular to training X-Codec 2 and its relatives; the trainer itself is `codec.train`.

There is no codebook to move and no commitment, and one number of layers. A run can also train a decoder alone, on the
frozen codes of another run: the streaming variant (`decoder.causal`), or another output rate as NeuCodec's.

Source: arXiv 2502.04128 section 3.1 and the public training code. Differences: the discriminators are X-Codec's
spectrogram ones, without the multi-period one, and feature matching is a mean over maps, not a sum.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from xcodec_lm.codec.evaluate import CodebookUse, Evaluation, evaluate
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.runtime.run import Run
from xcodec_lm.codec.semantic import quiet_transformers
from xcodec_lm.codec.warm_start import copy_common, load_start
from xcodec_lm.codec.xcodec import TrainingOutput
from xcodec_lm.codec.xcodec2 import XCodec2
from xcodec_lm.codec.xcodec2_folder import save_xcodec2
from xcodec_lm.codec.xcodec2_teacher import build_teacher
from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.xcodec2 import Xcodec2TrainConfig

HEAD = ("acoustic_decoder.head",)
"""The one part of a decoder whose shape depends on the output rate."""
FROZEN_TOO = ("quantizer", "fc_semantic", "semantic_decoder")
"""Parts beside the encoder that a frozen tokenizer keeps, so that `post_vq` and `sem_decoder` stay what they were."""


class Xcodec2Family:
    """What the trainer asks of a model family, see `codec.train.Family`."""

    shown: tuple[str, ...] = ("mel", "stft")
    with_anchors = True

    def __init__(self, config: Xcodec2TrainConfig):
        self.config = config
        self.frozen = config.model.freeze_encoder
        self._fingerprint = ""
        self._start: dict[str, float] | None = None

    def build(self) -> XCodec2:
        """A codec with fresh weights, or those of `model.start_from`.

        Raises:
            ConfigError: a frozen encoder without a codec to take it from, or one that makes other codes than this
                configuration; sizes that contradict each other.
        """
        config, source = self.config, None
        name = config.model.start_from
        model = replace(config.model, start_from="", freeze_encoder=False)
        semantic = config.semantic
        if name:
            source = load_start(XCodec2, name)
        if self.frozen:
            if source is None:
                raise ConfigError(
                    "model.freeze_encoder needs the codec whose codes are decoded, but model.start_from is empty",
                    "name a finished run: --model.start-from RUN",
                )
            self._check_same_codes(source)
            self._fingerprint = source.spec.fingerprint
            # Its own teacher, wherever that came from; and no weight norm, which would round the encoder's weights.
            semantic = replace(semantic, teacher=source.semantic_config.teacher)
            model = replace(model, weight_norm=False)
            teacher = source.semantic_encoder if source.has_semantics else None
            restores = hasattr(source, "semantic_decoder")
        else:
            with quiet_transformers():
                teacher = build_teacher(semantic)
            restores = teacher is not None
        seed = config.run.seed
        torch.manual_seed(derive_seed(seed, "codec"))
        codec = XCodec2(model, semantic, teacher, semantic_decoder=restores)
        torch.manual_seed(derive_seed(seed, "acoustic"))
        codec.init_for_training()
        if source is not None:
            same_rate = source.config.output_hop_samples == model.output_hop_samples
            copy_common(codec, source, name, fresh=() if same_rate else HEAD)
        if self.frozen:
            codec.freeze_encoder()
            for part in FROZEN_TOO:
                if hasattr(codec, part):
                    getattr(codec, part).requires_grad_(False)
        return codec

    def widest(self, codec: XCodec2) -> int:
        """Floats per frame of the widest activations.

        The encoder's count two and a half times: its anti-aliased activations keep that many more than a plain Snake.
        """
        decoder = codec.config.decoder.mlp_dim + 4 * codec.config.output_hop_samples
        return decoder if self.frozen else decoder + 5 * codec.acoustic_encoder.floats_per_frame // 2

    @torch.no_grad()
    def initialize(self, codec: XCodec2, batch: Tensor, micro: int, run: Run) -> None:
        """The directions of the quantizer, from the latents of the first batch of all processes."""
        if self.config.model.start_from:
            return
        codec.eval()
        parts = [codec.latents(wav, codec.teacher_features(wav)).flatten(0, 1) for wav in batch.split(micro)]
        codec.quantizer.initialize(run.accelerator.gather(torch.cat(parts).contiguous()))

    def forward(self, model: nn.Module, wav: Tensor, step: int, rank: int, part: int) -> TrainingOutput:
        """One training pass; its dropout is a function of the seed, the step and the place in the batch."""
        torch.manual_seed(derive_seed(self.config.run.seed, "dropout", step, rank, part))
        return model(wav)

    def terms(self, codec: XCodec2, output: TrainingOutput) -> dict[str, Tensor]:
        """Losses beside those that compare audio."""
        if self.frozen:
            return {}
        assert output.spread is not None
        semantic = {"semantic": output.semantic} if hasattr(codec, "semantic_decoder") else {}
        return {"spread": output.spread, **semantic}

    def after_step(self, codec: XCodec2, step: int) -> dict[str, float]:
        """Nothing moves beside the optimizer."""
        return {}

    def validation(self, codec: XCodec2, wavs: list[Tensor], result: Evaluation, step: int) -> dict[str, float]:
        """Says and returns how the quantizer is used, and how far audio is from what it must beat.

        Args:
            codec: in eval mode.
            wavs: (1, N_i) validation clips.
            result: their evaluation.
            step: counted from 0.

        Returns:
            Anchors; perplexity of the joint codes; of every dimension the share of its levels that occur, and their
            perplexity; with a frozen encoder the distances of the codec that it came from.
        """
        mel = result.codec[1]["mel"]
        anchors = {name: values["mel"] for name, values in result.anchors.items()}
        tokens = CodebookUse(codec)
        for wav in wavs:
            tokens.add(codec.encode(wav[None]))
        use = level_use(codec, tokens)
        row = {f"eval/mel_{name.replace(' ', '_')}": value for name, value in anchors.items()}
        row |= {"eval/code_perplexity": result.perplexity[0], "eval/frames": float(use.frames)}
        row |= {f"eval/levels_used_{d + 1}": share for d, share in enumerate(use.shares)}
        row |= {f"eval/level_perplexity_{d + 1}": value for d, value in enumerate(use.perplexity)}
        beside = ", ".join(f"{name} {value:.3f}" for name, value in anchors.items())
        gap = ""
        if start := self._start_distances(codec, wavs):
            row |= {f"eval/start_{name}": value for name, value in start.items()}
            gap = f"; {self.config.model.start_from}: mel {start['mel']:.3f}, gap {mel - start['mel']:+.3f}"
        levels = " ".join(f"{share:.0%}" for share in use.shares)
        perplexity = " ".join(f"{value:.1f}" for value in use.perplexity)
        say(
            f"step {step + 1}: mel {mel:.3f} (to beat: {beside}){gap}\n"
            f"  FSQ: {result.codes_used[0]} of {codec.quantizer.codebook_size} codes in {use.frames} frames, "
            f"perplexity {result.perplexity[0]:.0f}; by dimension levels used {levels}, perplexity {perplexity}"
        )
        return row

    def save(self, codec: XCodec2, folder: Path, name: str) -> None:
        """Exports the codec."""
        exported = codec.exported().cpu()
        save_xcodec2(exported, folder, name)
        if self.frozen:
            start = self.config.model.start_from
            if exported.spec.fingerprint == self._fingerprint:
                say(f"the codes are those of {start}: the fingerprint is the same")
            else:  # weights that were stored in half precision are stored in full here
                say(f"note: the weights behind the codes are those of {start}, but stored otherwise: new fingerprint")

    def _check_same_codes(self, source: XCodec2) -> None:
        model, semantic = self.config.model, self.config.semantic
        wanted = {
            "model.sample_rate": (model.sample_rate, source.config.sample_rate),
            "model.encoder_strides": (model.encoder_strides, source.config.encoder_strides),
            "model.quantizer": (model.quantizer, source.config.quantizer),
            "semantic.layers": (semantic.layers, source.semantic_config.layers),
            "semantic.dim": (semantic.dim, source.semantic_config.dim),
            "semantic.pad_samples": (semantic.pad_samples, source.semantic_config.pad_samples),
        }
        if not (source.has_semantics or semantic.teacher == "none"):
            raise ConfigError(
                f"{model.start_from} has no teacher, but semantic.teacher is {semantic.teacher!r}",
                "set semantic.teacher: none; a frozen encoder cannot gain one",
            )
        for key, (mine, theirs) in wanted.items():
            if mine != theirs and not (key.startswith("semantic.") and not source.has_semantics):
                raise ConfigError(
                    f"{key} is {mine!r} here and {theirs!r} in {model.start_from}, whose encoder is to stay frozen",
                    f"give {key} its value",
                )

    def _start_distances(self, codec: XCodec2, wavs: list[Tensor]) -> dict[str, float]:
        """Distances of the codec that a frozen encoder came from; none where its output has another rate."""
        if self._start is None:
            self._start = {}
            if self.frozen:
                source = load_start(XCodec2, self.config.model.start_from).to(codec.device)
                if source.spec.output_sample_rate == codec.spec.output_sample_rate:
                    self._start = evaluate(source, wavs, (1,), with_anchors=False).codec[1]
        return self._start


class LevelUse:
    """How the levels of each dimension of an FSQ occur.

    Args:
        counts: of each dimension, how often each of its levels occurs.
        frames: frames counted.

    Attributes:
        shares: of each dimension, the share of its levels that occur at all.
        perplexity: of each dimension, 2 to the entropy of its levels in bits.
    """

    def __init__(self, counts: list[Tensor], frames: int):
        self.counts, self.frames = counts, frames
        self.shares = [float((count > 0).double().mean()) for count in counts]
        chances = [count.double() / max(1, frames) for count in counts]
        self.perplexity = [float(2 ** -(p[p > 0] * p[p > 0].log2()).sum()) for p in chances]


def level_use(codec: XCodec2, use: CodebookUse) -> LevelUse:
    """The use of levels that lies in the use of a codec's codes."""
    present = use.counts[0].nonzero()[:, 0]
    weights, levels = use.counts[0][present], codec.quantizer.config.levels
    digits = codec.quantizer.to_digits(present.to(codec.device)).long().cpu()  # (codes, dimensions)
    counts = []
    for dimension, size in enumerate(levels):
        count = torch.zeros(size, dtype=torch.int64)
        counts.append(count.index_add_(0, digits[:, dimension] + size // 2, weights))
    return LevelUse(counts, use.frames)
