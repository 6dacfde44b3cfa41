"""Training of a CLAP on captioned clips: transformers' `ClapModel` from random weights, by symmetric InfoNCE.

In a batch every clip is told from the captions of all others, and every caption from all other clips. Captions that say
the same count as right together, and those of the same label in part, since a batch of everyday sounds holds several
barking dogs.

Source: Wu et al. 2023, arXiv 2211.06687; targets by label after Yang et al. 2022, arXiv 2204.03610.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import ClapAudioConfig, ClapConfig, ClapFeatureExtractor, ClapModel, ClapTextConfig, RobertaTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from xcodec_lm.codec.audio import load_audio
from xcodec_lm.codec.clips import Clip
from xcodec_lm.codec.load import count_parameters
from xcodec_lm.codec.runtime.files import write_files
from xcodec_lm.codec.runtime.order import derive_seed, generator
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.codec.runtime.run import Run, RunOptions
from xcodec_lm.codec.semantic import quiet_transformers
from xcodec_lm.configs.clap import LEAST_VOCABULARY, ClapAudioTowerConfig, ClapModelConfig, ClapTrainConfig
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.tasks.eval.train_evaluators import thin
from xcodec_lm.tasks.sound.clap import NOT_LEARNT, ClapEmbedder, caption_words, log_mel
from xcodec_lm.tasks.sound.clap_batches import (
    Batch,
    CaptionedClips,
    ancestry_of,
    caption_of,
    divide,
    label_of,
    mask_spectra,
)

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")
"""In RoBERTa's order, so that its ids are ClapTextConfig's defaults."""
LARGEST_SCALE = 100.0
"""Of the cosines; CLIP's and CLAP's limit."""


def train(config: ClapTrainConfig, options: RunOptions) -> Path:
    """Trains a CLAP, or goes on with it.

    Returns:
        The run folder; `model/` in it, in half precision, loads with `clap.load_clap` and in transformers.

    Raises:
        ConfigError: no captions, or more than one device.
        XcodecLMError: an unreadable recording, a folder of another run, a loss that is not finite.
    """
    clips, held_out = divide(config.data)
    if not held_out:
        say("note: no clip has split: dev; validation uses training clips")
    held_out = thin(held_out or clips, config.data.eval_clips)
    with Run(config, options, label="clap") as run:
        if run.world > 1:
            raise ConfigError("a CLAP is trained on one device", "leave out --gpus; a batch is compared as a whole")
        tokenizer = build_tokenizer(config, training_texts(clips))
        model = build_model(config, len(tokenizer)).to(run.device)
        extractor, optim = build_extractor(config.model.audio), config.optim
        words = sorted({word for text in training_texts(clips) for word in caption_words(text)})
        embedder = ClapEmbedder(model, tokenizer, extractor, options.out.name, ancestry_of(config, clips), words)
        say(describe(config, model, clips, held_out))
        optimizer = make_optimizer(model, config)
        run.track_state({"model": model}, {"optimizer": optimizer})
        done, batches = run.resume(), CaptionedClips(config, clips)
        if not done:
            centre(model, lambda: loss_of(model, embedder, batches.batch(0), config, 0))
        for step in run.steps(done):
            for group in optimizer.param_groups:
                group["lr"] = optim.lr_at(step)
            model.train()
            torch.manual_seed(derive_seed(config.run.seed, "dropout", step))
            loss = loss_of(model, embedder, batches.batch(step), config, step)
            value = float(loss.detach())
            run.check_finite(step, value)
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            nn.utils.clip_grad_norm_(model.parameters(), optim.max_grad_norm)
            optimizer.step()
            metrics: dict[str, float] = {}
            if run.due(step, config.run.log_every):
                scale = min(LARGEST_SCALE, float(model.logit_scale_a.detach().exp()))
                metrics = {"loss": value, "chance": math.log(config.data.batch_clips), "scale": scale,
                           "lr": optim.lr_at(step)}  # fmt: skip
            if run.due(step, config.run.eval_every):
                model.eval()
                metrics |= evaluate(embedder, held_out, clips)
                if run.is_main:
                    say("clap: " + format_metrics(metrics))
            if metrics:
                run.log(step, metrics, show=tuple(name for name in ("loss", "eval/class_accuracy") if name in metrics))
        if run.is_main:
            save_clap(embedder, run.model_folder)
    return options.out


def dry_run(config: ClapTrainConfig) -> str:
    """What a run of this configuration would need, without making it."""
    clips, held_out = divide(config.data) if config.data.manifests else ([], [])
    with quiet_transformers(), torch.device("meta"):
        model = ClapModel(transformers_config(config.model, config.model.text.vocab_size))
    return describe(config, model, clips, held_out)


def describe(config: ClapTrainConfig, model: nn.Module, clips: Sequence[Clip], held_out: Sequence[Clip]) -> str:
    """What a run will need, for the user before it starts."""
    captions, audio = len({caption_of(clip) for clip in clips}), config.model.audio
    parameters = count_parameters(model)
    return "\n".join(
        [
            f"clap: {parameters / 1e6:.2f} M parameters, {2 * parameters / 1e6:.1f} MB in half precision; "
            f"{audio.window_s} s at {audio.sample_rate} Hz",
            f"data: {len(clips)} clips with {captions} captions; {len(held_out)} clips for validation",
            f"step: {config.data.batch_clips} clips, a loss of {math.log(config.data.batch_clips):.2f} is chance; "
            f"{config.optim.steps} steps",
        ]
    )


# ---------------------------------------------------------------------- the model


def transformers_config(config: ClapModelConfig, vocabulary: int) -> ClapConfig:
    """The sizes in the terms of transformers."""
    text, audio = config.text, config.audio
    text_config = ClapTextConfig(
        vocab_size=vocabulary,
        hidden_size=text.width,
        num_hidden_layers=text.layers,
        num_attention_heads=text.heads,
        intermediate_size=text.inner,
        max_position_embeddings=text.longest + 2,  # positions are counted from the id of padding on
        layer_norm_eps=1e-5,
        hidden_dropout_prob=config.dropout,
        attention_probs_dropout_prob=config.dropout,
    )
    audio_config = ClapAudioConfig(
        window_size=audio.attention_window,
        num_mel_bins=audio.mel_bands,
        spec_size=audio.image_size,
        patch_size=audio.patch_size,
        patch_stride=[audio.patch_size, audio.patch_size],
        patch_embeds_hidden_size=audio.width,
        hidden_size=audio.width * 2 ** (len(audio.depths) - 1),
        depths=list(audio.depths),
        num_attention_heads=list(audio.heads),
        num_hidden_layers=len(audio.depths),
        hidden_dropout_prob=config.dropout,
    )
    return ClapConfig(text_config=text_config.to_dict(), audio_config=audio_config.to_dict(), projection_dim=config.dim)


def build_model(config: ClapTrainConfig, vocabulary: int) -> ClapModel:
    """A model with fresh weights, which the seed decides.

    HTSAT knows no absolute positions: high and low sounds differ by little more than the norm of each mel band. That
    norm's bias therefore begins as a ramp over the bands instead of zero.
    """
    torch.manual_seed(derive_seed(config.run.seed, "clap"))
    with quiet_transformers():
        model = ClapModel(transformers_config(config.model, vocabulary))
    bias = model.audio_model.audio_encoder.batch_norm.bias
    with torch.no_grad():
        bias.copy_(torch.linspace(-1, 1, len(bias)))
        for module in model.modules():
            if isinstance(module, nn.Linear):
                # transformers draws these so narrowly that all clips, and all captions, begin as nearly one vector, and
                # the loss of a small model then stays at chance for long.
                module.weight.normal_(0, module.in_features**-0.5)
        for scale in (model.logit_scale_a, model.logit_scale_t):
            scale.fill_(math.log(1 / config.loss.temperature))
    return model


def centre(model: ClapModel, forward: Callable[[], object]) -> None:
    """Moves the biases of both projections so that the embeddings of a first batch are centred on zero.

    Otherwise all clips begin in one direction and all captions in another, and a small model first learns to give one
    vector for everything, where the loss has hardly a slope.

    Args:
        model: with fresh weights.
        forward: computes the batch.
    """
    lasts = [model.audio_projection.linear2, model.text_projection.linear2]
    means: dict[nn.Module, Tensor] = {}

    def note_mean(module: nn.Module, _: object, output: Tensor) -> None:
        means[module] = output.mean(dim=0)

    hooks = [last.register_forward_hook(note_mean) for last in lasts]
    model.train()
    with torch.no_grad():
        forward()
        for last, hook in zip(lasts, hooks, strict=True):
            hook.remove()
            last.bias.sub_(means[last])


def build_extractor(audio: ClapAudioTowerConfig) -> ClapFeatureExtractor:
    """The spectrogram's settings in the terms of transformers."""
    return ClapFeatureExtractor(
        feature_size=audio.mel_bands, sampling_rate=audio.sample_rate, hop_length=audio.hop_samples,
        max_length_s=audio.window_s, fft_window_size=audio.fft_samples, frequency_min=audio.lowest_hz,
        frequency_max=audio.highest_hz, truncation="rand_trunc", padding="repeatpad",
    )  # fmt: skip


