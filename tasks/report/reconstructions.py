"""The grid of reconstructions: original | twin | X-Codec, a row for each number of codebooks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from xcodec_lm.tasks.report.document import NoPlayer, Player, PlayerRow, Players

if TYPE_CHECKING:
    from xcodec_lm.codec.clips import Clip
    from xcodec_lm.codec.tokens import AudioTokenizer

N_QS = (1, 2, 4, 8)
LONGEST_S = 6.0
ORIGINAL = "original"


def reconstruction_grid(
    head: str, original: Any, sample_rate: int, made: Mapping[str, Mapping[int, Any]], rates: Mapping[str, int],
    n_qs: Sequence[int] = N_QS,
) -> Players:  # fmt: skip
    """Players with spectrograms for one recording: columns original and each codec, rows n_q.

    The original stands in every row, so that rows share loudness, time axis and colours with it.

    Args:
        head: what is heard, such as the recording's id.
        original: (N,) samples.
        sample_rate: of the original, in Hz.
        made: codec -> n_q -> (N,) samples, or a text that says why there are none.
        rates: codec -> output rate in Hz.
        n_qs: rows, fewest codebooks first.
    """
    rows = []
    for n_q in n_qs:
        items: list[Player | NoPlayer] = [Player(ORIGINAL, original, sample_rate)]
        for name, by_books in made.items():
            wav = by_books.get(n_q, f"has fewer than {n_q} codebooks")
            items.append(NoPlayer(name, wav) if isinstance(wav, str) else Player(name, wav, rates[name]))
        rows.append(PlayerRow(f"{head}, n_q {n_q}", items))
    return Players(rows, f"{head}: the original and its reconstructions")


def reconstruct_clips(
    codecs: Mapping[str, AudioTokenizer], clips: Sequence[Clip], n_qs: Sequence[int] = N_QS,
    longest_s: float = LONGEST_S,
) -> list[Players]:  # fmt: skip
    """The same for recordings of a manifest, made here.

    Args:
        codecs: name -> codec, in the order of columns: the twin, then X-Codec.
        clips: recordings.
        n_qs: rows.
        longest_s: take at most this much of each.

    Raises:
        AudioError: a recording cannot be read.
    """
    import torch

    from xcodec_lm.codec.audio import load_audio

    rates = {name: codec.spec.output_sample_rate for name, codec in codecs.items()}
    grids = []
    for clip in clips:
        made: dict[str, dict[int, Any]] = {}
        for name, codec in codecs.items():
            rate = codec.spec.sample_rate
            wav = load_audio(clip.path, rate, duration_s=longest_s).wav[None].to(getattr(codec, "device", "cpu"))
            with torch.inference_mode():
                tokens = codec.encode(wav, sample_rate=rate)
                made[name] = {
                    n_q: codec.decode(tokens.take(n_q))[0][0, 0].float().cpu().numpy()
                    for n_q in n_qs
                    if n_q <= codec.spec.n_q
                }
        rate = max((codec.spec.sample_rate for codec in codecs.values()), default=16_000)
        original = load_audio(clip.path, rate, duration_s=longest_s).wav[0].numpy()
        grids.append(reconstruction_grid(clip.id, original, rate, made, rates, n_qs))
    return grids
