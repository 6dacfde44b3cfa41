"""Mel spectrograms as small PNG images, with numpy and zlib alone.

The image is indexed: 64 colours, and the same 64 veiled for the part that was given as a prompt.
"""

from __future__ import annotations

import math
import struct
import zlib

import numpy as np

LEVELS = 64
WINDOW_S = 0.064
FLOOR_DB = -160.0

# Anchors of the colour map, dark to light: lightness rises evenly, so it reads the same in grey.
ANCHORS = (
    (10, 10, 24),
    (38, 28, 86),
    (92, 38, 122),
    (154, 52, 118),
    (213, 80, 92),
    (244, 133, 76),
    (252, 193, 108),
    (253, 246, 205),
)
VEIL = (126, 150, 170)
VEIL_SHARE = 0.5
EDGE = (255, 255, 255)


def mel_decibels(
    signal: np.ndarray, sample_rate: int, max_hz: float | None = None, n_mels: int = 80, columns: int = 320
) -> np.ndarray:
    """The mel spectrum over time, for the eye.

    Windows stand at even distances, so a recording of many minutes is sampled, not averaged.

    Args:
        signal: (N,) finite float, not empty.
        sample_rate: in Hz.
        max_hz: upper end of the scale; above half the sample rate the bands are empty. None takes that half.
        n_mels: bands.
        columns: windows at most; a short recording has fewer.

    Returns:
        (n_mels, T) dB, low bands first; a sine at full scale reaches about 0.
    """
    n_fft = 1 << max(4, math.ceil(math.log2(WINDOW_S * sample_rate)))
    columns = max(1, min(columns, math.ceil(len(signal) / (n_fft // 8))))
    centres = ((np.arange(columns) + 0.5) * len(signal) / columns).astype(np.int64)  # (T,)
    padded = np.pad(signal.astype(np.float64), n_fft // 2)
    frames = padded[centres[:, None] + np.arange(n_fft)]  # (T, n_fft)
    window = np.hanning(n_fft + 1)[:-1]
    power = np.abs(np.fft.rfft(frames * window)) ** 2 / (window.sum() / 2) ** 2  # (T, n_fft / 2 + 1)
    bands = mel_filters(n_fft, sample_rate, n_mels, max_hz or sample_rate / 2) @ power.T  # (n_mels, T)
    return 10 * np.log10(np.maximum(bands, 10 ** (FLOOR_DB / 10)))


def mel_filters(n_fft: int, sample_rate: int, n_mels: int, max_hz: float) -> np.ndarray:
    """Triangles on the mel scale, (n_mels, n_fft / 2 + 1), each with peak 1.

    Source: the mel formula of O'Shaughnessy, mel = 2595 log10(1 + f / 700).
    """
    edges_mel = np.linspace(0, 2595 * math.log10(1 + max_hz / 700), n_mels + 2)
    edges = 700 * (10 ** (edges_mel / 2595) - 1)  # (n_mels + 2,) Hz
    bins = np.fft.rfftfreq(n_fft, 1 / sample_rate)
    low, peak, high = edges[:-2, None], edges[1:-1, None], edges[2:, None]
    return np.clip(np.minimum((bins - low) / (peak - low), (high - bins) / (high - peak)), 0, 1)


def spectrogram_png(decibels: np.ndarray, top_db: float, range_db: float = 80.0, shaded: float = 0.0) -> bytes:
    """A spectrogram as a PNG file.

    Args:
        decibels: (M, T), low bands first; they are drawn at the bottom.
        top_db: the level of the lightest colour.
        range_db: how far below it the darkest lies.
        shaded: the share of the width, in [0, 1], that is veiled, counted from the left.
    """
    share = np.nan_to_num((decibels - top_db) / range_db + 1, nan=0.0)
    levels = np.clip(np.rint(share * (LEVELS - 1)), 0, LEVELS - 1).astype(np.uint8)[::-1].copy()  # (M, T), high first
    width = levels.shape[1]
    edge = min(width, round(shaded * width))
    if edge > 0:
        levels[:, :edge] += LEVELS
        if edge < width:
            levels[:, edge] = 2 * LEVELS
    return indexed_png(levels, palette())


def palette() -> np.ndarray:
    """(2 * 64 + 1, 3) uint8: the colours, the veiled colours, the edge of the veil."""
    anchors = np.array(ANCHORS, dtype=np.float64)
    at = np.linspace(0, len(anchors) - 1, LEVELS)
    plain = np.stack([np.interp(at, np.arange(len(anchors)), channel) for channel in anchors.T], axis=1)
    veiled = plain * (1 - VEIL_SHARE) + np.array(VEIL) * VEIL_SHARE
    return np.rint(np.concatenate([plain, veiled, [EDGE]])).astype(np.uint8)


def indexed_png(indices: np.ndarray, colours: np.ndarray) -> bytes:
    """A PNG file of palette indices.

    Args:
        indices: (H, W) uint8, top row first.
        colours: (P, 3) uint8, P at most 256.

    Source: https://www.w3.org/TR/png-3/ (signature, chunks, colour type 3, filter type 0).
    """
    height, width = indices.shape
    rows = np.concatenate([np.zeros((height, 1), np.uint8), indices], axis=1)  # a filter byte before each row
    header = struct.pack(">IIBBBBB", width, height, 8, 3, 0, 0, 0)
    chunks = (
        (b"IHDR", header),
        (b"PLTE", colours.tobytes()),
        (b"IDAT", zlib.compress(rows.tobytes(), 9)),
        (b"IEND", b""),
    )
    body = b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return b"\x89PNG\r\n\x1a\n" + body
