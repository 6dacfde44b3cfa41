"""The inner vectors of an X-Codec, for probes and ABX."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xcodec_lm.codec.audio import check_wav
from xcodec_lm.codec.batching import keep
from xcodec_lm.codec.tokens import AudioTokens, Features
from xcodec_lm.codec.xcodec import XCodec
from xcodec_lm.configs.errors import TokenError


@torch.inference_mode()
def extract(
    codec: XCodec, source: AudioTokens | Tensor, feature: str, n_q: int | None = None, lengths: Tensor | None = None
) -> Features:
    """Vectors over time, for probes and ABX.

    Args:
        codec: whose vectors.
        source: tokens, or wav (B, 1, N); `pre_vq` and `ssl` exist before the quantizer and need wav.
        feature: `pre_vq` what is quantized; `post_vq` sum of the first `n_q` codes' vectors; `fc_post1` and
            `fc_post2` what either decoder is given; `sem_decoder` the restored features of the teacher; `ssl`
            those of the teacher itself.
        n_q: layers; None for all that there are.
        lengths: (B,) valid samples of wav.

    Raises:
        TokenError: a feature that this codec, or this source, does not have.
    """
    if feature not in codec.features:
        raise TokenError(f"{codec.spec.name} has no feature {feature!r}", f"it has {', '.join(codec.features)}")
    if feature in ("pre_vq", "ssl"):
        if isinstance(source, AudioTokens):
            raise TokenError(f"{feature!r} comes before the quantizer; tokens no longer hold it", "give wav")
        lengths = check_wav(source, lengths, codec.spec.sample_rate, None)
        rows: list[Tensor] = [source.new_zeros(0)] * len(source)
        for members, acoustic, heard, frames in codec.branches(source, lengths):
            if feature == "ssl" and heard is not None:
                values, frames = heard.values.transpose(1, 2), heard.frames
            else:
                values = codec.join(acoustic, heard)
            for index, row, count in zip(members, values, frames, strict=True):
                rows[index] = row[:, :count]
        counts = torch.tensor([row.shape[1] for row in rows], device=codec.device)
        values = nn.utils.rnn.pad_sequence([row.t() for row in rows], batch_first=True).transpose(1, 2)
        return Features(values, counts, codec.spec.frame_rate)
    tokens = source if isinstance(source, AudioTokens) else codec.encode(source, lengths, n_q)
    codec.spec.check_same_codec(tokens.spec, "the token batch")
    tokens.check_range()
    tokens = (tokens if n_q is None else tokens.take(n_q)).to(codec.device)
    values = codec.quantizer.decode(tokens.codes)  # (B, D, T)
    mask = keep(torch.ones_like(values[:, :1]), tokens.lengths)
    if feature == "fc_post2":
        values = codec.fc2(values.transpose(1, 2)).transpose(1, 2)
    elif feature != "post_vq":
        values = codec.fc1(values.transpose(1, 2)).transpose(1, 2)
        if feature == "sem_decoder":
            values = codec.decoder_semantic(values, mask)
    return Features(values * mask, tokens.lengths, codec.spec.frame_rate)
