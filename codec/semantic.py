"""Frozen self-supervised teachers through transformers: HuBERT, wav2vec 2.0, WavLM, w2v-BERT.

A teacher is never trained and never leaves eval mode: in train mode its dropout, layer drop and SpecAugment would act
on the codec's input and target. Here it is found, checked and frozen; `codec.teacher_forward` computes its features,
and `TeacherFeatures` offers those of a teacher without a codec.
"""

from __future__ import annotations

import contextlib
import json
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Literal

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, HubertConfig, HubertModel, PretrainedConfig

from xcodec_lm.codec.audio import check_wav
from xcodec_lm.codec.fingerprints import read_tensors
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.teacher_forward import KINDS, frames_of, hop_of, teacher_features
from xcodec_lm.codec.tokens import AudioTokens, Features
from xcodec_lm.configs.codec import SemanticConfig
from xcodec_lm.configs.errors import AudioError, ConfigError, TokenError, XcodecLMError

UNTRAINED_NOTICE = "untrained teacher: no semantic claim"
PRETRAINED = Path(__file__).parent / "pretrained"
TEACHER_RATE = 16_000
"""Every published teacher of `KINDS` hears this many samples per second."""
INSIDE = "semantic_model."
"""What the names of a teacher's weights begin with inside a codec."""
UNUSED_WEIGHTS = ("masked_spec_embed",)
"""Weights that act in training only, so that a checkpoint may lack them."""


def build_teacher(config: SemanticConfig) -> nn.Module:
    """A frozen teacher, as `config.teacher` names it.

    Args:
        config: `teacher` is `random:SEED`, a shipped name, a run or model folder, or a hub id.

    Raises:
        ConfigError: the name means nothing, it is a model of another kind, its width is not `semantic.dim`, or it has
            no such layer.
        XcodecLMError: its weights are missing or broken, or the hub was asked for and did not answer.
    """
    if config.teacher.startswith("random:"):
        teacher = _random_hubert(config)
    else:
        teacher = load_teacher(config.teacher)
    if teacher.config.hidden_size != config.dim:
        raise ConfigError(
            f"semantic.dim is {config.dim}, but the teacher {config.teacher!r} has width {teacher.config.hidden_size}",
            f"set semantic.dim: {teacher.config.hidden_size}",
        )
    check_layers(teacher, config.layers)
    return freeze(teacher)


def load_teacher(source: str | Path) -> nn.Module:
    """A teacher with its weights in fp32 and eval mode, not frozen (see `teacher_from_config`).

    Args:
        source: a shipped name, a run folder (its `model/`), a model folder, or a hub id. An X-Codec's folder stands
            for the teacher inside it.

    Raises:
        ConfigError: a model of another kind, or a codec without a teacher.
        XcodecLMError: nothing is there, or weights are missing, which would be drawn at random.
    """
    place = _find(source)
    if (inside := _teacher_inside(place)) is not None:
        return inside
    try:
        config = AutoConfig.from_pretrained(place)
    except (OSError, ValueError, KeyError) as error:
        raise XcodecLMError(
            f"semantic.teacher: {str(source)!r} is neither a model folder nor a hub model within reach "
            f"({_first_line(error)})",
            "give a local folder, random:SEED, or none",
        ) from None
    if config.model_type not in KINDS:
        raise ConfigError(
            f"semantic.teacher: {str(source)!r} is a {config.model_type} model; teachers are {', '.join(KINDS)}",
            "give a folder that such a model was saved to",
        )
    try:
        # Weights of another shape are an error of transformers' own; missing ones are only listed, and random.
        teacher, report = AutoModel.from_pretrained(place, config=config, dtype=torch.float32, output_loading_info=True)
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise XcodecLMError(
            f"semantic.teacher: the weights of {str(source)!r} cannot be loaded ({_first_line(error)})",
            "save or download the model again",
        ) from None
    if missing := sorted(key for key in report["missing_keys"] if not key.endswith(UNUSED_WEIGHTS)):
        raise XcodecLMError(
            f"semantic.teacher: {str(source)!r} lacks weights: {', '.join(missing[:3])} ({len(missing)} in all)",
            "its config.json belongs to another model, or the file is cut short; save or download the model again",
        )
    return teacher.eval()


def _teacher_inside(place: str) -> nn.Module | None:
    """The teacher of the X-Codec in a folder; None if the folder holds something else."""
    path = Path(place) / "config.json"
    if not path.is_file():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:
        return None  # transformers says what is wrong with it
    if data.get("model_type") not in ("xcodec", "xcodec_lm"):
        return None
    if not isinstance(data.get("semantic_model_config"), dict):
        raise ConfigError(f"semantic.teacher: {place} is a codec without a teacher", "give one that has a teacher")
    if (kind := data["semantic_model_config"].get("model_type")) not in KINDS:
        raise ConfigError(f"semantic.teacher: the codec {place} holds a {kind} model; teachers are {', '.join(KINDS)}")
    with quiet_transformers():
        teacher = teacher_from_config(data["semantic_model_config"])
    tensors = read_tensors(Path(place), lambda key: key.startswith(INSIDE))
    tensors = {key.removeprefix(INSIDE): value.float() for key, value in tensors.items()}
    missing, extra = teacher.load_state_dict(tensors, strict=False)
    if wrong := [key for key in (*missing, *extra) if not key.endswith(UNUSED_WEIGHTS)]:
        raise XcodecLMError(
            f"semantic.teacher: the teacher inside {place} does not fit its configuration: {', '.join(wrong[:3])}",
            "save or download the codec again",
        )
    return teacher


