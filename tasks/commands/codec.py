"""Commands of the noun `codec`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.commands.common import (
    DEFAULT_CODEC,
    Device,
    OutFile,
    Result,
    load_codec_for,
    note,
    read_text,
    say_conversions,
    train_command,
)


def codec_train(argv: list[str]) -> Result | int:
    """The command `codec train`."""
    return train_command("codec", "xcodec", argv)


def codec_encode(
    audio: Positional[Path],
    /,
    out: OutFile,
    codec: str = DEFAULT_CODEC,
    n_q: int | None = None,
    device: Device = "auto",
) -> Result:
    """Encodes an audio file of any rate, channel count and format into a .tokens file.

    Args:
        audio: the recording.
        codec: run folder, model folder, shipped name or hub id.
        out: the .tokens file to write.
        n_q: layers to keep; all by default.
        device: where to compute.
    """
    from xcodec_lm.codec.audio import load_audio

    model = load_codec_for(codec, device)
    recording = load_audio(audio, model.spec.sample_rate)
    say_conversions(audio, recording.conversions)
    tokens = model.encode(recording.wav[None].to(model.device), n_q=n_q)
    tokens.save(out)
    seconds = recording.wav.shape[1] / recording.sample_rate
    spec = tokens.spec
    return Result(
        f"{out}: {int(tokens.lengths[0])} frames x {spec.n_q} codes for {seconds:.2f} s, {spec.bitrate_kbps:.2f} kbps",
        {"tokens": str(out), "frames": int(tokens.lengths[0]), "n_q": spec.n_q, "seconds": seconds,
         "conversions": list(recording.conversions), "fingerprint": spec.fingerprint},
    )  # fmt: skip


def codec_decode(
    tokens: Positional[Path],
    /,
    out: OutFile,
    codec: str = DEFAULT_CODEC,
    n_q: int | None = None,
    device: Device = "auto",
) -> Result:
    """Decodes a .tokens file into audio.

    Args:
        tokens: the .tokens file.
        codec: the codec that made it; another one is refused.
        out: the audio file to write; its ending names the format.
        n_q: layers to use; all that the file has by default.
        device: where to compute.
    """
    from xcodec_lm.codec.audio import save_audio
    from xcodec_lm.codec.tokens import AudioTokens

    stored = AudioTokens.load(tokens)
    model = load_codec_for(codec, device, decode_only=True)
    wav, lengths = model.decode(stored if n_q is None else stored.take(n_q))
    clipped = save_audio(out, wav[0, :, : int(lengths[0])], model.spec.output_sample_rate)
    if clipped:
        note(f"{out}: {clipped} samples beyond full scale were clipped")
    seconds = int(lengths[0]) / model.spec.output_sample_rate
    return Result(f"{out}: {seconds:.2f} s", {"audio": str(out), "seconds": seconds, "clipped": clipped})


def codec_info(
    codec: Positional[str] = DEFAULT_CODEC, /, listing: Annotated[bool, arg(name="list")] = False, verify: bool = False
) -> Result:
    """Shows what a codec is, or which codecs are known.

    Args:
        codec: run folder, model folder, shipped name or hub id.
        listing: list the codecs that can be used here, and what is missing for the others.
        verify: compute the fingerprint from the weights and compare it with the stated one.
    """
    from xcodec_lm.codec.load import PRETRAINED, count_parameters, find_codec, verify_fingerprint
    from xcodec_lm.codec.registry import codec_rows, codec_table, known_codecs
    from xcodec_lm.codec.semantic import UNTRAINED_NOTICE, is_untrained

    if listing:
        known = known_codecs(PRETRAINED)
        return Result(codec_table(known), codec_rows(known))
    model = load_codec_for(codec, "cpu")
    spec = model.spec
    teacher = model.semantic_config.teacher if hasattr(model, "semantic_config") else "none"
    parts = {name: count_parameters(module) for name, module in model.named_children()}
    output = "" if spec.output_sample_rate == spec.sample_rate else f" (out {spec.output_sample_rate} Hz)"
    sizes = sorted(set(spec.codebook_sizes))
    data = {
        "name": spec.name, "sample_rate": spec.sample_rate, "output_sample_rate": spec.output_sample_rate,
        "frame_rate": float(spec.frame_rate), "n_q": spec.n_q, "codebook_size": sizes[-1],
        "bitrate_kbps": spec.bitrate_kbps, "teacher": teacher, "causal": model.causal,
        "lookahead_frames": model.lookahead_frames, "parameters": sum(parts.values()), "parts": parts,
        "features": list(model.features), "fingerprint": spec.fingerprint, "folder": str(find_codec(codec)),
    }  # fmt: skip
    named = ", ".join(f"{key} {value / 1e6:.2f}" for key, value in parts.items() if value)
    lines = [
        f"{spec.name}: {spec.sample_rate} Hz{output}, {float(spec.frame_rate):g} frames/s, "
        f"{spec.n_q} x {'/'.join(map(str, sizes))} codes, {spec.bitrate_kbps:g} kbps",
        f"teacher: {teacher}" + (f" ({UNTRAINED_NOTICE})" if is_untrained(teacher) else ""),
        f"causal: {'yes' if model.causal else 'no'}; look-ahead {model.lookahead_frames} frames",
        f"parameters: {sum(parts.values()) / 1e6:.2f} M ({named})",
        f"features: {', '.join(model.features)}",
        f"fingerprint: {spec.fingerprint}",
    ]
    if verify:
        stated, computed = verify_fingerprint(find_codec(codec))
        data["verified"] = stated == computed
        if stated != computed:
            raise XcodecLMError(f"{codec}: config.json states fingerprint {stated}, the weights have {computed}")
        lines.append("verified: the weights have this fingerprint")
    return Result("\n".join(lines), data)


def codec_ship(
    run: Positional[Path], /, out: OutFile, evaluation: Path | None = None, notes: Path | None = None
) -> Result:
    """Writes a codec's model folder for others: half precision, a card, and what it was trained on.

    Args:
        run: finished run of codec train.
        out: folder to write; its name becomes the codec's.
        evaluation: what `codec eval` printed, to go into the card.
        notes: Markdown about limits, to go into the card.
    """
    from xcodec_lm.codec.load import load_codec, save_codec
    from xcodec_lm.tasks.report.card import codec_card as make_card
    from xcodec_lm.tasks.report.card import write_card

    text, data = make_card(run, *(read_text(path) for path in (evaluation, notes)))
    codec = load_codec(run)
    if codec.has_semantics:  # where its author kept the teacher helps nobody; the new folder stands for it
        codec.semantic_config = replace(codec.semantic_config, teacher=out.resolve().name)
    before = codec.spec.fingerprint
    save_codec(codec, out, name=out.resolve().name, half=True)
    text = text.replace(before, codec.spec.fingerprint).replace(
        f"# {run.resolve().name}\n", f"# {codec.spec.name}\n", 1
    )
    write_card((text, data), out)
    size = sum(path.stat().st_size for path in out.iterdir() if path.is_file())
    return Result(
        f"{out}: {size / 1e6:.1f} MB, fingerprint {codec.spec.fingerprint}",
        {"folder": str(out), "bytes": size, "fingerprint": codec.spec.fingerprint},
    )
