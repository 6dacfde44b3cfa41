"""Text-to-sound models and CLAPs as folders for others: half precision, a card, and what they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from xcodec_lm import configs
from xcodec_lm.codec.load import count_parameters
from xcodec_lm.codec.runtime.run import read_metrics
from xcodec_lm.configs.clap import ClapTrainConfig
from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.configs.sound import SoundTrainConfig
from xcodec_lm.lm.conditioning import ConditionedGPT
from xcodec_lm.lm.load import find_model, load_lm, model_facts
from xcodec_lm.lm.shards import open_stores
from xcodec_lm.tasks.data.provenance import describe_rows
from xcodec_lm.tasks.report.card import command_of, data_lines, finish, write_card

if TYPE_CHECKING:
    from xcodec_lm.tasks.sound.clap import TextAudioEmbedder

PRETRAINED = Path(__file__).parents[1] / "pretrained"


# ------------------------------------------------------------------ text to sound


def write_sound_model(run: Path, out: Path, evaluation: str = "", notes: str = "") -> int:
    """Writes a text-to-sound model with its card, and the vectors of its training clips.

    Args:
        run: a finished run of `sound train`.
        out: folder to write; its name becomes the model's.
        evaluation: the printed result of `sound eval`.
        notes: Markdown about limits and intended use.

    Returns:
        Bytes of all files.

    Raises:
        XcodecLMError: the run has not finished, its codec or CLAP is one that others do not have, or the folder cannot
            be written.
    """
    from xcodec_lm.tasks.sound.neighbours import embed_training_clips, save_neighbours
    from xcodec_lm.tasks.sound.source import load_embedder

    folder = find_model(run)
    facts, config = model_facts(folder, ConditionedGPT.kind), configs.load(run, SoundTrainConfig)
    codec = facts["codec"].get("path")
    if codec is None or (folder.resolve().parent / codec).resolve().exists():
        raise XcodecLMError(
            f"{run} speaks the tokens of {codec}, a folder that others do not have", "tokenize with a shipped codec"
        )
    store = open_stores(config.data.tokens)
    kept = {name: facts[name] for name in ("codec", "steps", "labels") if facts.get(name)}
    neighbours = None
    if not facts.get("labels"):
        clap = load_embedder(folder, facts.get("embedder"), None, "cpu")
        kept["embedder"] = {**facts["embedder"], "source": source_for_others(folder, facts["embedder"], clap)}
        cache = Path(config.data.cache or store.folder / "clap-cache")
        neighbours = embed_training_clips(store, clap, cache)
    card = sound_card(run, out.resolve().name, {**facts, **kept}, evaluation, notes)
    ConditionedGPT.from_pretrained(folder).save_pretrained(out, kept, half=True)
    if neighbours is not None and neighbours.rows:
        save_neighbours(neighbours, out)
    write_card(card, out)
    return _bytes(out)


def source_for_others(folder: Path, facts: dict[str, Any], clap: TextAudioEmbedder) -> str:
    """How a model's folder names its CLAP where nobody has the run: a shipped name, or a name that was used.

    Raises:
        XcodecLMError: it is a folder or file, and none of the shipped ones is the same.
    """
    from xcodec_lm.tasks.sound.clap import load_clap

    source = str(facts["source"])
    if not (folder.resolve().parent / source.removeprefix("laion-clap:")).exists():
        return source
    for shipped in sorted(PRETRAINED.glob("clap-*")):
        if (shipped / "config.json").is_file() and load_clap(shipped).fingerprint == clap.fingerprint:
            return shipped.name
    raise XcodecLMError(
        f"{folder} is conditioned on {source}, a folder or file that others do not have",
        "ship that CLAP first (clap card), or train with a shipped one: --clap clap-tiny",
    )


def sound_card(
    run: Path, name: str, facts: dict[str, Any], evaluation: str = "", notes: str = ""
) -> tuple[str, dict[str, Any]]:
    """The card of a text-to-sound model.

    Args:
        run: a finished run of `sound train`.
        name: of the model.
        facts: its config.json, with the codec's and the CLAP's names for others.
        evaluation: the printed result of `sound eval`.
        notes: Markdown about limits and intended use.

    Returns:
        Markdown, and the provenance of the training data for a file beside it.

    Raises:
        XcodecLMError: the run has not finished, or its token store is gone.
    """
    loaded, config = load_lm(find_model(run), "cpu", ConditionedGPT), configs.load(run, SoundTrainConfig)
    store = open_stores(config.data.tokens)
    data = [describe_rows("tokens", [store.rows[index] for index in store.split("train")])]
    losses = next((row for row in reversed(read_metrics(run)) if "loss" in row), {})
    model, layout, embedder = config.model, config.model.layout, facts.get("embedder")
    told = (
        f"a vector of {embedder['source']} ({embedder['dim']} dimensions, fingerprint `{embedder['fingerprint']}`)"
        if embedder
        else f"one of {len(facts.get('labels') or ())} labels"
    )
    share = config.data.text_share
    lines = [
        f"# {name}",
        "",
        f"Text to sound over the tokens of {loaded.spec.name} (fingerprint `{loaded.spec.fingerprint}`): {model.arch}, "
        f"{model.layers} layers of {model.dim}, {loaded.model.parameter_count() / 1e6:.2f} M parameters; layout "
        f"{layout.name} of {layout.n_q} codebooks, block {model.block}.",
        "",
        f"Conditioned on {told}, in front of the codes. In training {share:.0%} of the examples had a caption's "
        f"vector, the others that of the sound itself, and {config.condition.drop:.0%} none."
        if embedder
        else f"Conditioned on {told}, in front of the codes; {config.condition.drop:.0%} of the examples had none.",
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


# ------------------------------------------------------------------ CLAP


def write_clap_model(run: Path, out: Path, evaluation: str = "", notes: str = "") -> int:
    """Writes a CLAP with its card.

    Args:
        run: a finished run of `clap train`.
        out: folder to write; its name becomes the model's.
        evaluation: figures as text.
        notes: Markdown about limits and intended use.

    Returns:
        Bytes of all files.

    Raises:
        XcodecLMError: the run has not finished, or the folder cannot be written.
    """
    from xcodec_lm.tasks.sound.clap import ClapEmbedder, load_clap
    from xcodec_lm.tasks.sound.clap_train import save_clap

    if not (run / "model" / "config.json").is_file():
        raise XcodecLMError(f"{run} has no model/: the run has not finished", "give a finished run of clap train")
    clap = load_clap(run)
    assert isinstance(clap, ClapEmbedder)
    card = clap_card(run, out.resolve().name, clap, evaluation, notes)
    clap.name = out.resolve().name
    for config in (clap.model.config, clap.model.config.text_config, clap.model.config.audio_config):
        config.name_or_path = ""  # transformers writes down the folder that a model was loaded from
    save_clap(clap, out)
    write_card(card, out)
    return _bytes(out)


def clap_card(run: Path, name: str, clap: Any, evaluation: str = "", notes: str = "") -> tuple[str, dict[str, Any]]:
    """The card of a CLAP.

    Args:
        run: a finished run of `clap train`.
        name: of the model.
        clap: the model, a `ClapEmbedder`.
        evaluation: figures as text.
        notes: Markdown about limits and intended use.

    Returns:
        Markdown, and the provenance of the training data for a file beside it.
    """
    config, data = configs.load(run, ClapTrainConfig), clap.ancestry["trained_on"]
    audio = config.model.audio
    last = next((row for row in reversed(read_metrics(run)) if "eval/recall@1" in row), {})
    divided = config.data.split_seed
    lines = [
        f"# {name}",
        "",
        f"Sounds and captions as vectors of {clap.dim} dimensions: transformers' ClapModel, "
        f"{count_parameters(clap.model) / 1e6:.2f} M parameters. It hears {audio.window_s} s at {audio.sample_rate} Hz "
        f"at once; longer sounds are the mean of several windows.",
        "",
        f"Fingerprint `{clap.fingerprint}`.",
        "",
        "## Training",
        "",
        f"    {command_of(run)}",
        "",
        f"{config.optim.steps} steps of {config.data.batch_clips} clips, seed {config.run.seed}"
        + (f", train and dev divided anew with seed {divided}" if divided else "")
        + ". Last validation: "
        + (", ".join(f"{key.removeprefix('eval/')} {value:.3f}" for key, value in last.items()
                     if key.startswith("eval/")) or "none")
        + ".",
        "",
        *data_lines(data),
    ]  # fmt: skip
    return finish(lines, evaluation, notes), {"command": command_of(run), "data": data}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
