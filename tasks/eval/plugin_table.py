"""The plug-ins of the evaluation, one entry each: those of the paper, then what stands in for them offline.

A new backbone is a module with a function `load(source, device)` and an entry here; nothing else has to change.
"""

from __future__ import annotations

from xcodec_lm.tasks.eval.registry import Entry

_BACKBONES = "xcodec_lm.tasks.eval.backbones"
_JUDGES = "xcodec-lm eval train-evaluators"
_EVAL = "pip install 'xcodec-lm[eval]'"

ENTRIES: tuple[Entry, ...] = (
    # ------------------------------------------------------------------ recognisers
    Entry(
        "hubert-ctc", "transcriber", "published", "xcodec_lm.tasks.eval.transcribers:load_hubert_ctc",
        "HuBERT for CTC / 16 kHz", "a folder in transformers' layout", licence="Apache-2.0",
        origin="facebook/hubert-large-ls960-ft is the paper's",
    ),
    Entry(
        "whisper", "transcriber", "published", "xcodec_lm.tasks.eval.transcribers:load_whisper",
        "Whisper, greedy / 16 kHz", "a folder in transformers' layout", licence="Apache-2.0",
        origin="openai/whisper-large-v3, for one",
    ),
    Entry(
        "pocketsphinx", "transcriber", "package", f"{_BACKBONES}.pocketsphinx:load", "en-us acoustic model / 16 kHz",
        packages=("pocketsphinx",), install="pip install 'pocketsphinx>=5'", licence="BSD-2-Clause",
    ),
    Entry(
        "tinyctc", "transcriber", "trained", "xcodec_lm.tasks.eval.tiny_ctc:load_tiny_ctc",
        "small CTC recogniser / 16 kHz", "a folder of judges", licence="that of its training data", origin=_JUDGES,
    ),
    # ------------------------------------------------------------------ voices
    Entry(
        "wavlm-ecapa", "speaker", "published", f"{_BACKBONES}.wavlm_ecapa:load", "WavLM-Large + ECAPA-TDNN / 16 kHz",
        "wavlm_large_finetune.pth", licence="CC BY-SA 3.0 (weights)",
        origin="UniSpeech, downstreams/speaker_verification",
    ),
    Entry(
        "hf-xvector", "speaker", "published", f"{_BACKBONES}.hf_xvector:load", "WavLM x-vector / 16 kHz",
        "a folder in transformers' layout", licence="CC BY-SA 3.0 (weights)",
        origin="microsoft/wavlm-base-plus-sv, for one",
    ),
    Entry(
        "resemblyzer", "speaker", "package", f"{_BACKBONES}.resemblyzer:load", "GE2E LSTM / 16 kHz",
        packages=("resemblyzer", "webrtcvad"),
        install="pip install --no-deps Resemblyzer && pip install webrtcvad-wheels", licence="Apache-2.0",
    ),
    Entry(
        "tinyspeaker", "speaker", "trained", "xcodec_lm.tasks.eval.tiny_speaker:load_tiny_speaker",
        "small x-vector / 16 kHz", "a folder of judges", licence="that of its training data", origin=_JUDGES,
    ),
    # ------------------------------------------------------------------ opinions
    Entry(
        "utmos22", "mos", "published", f"{_BACKBONES}.utmos22:load", "utmos22_strong / 16 kHz",
        "utmos22_strong's checkpoint", licence="MIT", origin="tarepan/SpeechMOS, release v1.0.0",
    ),
    Entry(
        "dnsmos", "mos", "package", f"{_BACKBONES}.dnsmos:load", "DNSMOS P.835 and P.808 / 16 kHz",
        packages=("speechmos", "onnxruntime"), install="pip install speechmos onnxruntime", licence="MIT",
    ),
    # ------------------------------------------------------------------ features of sets
    Entry(
        "cnn14-16k", "embedder", "published", f"{_BACKBONES}.cnn14:load_16k", "PANNs Cnn14, clips / 16 kHz",
        "Cnn14_16k_mAP=0.438.pth", licence="MIT (code), CC BY 4.0 (weights)", origin="PANNs, zenodo record 3987831",
    ),
    Entry(
        "cnn14-32k", "embedder", "published", f"{_BACKBONES}.cnn14:load_32k", "PANNs Cnn14, clips / 32 kHz",
        "Cnn14_mAP=0.431.pth", licence="MIT (code), CC BY 4.0 (weights)", origin="PANNs, zenodo record 3987831",
    ),
    Entry(
        "vggish", "embedder", "published", f"{_BACKBONES}.vggish:load", "VGGish, patches of 0.96 s / 16 kHz",
        "vggish-10086976.pth", licence="Apache-2.0", origin="harritaylor/torchvggish",
    ),
    Entry(
        "mert-layer9", "embedder", "published", f"{_BACKBONES}.mert:load", "MERT-v1-95M layer 9, frames / 24 kHz",
        "a folder of m-a-p/MERT-v1-95M", licence="CC BY-NC 4.0 (weights)", origin="m-a-p/MERT-v1-95M",
    ),
    Entry(
        "tinycnn", "embedder", "trained", "xcodec_lm.tasks.sound.sound_class:load_sound_class",
        "small CNN of log-mel frames with classes / 16 kHz", "a folder of judges",
        licence="that of its training data", origin="xcodec-lm sound eval writes one",
    ),
    Entry(
        "logmel-stats", "embedder", "own", f"{_BACKBONES}.logmel_stats:load", "log-mel statistics / 16 kHz",
        licence="Apache-2.0",
    ),
    # ------------------------------------------------------------------ captions
    Entry(
        "clap", "clap", "published", "xcodec_lm.tasks.sound.clap:load_clap", "LAION-CLAP / 48 kHz",
        "a .pt file of LAION, or a folder in transformers' layout", licence="CC0", origin="LAION-AI/CLAP",
    ),
    Entry(
        "tinyclap", "clap", "trained", "xcodec_lm.tasks.sound.clap:load_clap", "small dual encoder / 16 kHz",
        "a run of clap train", licence="that of its training data", origin="xcodec-lm clap train",
    ),
)  # fmt: skip
