"""A row of players: sounds at matched loudness, spectrograms on one time axis and one colour scale."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from xcodec_lm.tasks.report.audio_embed import as_signal, data_uri, embed, matched_gains, why_unplayable
from xcodec_lm.tasks.report.document import Marked, Player, PlayerRow, ReportError
from xcodec_lm.tasks.report.spectrogram import mel_decibels, spectrogram_png
from xcodec_lm.tasks.report.tables import format_number

FAINTEST_TOP_DB = -50.0
"""The lightest colour of a row of spectrograms stands for no less than this, so that silence stays dark."""
SMALLEST_SHARE = 0.04
"""A spectrogram takes at least this share of its column, however short the recording is beside the others."""


def player_cells(row: PlayerRow) -> tuple[dict[str, dict[str, Any]], float]:
    """What the cells of a row show.

    Returns:
        Label -> the values that the template prints (`missing` is a reason, or empty for a player), and the upper end
        of the spectrograms' scale in Hz, 0 without spectrograms.

    Raises:
        ReportError: an item has several channels.
    """
    cells: dict[str, dict[str, Any]] = {}
    players: dict[str, tuple[Player, np.ndarray]] = {}
    for item in row.items:
        if not isinstance(item, Player):
            cells[item.label] = {"missing": item.reason or "not made"}
            continue
        try:
            signal = as_signal(item.wav)
        except ValueError as error:
            raise ReportError(
                f"player {item.label!r} of {row.head!r}: {error}", "give one channel, (N,) samples"
            ) from None
        if failure := why_unplayable(signal):
            cells[item.label] = {"missing": failure}
        else:
            players[item.label] = item, signal
    sounds = {label: embed(signal, item.sample_rate) for label, (item, signal) in players.items()}
    gains = dict(zip(sounds, matched_gains([sound.rms for sound in sounds.values()]), strict=True))
    longest_s = max((sound.duration_s for sound in sounds.values()), default=0.0)
    drawn = {label: (item, signal) for label, (item, signal) in players.items() if item.spectrogram}
    top_hz = max((item.sample_rate / 2 for item, _ in drawn.values()), default=0.0)
    levels = {
        label: mel_decibels(np.clip(signal, -1, 1), item.sample_rate, top_hz) for label, (item, signal) in drawn.items()
    }
    top_db = max([FAINTEST_TOP_DB, *(float(level.max()) for level in levels.values())])
    for label, (item, _) in players.items():
        sound = sounds[label]
        prompt_s = max(0.0, item.shade_until_s or 0.0)
        picture = None
        if label in levels:
            png = spectrogram_png(levels[label], top_db, shaded=min(1.0, prompt_s / sound.duration_s))
            picture = data_uri(png, "image/png")
        cells[label] = {
            "missing": "",
            "name": f"{label}, {row.head}" if row.head else label,
            "uri": sound.uri,
            "mime": sound.mime,
            "duration_s": sound.duration_s,
            "gain": gains[label],
            "level": _level_text(sound.rms),
            "clipped": sound.clipped,
            "picture": picture,
            "share": max(SMALLEST_SHARE, sound.duration_s / longest_s),
            "prompt_s": prompt_s,
            "note": str(item.note),
            "heard": item.note if isinstance(item.note, Marked) else None,
        }
    return cells, top_hz


def _level_text(rms: float) -> str:
    return f"{format_number(20 * math.log10(rms), '.1f')} dB" if rms > 1e-6 else "silent"