def build_tokenizer(config: ClapTrainConfig, texts: Sequence[str]) -> RobertaTokenizer:
    """RoBERTa's kind of tokenizer: all bytes, and merges of them learnt from texts.

    Args:
        config: of the run.
        texts: of the training clips; few texts give fewer merges than there is room for.
    """
    text = config.model.text
    vocabulary = {symbol: index for index, symbol in enumerate((*SPECIALS, *bytes_to_unicode().values()))}
    with quiet_transformers():
        tokenizer = RobertaTokenizer(vocab=vocabulary, merges=[])
        if text.vocab_size > LEAST_VOCABULARY:
            tokenizer = tokenizer.train_new_from_iterator(list(texts), text.vocab_size, show_progress=False)
    tokenizer.model_max_length = text.longest
    return tokenizer


def make_optimizer(model: ClapModel, config: ClapTrainConfig) -> torch.optim.AdamW:
    """AdamW that decays matrices and kernels, not biases, norms and scales."""
    optim = config.optim
    matrices = [parameter for parameter in model.parameters() if parameter.dim() >= 2]
    vectors = [parameter for parameter in model.parameters() if parameter.dim() < 2]
    groups = [{"params": matrices, "weight_decay": optim.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps)


def save_clap(embedder: ClapEmbedder, folder: Path) -> None:
    """Writes a model in transformers' layout and half precision; `clap.load_clap` reads it.

    Raises:
        XcodecLMError: the folder cannot be written.
    """
    model = embedder.model
    weights = {name: (value.half() if value.is_floating_point() else value).detach().cpu().contiguous()
               for name, value in model.state_dict().items() if not name.endswith(NOT_LEARNT)}  # fmt: skip
    own = {"name": embedder.name, "ancestry": embedder.ancestry, "known_words": sorted(embedder.known_words)}
    header = {**model.config.to_dict(), "architectures": ["ClapModel"], "dtype": "float16", "xcodec_lm": own}
    text = json.dumps(header, indent=1, ensure_ascii=False) + "\n"
    settings = json.dumps(embedder.extractor.to_dict(), indent=1) + "\n"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        embedder.tokenizer.save_pretrained(str(folder))
    except OSError as error:
        raise XcodecLMError(f"cannot write {folder}: {error}", "choose a folder that can be written") from None
    write_files(
        folder,
        {
            "model.safetensors": lambda path: save_file(weights, path, metadata={"format": "pt"}),
            "config.json": lambda path: path.write_text(text, encoding="utf-8"),
            "preprocessor_config.json": lambda path: path.write_text(settings, encoding="utf-8"),
        },
    )


# ---------------------------------------------------------------------- loss and validation


def training_texts(clips: Sequence[Clip]) -> list[str]:
    """Captions and labels of clips."""
    return [text for clip in clips for text in (caption_of(clip), label_of(clip)) if text]


def loss_of(model: ClapModel, embedder: ClapEmbedder, batch: Batch, config: ClapTrainConfig, step: int) -> Tensor:
    """The loss of a batch."""
    device, loss = model.device, config.loss
    spectra = log_mel(batch.wavs.to(device), embedder.extractor, dtype=torch.float32)
    spectra = mask_spectra(spectra, loss.mask_share, generator(config.run.seed, "mask", step))
    tokens = embedder.tokenizer(
        batch.captions, padding=True, truncation=True, max_length=embedder.longest, return_tensors="pt",
        split_special_tokens=True,
    ).to(device)  # fmt: skip
    output = model(input_ids=tokens.input_ids, attention_mask=tokens.attention_mask, input_features=spectra)
    targets = soft_targets(batch, loss.label_weight).to(device)
    return contrastive_loss(output.audio_embeds, output.text_embeds, model.logit_scale_a, model.logit_scale_t, targets)


def soft_targets(batch: Batch, label_weight: float) -> Tensor:
    """(B, B), rows that add up to 1: which captions are right for which clips.

    A clip's own caption and equal ones weigh 1, others with the same labels `label_weight`. With different captions and
    `label_weight` 0 this is the identity, and the loss plain InfoNCE.
    """
    rows = [
        [1.0 if one == other else label_weight * float(bool(mine) and mine == theirs)
         for other, theirs in zip(batch.names, batch.labels, strict=True)]
        for one, mine in zip(batch.names, batch.labels, strict=True)
    ]  # fmt: skip
    weights = torch.tensor(rows)
    return weights / weights.sum(dim=1, keepdim=True)


def contrastive_loss(audio: Tensor, text: Tensor, scale_a: Tensor, scale_t: Tensor, targets: Tensor) -> Tensor:
    """Symmetric InfoNCE.

    Args:
        audio: (B, dim) of unit length.
        text: (B, dim) of unit length.
        scale_a: () log of the factor on cosines, for clips that look for captions.
        scale_t: () the same for captions that look for clips.
        targets: (B, B) of `soft_targets`.
    """
    cosines = audio @ text.T  # (B, B)
    from_audio = F.cross_entropy(scale_a.exp().clamp(max=LARGEST_SCALE) * cosines, targets)
    from_text = F.cross_entropy(scale_t.exp().clamp(max=LARGEST_SCALE) * cosines.T, targets)
    return (from_audio + from_text) / 2


def evaluate(embedder: ClapEmbedder, clips: Sequence[Clip], training: Sequence[Clip]) -> dict[str, float]:
    """How well unseen clips find their captions, beside chance.

    Args:
        embedder: its model in eval mode.
        clips: held out.
        training: whose captions say what a label sounds like in words.

    Returns:
        `eval/recall@1` and `@5` of a clip's caption among the different captions of the held-out clips, and their
        `_chance`; where there are labels, `eval/class_accuracy` (a label is the mean of its captions' vectors) with
        `eval/class_chance`, one in so many labels, and `eval/class_majority`, of always naming the most frequent one.
    """
    wavs = [load_audio(clip.path, embedder.sample_rate).wav[0].numpy() for clip in clips]
    heard = torch.cat([embedder.embed_audio([wav]) for wav in wavs])  # (N, dim)
    captions = sorted({caption_of(clip) for clip in clips})
    right = torch.tensor([captions.index(caption_of(clip)) for clip in clips])
    ranking = (heard @ embedder.embed_texts(captions).T).argsort(dim=1, descending=True)  # (N, captions)
    found = {}
    for k in (1, 5):
        found[f"eval/recall@{k}"] = float((ranking[:, :k] == right[:, None]).any(dim=1).float().mean())
        found[f"eval/recall@{k}_chance"] = min(1.0, k / len(captions))
    labels = sorted({label_of(clip) for clip in clips} - {""})
    named = [(index, label_of(clip)) for index, clip in enumerate(clips) if label_of(clip)]
    if len(labels) < 2:
        return found
    prompts = []
    for label in labels:
        texts = sorted({label, *(caption_of(clip) for clip in training if label_of(clip) == label)})
        prompts.append(F.normalize(embedder.embed_texts(texts).mean(dim=0), dim=0))
    guesses = (heard @ torch.stack(prompts).T).argmax(dim=1).tolist()
    counts = [sum(label == name for _, label in named) for name in labels]
    found["eval/class_accuracy"] = sum(labels[guesses[index]] == label for index, label in named) / len(named)
    found["eval/class_chance"] = 1 / len(labels)
    found["eval/class_majority"] = max(counts) / len(named)
    return found


def format_metrics(metrics: dict[str, float]) -> str:
    """A validation in one line."""
    parts = [f"recall@{k} {metrics[f'eval/recall@{k}']:.2f} (chance {metrics[f'eval/recall@{k}_chance']:.2f})"
             for k in (1, 5)]  # fmt: skip
    if "eval/class_accuracy" in metrics:
        parts.append(f"class {metrics['eval/class_accuracy']:.2f} (chance {metrics['eval/class_chance']:.2f})")
    return ", ".join(parts)