def _find(source: str | Path) -> str:
    path = Path(source)
    for folder in (path / "model", path, PRETRAINED / str(source)):
        if (folder / "config.json").is_file():
            return str(folder)
    if path.exists():
        raise XcodecLMError(
            f"semantic.teacher: {path} is not a model folder: it has no config.json",
            "give the folder of a run that has finished, or one that a model was saved to",
        )
    return str(source)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def check_layers(teacher: nn.Module, layers: Literal["mean"] | int) -> None:
    """Refuses a hidden state that the teacher does not have.

    Raises:
        ConfigError: `layers` is neither `mean` nor in 0..number of layers.
    """
    last = teacher.config.num_hidden_layers
    if layers != "mean" and not (type(layers) is int and 0 <= layers <= last):
        raise ConfigError(
            f"semantic.layers is {layers!r}, but the teacher has hidden states 0..{last}",
            "give one of these, or mean",
        )


def teacher_from_config(config: dict | PretrainedConfig) -> nn.Module:
    """A teacher without weights, from a transformers configuration, in eval mode.

    For inference. It is not frozen: the attention of transformers' WavLM takes another path for weights that need no
    gradient, whose last bits differ from those that users of transformers get.
    """
    if isinstance(config, dict):
        config = AutoConfig.for_model(**config)
    return AutoModel.from_config(config, dtype=torch.float32).eval()


def freeze(teacher: nn.Module) -> nn.Module:
    """Takes the teacher out of training for good: no gradients, eval mode."""
    return teacher.requires_grad_(False).eval()


def is_untrained(teacher: str) -> bool:
    """Whether a teacher's name says that it has learnt nothing."""
    return teacher.startswith("random:")


def _random_hubert(config: SemanticConfig) -> nn.Module:
    try:
        seed = int(config.teacher.removeprefix("random:"))
    except ValueError:
        raise ConfigError(f"semantic.teacher: {config.teacher!r} should be random:SEED with a whole number") from None
    # A fork keeps the caller's generator, whose state decides the codec's own initial weights.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive_seed(seed, "teacher"))
        return HubertModel(
            HubertConfig(
                hidden_size=config.dim,
                num_hidden_layers=2,
                num_attention_heads=4,
                intermediate_size=2 * config.dim,
                conv_dim=(32,) * 7,
                num_conv_pos_embeddings=16,
                num_conv_pos_embedding_groups=4,
            )
        )


class TeacherFeatures:
    """A teacher without a codec, behind the `FrameFeatures` protocol.

    Args:
        source: a shipped name, a run or model folder, a hub id, or a model that is loaded already.
        layers: `mean` of all hidden states, or the index of one.
        window_s: longest stretch that attention sees at once.
        device: where it computes.

    Raises:
        XcodecLMError: as `load_teacher`.
        ConfigError: no such layer.
    """

    features = ("ssl",)

    def __init__(
        self,
        source: str | Path | nn.Module,
        layers: Literal["mean"] | int = "mean",
        window_s: float = 60.0,
        device: torch.device | str = "cpu",
    ):
        with quiet_transformers():
            self.model = source if isinstance(source, nn.Module) else load_teacher(source)
        check_layers(self.model, layers)
        self.model = self.model.eval().to(device)
        self.layers, self.window_s, self.device = layers, window_s, torch.device(device)
        self.sample_rate, self.hop_samples = TEACHER_RATE, hop_of(self.model.config)

    @torch.inference_mode()
    def extract(
        self,
        source: AudioTokens | Tensor,
        feature: str = "ssl",
        n_q: int | None = None,
        lengths: Tensor | None = None,
    ) -> Features:
        """Hidden states of audio.

        Args:
            source: wav (B, 1, N) in [-1, 1] at 16 kHz.
            feature: `ssl`, the only one.
            n_q: None; a teacher has no quantizers.
            lengths: (B,) valid samples of each row; each is padded on its right to whole hops.

        Returns:
            (B, D, T), one frame per hop.

        Raises:
            TokenError: tokens in place of audio, another feature, or a number of quantizers.
            AudioError: input that does not fit, see `codec.audio.check_wav`.
        """
        if isinstance(source, AudioTokens):
            raise TokenError("a teacher hears audio, it cannot look at tokens", "give wav (B, 1, N)")
        if feature not in self.features or n_q is not None:
            raise TokenError(f"a teacher has the feature ssl, without quantizers; got {feature!r}, n_q {n_q}")
        samples = check_wav(source, lengths, self.sample_rate, None)
        hop = self.hop_samples
        wholes = [math.ceil(int(n) / hop) * hop for n in samples]
        wav = torch.zeros(len(source), 1, max(wholes), device=self.device)
        for row, (n, signal) in enumerate(zip(samples.tolist(), source, strict=True)):
            wav[row, :, :n] = signal[:, :n]
        frames = torch.tensor([frames_of(self.model.config, whole + 2 * (hop // 2)) for whole in wholes])
        if int(frames.min()) < 1:
            raise AudioError(f"row {int(frames.argmin())} is too short for this teacher's convolutions")
        values = teacher_features(
            self.model, wav, hop, self.sample_rate, self.window_s, torch.tensor(wholes), self.layers
        )
        return Features(values.transpose(1, 2), frames.to(self.device), Fraction(self.sample_rate, hop))


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Keeps transformers' progress bars and warnings off the terminal while a model is built or loaded."""
    before = transformers.logging.get_verbosity()
    bars = transformers.logging.is_progress_bar_enabled()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    try:
        yield
    finally:
        transformers.logging.set_verbosity(before)
        if bars:
            transformers.logging.enable_progress_bar()
