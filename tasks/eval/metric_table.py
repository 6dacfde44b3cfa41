"""The metrics of the evaluation: what each needs, who hears for it, which way is better; and the suites of `eval run`.

A figure's name is the metric's with what was used in brackets: `wer[tinyctc]`, `mel[hifigan80]`. Nothing that ran
offline with small judges carries the name of a paper's figure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from xcodec_lm.configs.errors import UsageError
from xcodec_lm.tasks.eval.registry import Kind, find

Scope = Literal["row", "set", "elsewhere"]
EMBEDDERS = ("cnn14-16k", "cnn14-32k", "vggish", "mert-layer9", "tinycnn", "logmel-stats")
EVAL = "pip install 'xcodec-lm[eval]'"


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: without brackets.
        needs: fields of a row beside `audio`.
        lower_is_better: None where a figure is for information.
        scope: `row` has a value for each row, `set` one for all, `elsewhere` is measured by another command.
        unit: what is scored.
        paper: what the field uses.
        plugins: of the registry, those of publications first; empty for one without a model.
        presets: ways of computing it, the first is the default; these stand in the brackets instead.
        kind: protocol of the plug-ins.
        pool: for sets: whether clips or frames are the vectors.
        package: Python module that computes it, if it is not of the toolkit.
        install: command line that brings the package.
        licence: of the package or method.
        guard: what makes a value unreadable.
        command: that measures it, where it is not `eval run`.
    """

    name: str
    needs: tuple[str, ...]
    lower_is_better: bool | None
    scope: Scope = "row"
    unit: str = "clip"
    paper: str = ""
    plugins: tuple[str, ...] = ()
    presets: tuple[str, ...] = ()
    kind: Kind | None = None
    pool: Literal["clip", "frames"] = "clip"
    package: str = ""
    install: str = ""
    licence: str = ""
    guard: str = ""
    command: str = ""


_RECOGNISERS = ("hubert-ctc", "whisper", "pocketsphinx", "tinyctc")
_VOICES = ("wavlm-ecapa", "hf-xvector", "resemblyzer", "tinyspeaker")
_CLASSIFIERS = ("cnn14-16k", "cnn14-32k", "tinycnn")
_WER = Metric(
    "wer", ("text",), True, unit="utterance, corpus sum", paper="HuBERT-large-ls960-ft CTC / 16 kHz",
    plugins=_RECOGNISERS, kind="transcriber", package="jiwer", install=EVAL, licence="Apache-2.0",
    guard="RMS floor, failures count as empty",
)  # fmt: skip
_REF = ("ref_audio",)

METRICS: tuple[Metric, ...] = (
    _WER,
    replace(_WER, name="cer"),
    Metric("sim_o", ("prompt_audio",), False, unit="pair", paper="WavLM-L + ECAPA / 16 kHz", plugins=_VOICES,
           kind="speaker", guard="silence and failures count as 0"),
    Metric("sim_r", ("prompt_resynthesis",), False, unit="pair", paper="WavLM-L + ECAPA / 16 kHz", plugins=_VOICES,
           kind="speaker", guard="silence and failures count as 0"),
    Metric("utmos", (), False, paper="utmos22_strong / 16 kHz", plugins=("utmos22",), kind="mos", guard="silence"),
    Metric("dnsmos", (), False, paper="not in the paper", plugins=("dnsmos",), kind="mos", guard="silence"),
    Metric("fd", _REF, True, "set", "set of clips", "Cnn14 / 16 kHz", ("cnn14-16k", "cnn14-32k", "tinycnn",
           "logmel-stats"), kind="embedder", guard="equal N, floor of two halves"),
    Metric("fad", _REF, True, "set", "patches of 0.96 s", "VGGish / 16 kHz", ("vggish",), kind="embedder",
           pool="frames", guard="equal N, floor of two halves"),
    Metric("fd_mert9", _REF, True, "set", "frames", "MERT-v1-95M layer 9 / 24 kHz", ("mert-layer9",),
           kind="embedder", pool="frames", guard="equal N, floor of two halves"),
    Metric("fd16", _REF, True, "set", "set of clips", "not in the paper: at most 16 axes, with an interval", EMBEDDERS,
           kind="embedder", guard="equal N"),
    Metric("kid", _REF, True, "set", "set of clips", "not in the paper: no bias at small N", EMBEDDERS,
           kind="embedder", guard="equal N"),
    Metric("is", (), False, "set", "set of clips", "Cnn14 / 16 kHz", _CLASSIFIERS, kind="embedder",
           guard="at most N / splits"),
    Metric("kl_softmax", _REF, True, unit="pair", paper="Cnn14 / 16 kHz", plugins=_CLASSIFIERS, kind="embedder"),
    Metric("kl_sigmoid", _REF, None, unit="pair", paper="Cnn14 / 16 kHz", plugins=_CLASSIFIERS, kind="embedder"),
    Metric("class", ("label",), False, paper="not in the paper", plugins=("tinycnn",), kind="embedder",
           guard="classes that the judge knows"),
    Metric("clap", ("caption",), False, unit="pair", paper="LAION-CLAP / 48 kHz", plugins=("clap", "tinyclap"),
           kind="clap", guard="fixed windows; never the conditioner"),
    Metric("mel", _REF, True, paper="not stated", presets=("hifigan80", "dac_eval", "dac_train"), guard="lag, length"),
    Metric("stft", _REF, True, paper="not stated", presets=("ln_stft", "convergence", "dac_eval"),
           guard="lag, length"),
    Metric("si_sdr", _REF, False, paper="not in the paper", guard="lag, silence"),
    Metric("stoi", _REF, False, paper="not in the paper", package="pystoi", install=EVAL, licence="MIT",
           guard="lag, silence, 0.4 s"),
    Metric("pesq", _REF, False, paper="not in the paper", package="pesq", install=EVAL, licence="MIT",
           guard="lag, silence, 0.25 s"),
    Metric("abx", ("items",), True, "elsewhere", "cell", "features after RVQ", command="codec eval --against"),
    Metric("probe", ("label",), False, "elsewhere", "data set", "ARCH", command="codec eval --against"),
    Metric("codebook", ("codes",), None, "elsewhere", "stream", command="data stats; codec eval"),
    Metric("bitrate", ("codes",), None, "elsewhere", "stream", command="codec info; data stats"),
    Metric("bits_per_s", ("codes",), True, "elsewhere", "second of audio", command="music eval",
           guard="with reconstruction quality"),
    Metric("rtf", ("timing",), True, "elsewhere", "run", command="codec eval --against", guard="warm-up"),
)  # fmt: skip
BY_NAME = {metric.name: metric for metric in METRICS}

