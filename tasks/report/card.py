"""Model cards: what a codec or language model is, what it was trained on, by which command, and how well it does."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

from xcodec_lm import configs
from xcodec_lm.codec.load import read_config
from xcodec_lm.codec.runtime.run import read_metrics
from xcodec_lm.configs import CodecTrainConfig
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.configs.lm import LMTrainConfig
from xcodec_lm.configs.tts import TTSTrainConfig
from xcodec_lm.lm.load import find_model, load_lm, model_facts
from xcodec_lm.lm.shards import TokenStore
from xcodec_lm.lm.valle_ar import ValleAR
from xcodec_lm.lm.valle_nar import ValleNAR
from xcodec_lm.tasks.data.provenance import describe_rows, provenance


def codec_card(run: Path, evaluation: str = "", notes: str = "") -> tuple[str, dict[str, Any]]:
    """The card of a codec's run.

    Args:
        run: a run folder of `codec train` that has finished.
        evaluation: the printed result of `codec eval`.
        notes: Markdown about limits and intended use.

    Returns:
        Markdown, and the provenance of the training data for a file beside it.

    Raises:
        XcodecLMError: the run has not finished, or its manifests are gone.
    """
    if not (run / "model" / "config.json").is_file():
        raise XcodecLMError(f"{run} has no model/: the run has not finished", "give a finished run of codec train")
    config = configs.load(run, CodecTrainConfig)
    data = provenance(config.data.manifests)
    block = read_config(run / "model")["xcodec_lm"]
    model, rows = config.model, read_metrics(run)
    losses = next((row for row in reversed(rows) if "mel" in row), {})
    frame_rate = model.sample_rate / model.hop_samples
    lines = [
        f"# {block['name']}",
        "",
        f"{model.sample_rate} Hz, {frame_rate:g} frames/s, {model.quantizer.n_q} codebooks of "
        f"{model.quantizer.codebook_size} codes, {model.quantizer.dim} wide. Teacher: {_teacher(config)}.",
        "",
        f"Fingerprint `{block['fingerprint']}`.",
        "",
        "## Training",
        "",
        f"    {command_of(run)}",
        "",
        f"{config.optim.steps} steps of {config.data.batch_s:g} s of audio, seed {config.run.seed}. Losses at the end: "
        + ", ".join(f"{key} {value:.3g}" for key, value in losses.items() if key in ("mel", "stft", "semantic"))
        + ".",
        "",
        *data_lines(data),
    ]
    return finish(lines, evaluation, notes), {"command": command_of(run), "data": data}


def music_card(run: Path, evaluation: str = "", notes: str = "") -> tuple[str, dict[str, Any]]:
    """The card of a music model's run.

    Args:
        run: a run folder of `music train` that has finished.
        evaluation: the printed result of `music eval`.
        notes: Markdown about limits and intended use.

    Returns:
        Markdown, and the provenance of the training data for a file beside it.

    Raises:
        XcodecLMError: the run has not finished, or its token store is gone.
    """
    loaded = load_lm(find_model(run))
    config = configs.load(run, LMTrainConfig)
    stores = [TokenStore.open(folder) for folder in config.data.tokens]
    data = [describe_rows(store.folder.name, [store.rows[index] for index in store.split("train")]) for store in stores]
    losses = next((row for row in reversed(read_metrics(run)) if "loss" in row), {})
    model, layout = config.model, config.model.layout
    lines = [
        f"# {run.resolve().name}",
        "",
        f"A music language model over the tokens of {loaded.spec.name} (fingerprint `{loaded.spec.fingerprint}`): "
        f"{model.arch}, {model.layers} layers of {model.dim}, {loaded.model.parameter_count() / 1e6:.2f} M parameters; "
        f"layout {layout.name} of {layout.n_q} codebooks, block {model.block}.",
        "",
        "## Training",
        "",
        f"    {command_of(run)}",
        "",
        f"{config.optim.steps} steps of {config.data.batch_codes} codes, seed {config.run.seed}; training loss at the "
        f"end {losses.get('bits', float('nan')):.2f} bits a code.",
        "",
        *data_lines(data),
    ]
    return finish(lines, evaluation, notes), {"command": command_of(run), "data": data}


def tts_card(run: Path, evaluation: str = "", notes: str = "") -> tuple[str, dict[str, Any]]:
    """The card of speech models.

    Args:
        run: a folder of `tts train`, its stages finished.
        evaluation: the printed result of `tts eval`.
        notes: Markdown about limits and intended use.

    Returns:
        Markdown, and the provenance of the training data for a file beside it.

    Raises:
        XcodecLMError: a stage has not finished, or a token store is gone.
    """
    lines, commands = [f"# {run.resolve().name}", ""], {}
    data: list[dict[str, Any]] = []
    for stage, kind in (("ar", ValleAR), ("nar", ValleNAR)):
        if not (run / stage).is_dir():
            continue
        folder = find_model(run / stage)
        facts, config = model_facts(folder, kind.kind), configs.load(run / stage, TTSTrainConfig)
        if not commands:
            spec = facts["codec"]["spec"]
            lines.append(f"Zero-shot speech over the tokens of {spec['name']} (fingerprint `{spec['fingerprint']}`).")
            stores = [TokenStore.open(place) for place in config.data.tokens]
            data = [describe_rows(at.folder.name, [at.rows[i] for i in at.split("train")]) for at in stores]
        losses = next((row for row in reversed(read_metrics(run / stage)) if "loss" in row), {})
        model = kind.from_pretrained(folder)
        commands[stage] = command_of(run / stage)
        lines += [
            "", f"## {stage.upper()}", "",
            f"{model.config.layers} layers of {model.config.dim}, {model.parameter_count() / 1e6:.2f} M parameters.",
            "",
            f"    {commands[stage]}", "",
            f"{config.optim.steps} steps of {config.data.batch_codes} positions, seed {config.run.seed}; training loss "
            f"at the end {losses.get('bits', float('nan')):.2f} bits a code.",
        ]  # fmt: skip
    lines += ["", *data_lines(data)]
    return finish(lines, evaluation, notes), {"commands": commands, "data": data}


def data_lines(data: list[dict[str, Any]]) -> list[str]:
    """The section about the data of a card, from `tasks.data.provenance`."""
    licences = sum((Counter(entry["licences"]) for entry in data), Counter())
    return [
        "## Data",
        "",
        "Only rows with `split: train`. `provenance.json` lists speakers, pieces, recordings and hashes.",
        "",
        "| manifest | rows | minutes | sha256 of its train ids |",
        "|---|---|---|---|",
        *(f"| {e['manifest']} | {e['rows']} | {e['minutes']} | `{e['ids_sha256'][:16]}` |" for e in data),
        "",
        "Licences of the recordings: " + ", ".join(f"{name} ({count})" for name, count in licences.most_common()) + ".",
        "",
        "Sources: " + ", ".join(sorted({source for entry in data for source in entry["sources"]})) + ".",
    ]


def finish(lines: list[str], evaluation: str, notes: str) -> str:
    """The lines of a card with what was measured and what is to be said of limits."""
    if evaluation:
        lines += ["", "## Measured on recordings that no part was trained on", "", "```", evaluation.rstrip(), "```"]
    if notes:
        lines += ["", "## Limits", "", notes.strip()]
    return "\n".join(lines) + "\n"


def write_card(card: tuple[str, dict[str, Any]], folder: Path) -> None:
    """Writes README.md and provenance.json into a model's folder.

    Raises:
        XcodecLMError: the folder cannot be written.
    """
    text, data = card
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(text, encoding="utf-8")
        (folder / "provenance.json").write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    except OSError as error:
        raise XcodecLMError(f"cannot write {folder}: {error.strerror}", "choose another folder with -o") from None


def command_of(run: Path) -> str:
    """The run's command without the places where its author kept things."""
    words = (run / "command.txt").read_text(encoding="utf-8").split()
    parts = [word.partition("=") for word in words]
    return " ".join("".join(Path(part).name if Path(part).is_absolute() else part for part in word) for word in parts)


def _teacher(config: CodecTrainConfig) -> str:
    teacher = config.semantic.teacher
    return "none (the twin without semantics)" if teacher == "none" else f"HuBERT, width {config.semantic.dim}"
