"""Configuration: dataclasses, presets, and the loader that joins them. The lowest layer; it imports no torch."""

if __name__ == "configs":
    raise ImportError("this package is called xcodec_lm.configs; write `import xcodec_lm.configs`")

from xcodec_lm.configs.codec import CodecTrainConfig
from xcodec_lm.configs.compare import CompareConfig
from xcodec_lm.configs.errors import ConfigError, XcodecLMError
from xcodec_lm.configs.hubert import HubertTrainConfig
from xcodec_lm.configs.lm import LMTrainConfig
from xcodec_lm.configs.loader import FAMILIES, from_dict, load, preset_text, presets, save, to_dict
from xcodec_lm.configs.sound import SoundTrainConfig
from xcodec_lm.configs.tts import TTSTrainConfig
from xcodec_lm.configs.tts_llama import LlamaTTSTrainConfig

__all__ = [
    "FAMILIES",
    "CodecTrainConfig",
    "CompareConfig",
    "ConfigError",
    "HubertTrainConfig",
    "LMTrainConfig",
    "LlamaTTSTrainConfig",
    "SoundTrainConfig",
    "TTSTrainConfig",
    "XcodecLMError",
    "from_dict",
    "load",
    "preset_text",
    "presets",
    "save",
    "to_dict",
]