_SETS = ("fd", "fad", "fd_mert9", "fd16", "kid")
_SIGNAL = ("mel", "stft", "si_sdr")
SUITES: dict[str, tuple[str, ...]] = {
    "speech": ("wer", "cer", "sim_o", "sim_r", "utmos", "dnsmos"),
    "music": (*_SETS, "is", "kl_softmax", "kl_sigmoid"),
    "sound": (*_SETS, "is", "kl_softmax", "kl_sigmoid", "class", "clap"),
    "reconstruction": (*_SIGNAL, "stoi", "pesq", "wer", "sim_o", "utmos", "dnsmos"),
}
"""What `eval run SUITE` measures where nothing else is asked for, as far as rows and plug-ins allow."""


@dataclass(frozen=True)
class Wanted:
    """A metric that was asked for.

    Attributes:
        metric: which.
        inside: plug-in or preset in brackets; "" for the default.
        explicit: the user named it, so it must not be left out.
    """

    metric: Metric
    inside: str = ""
    explicit: bool = False


def parse_metrics(suite: str, names: tuple[str, ...] = ()) -> list[Wanted]:
    """What is to be measured.

    Args:
        suite: a key of `SUITES`.
        names: metrics with or without brackets; none takes the suite's.

    Raises:
        UsageError: unknown suite, metric, plug-in or preset, or one that another command measures.
    """
    if suite not in SUITES:
        raise UsageError(f"no suite is called {suite!r}", f"suites: {', '.join(SUITES)}")
    if not names:
        return [Wanted(BY_NAME[name]) for name in SUITES[suite]]
    found = []
    for text in dict.fromkeys(names):
        parts = re.fullmatch(r"([a-z0-9_]+)(?:\[([^\[\]]+)\])?", text)
        metric = BY_NAME.get(parts[1]) if parts else None
        if parts is None or metric is None:
            raise UsageError(f"no metric is called {text!r}", f"metrics: {', '.join(BY_NAME)}")
        if metric.scope == "elsewhere":
            raise UsageError(f"{metric.name} is not measured on pairs", f"see xcodec-lm {metric.command}")
        inside = parts[2] or ""
        if inside and metric.presets and inside not in metric.presets:
            raise UsageError(f"{metric.name} has no preset {inside!r}", f"presets: {', '.join(metric.presets)}")
        if inside and not metric.presets:
            if metric.kind is None:
                raise UsageError(f"{metric.name} takes nothing in brackets", f"write {metric.name}")
            if find(inside, (metric.kind,)).name not in metric.plugins:
                raise UsageError(f"{inside} cannot serve {metric.name}", f"it takes {', '.join(metric.plugins)}")
        found.append(Wanted(metric, inside, True))
    return found
