"""The command `codec stream`."""

from __future__ import annotations

import math
from pathlib import Path

from tyro.conf import Positional

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.tasks.commands.common import DEFAULT_CODEC, Device, Result, load_codec_for, say_conversions


def codec_stream(
    audio: Positional[Path],
    codec: Positional[str] = DEFAULT_CODEC,
    /,
    n_q: int | None = None,
    push_frames: int = 10,
    device: Device = "auto",
) -> Result:
    """Streams a recording through a codec and says how far that is from decoding and encoding it at once.

    The decoder is tried with all the look-ahead that it needs and with less; look-ahead is latency.

    Args:
        audio: the recording.
        codec: run folder, model folder, shipped name or hub id.
        n_q: layers; all by default.
        push_frames: frames given to the stream at a time.
        device: where to compute.
    """
    from xcodec_lm.codec.audio import load_audio
    from xcodec_lm.codec.streaming import declared_agreement, declared_error

    if push_frames < 1:
        raise XcodecLMError(f"--push-frames must be at least 1, got {push_frames}")
    model = load_codec_for(codec, device)
    recording = load_audio(audio, model.spec.sample_rate)
    say_conversions(audio, recording.conversions)
    wav = recording.wav[None].to(model.device)  # (1, 1, N)
    tokens = model.encode(wav, n_q=n_q)
    frame_s = 1 / float(model.spec.frame_rate)
    needed = model.stream_decoder(1).latency_frames
    decoder_rows = []
    lines = [
        f"{model.spec.name}, {tokens.spec.n_q} layers, {int(tokens.lengths[0])} frames of {1000 * frame_s:g} ms, "
        f"{push_frames} at a time",
        "decoder: look-ahead, difference from decoding at once",
    ]
    for ahead in sorted({needed, needed // 2, min(2, needed), 0}, reverse=True):
        error = declared_error(model, tokens, model.stream_decoder(1, lookahead_frames=ahead), push_frames)
        row = {"lookahead_frames": ahead, "snr_db": error.snr_db, "max_error": error.max_error}
        decoder_rows.append({key: value if math.isfinite(value) else None for key, value in row.items()})
        same = (
            "none"
            if math.isinf(error.snr_db)
            else f"{error.snr_db:.1f} dB signal-to-noise, largest {error.max_error:.1e}"
        )
        lines.append(f"  {ahead:3d} frames ({1000 * ahead * frame_s:4.0f} ms)  {same}")
    data = {"codec": model.spec.name, "n_q": tokens.spec.n_q, "frames": int(tokens.lengths[0]), "decoder": decoder_rows}
    if hasattr(model, "stream_encoder"):
        encoder = model.stream_encoder(1)
        agreement = declared_agreement(model, wav, encoder, push_frames * model.spec.hop_samples)
        data["encoder"] = {"lookahead_frames": agreement.latency_frames, "equal_codes": list(agreement.layers)}
        lines += [
            f"encoder: {agreement.latency_frames} frames ({1000 * agreement.latency_frames * frame_s:.0f} ms) of "
            f"look-ahead, {agreement.total:.2%} of the codes equal those of encoding at once",
            "  by layer: " + " ".join(f"{share:.2%}" for share in agreement.layers),
        ]
    return Result("\n".join(lines), data)
