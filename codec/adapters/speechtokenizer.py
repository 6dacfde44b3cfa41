"""SpeechTokenizer: adapter over the package of its authors, which is an optional extra.

16 kHz, 50 frames per second, 8 codebooks of 1024, of which the first is trained to follow HuBERT.

Source: arXiv 2308.16692.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
import types
import warnings
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from xcodec_lm.codec.adapters.base import Adapter, reach
from xcodec_lm.codec.fingerprints import hash_tensors
from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.codec.torch_files import load_tensors
from xcodec_lm.configs.errors import XcodecLMError

PACKAGE = "speechtokenizer"
ALIAS = "_xcodec_lm_speechtokenizer"
INSTALL = "pip install --no-deps speechtokenizer einops"
TRAINING_ONLY = (".embed_avg", ".cluster_size", ".inited")


class SpeechTokenizerAdapter(Adapter):
    """SpeechTokenizer behind the token interface.

    Not causal: its convolutions look ahead. A recurrent layer in the decoder remembers more than any window.

    Args:
        model: an object of the package's `SpeechTokenizer`, with weights.
        config: its config.json.
        name: under which its tokens are known.
        decode_only: drop the encoder.
    """

    def __init__(self, model: nn.Module, config: dict[str, Any], name: str | None = None, decode_only: bool = False):
        rate, hop = config["sample_rate"], math.prod(config["strides"])
        spec = TokenSpec(
            name or PACKAGE,
            rate,
            rate,
            hop,
            (config["codebook_size"],) * config["n_q"],
            fingerprint=_fingerprint(model, config),
        )
        super().__init__(
            model,
            spec,
            causal=False,
            lookahead_frames=math.ceil(reach(model.decoder) / 2),
            context_frames=round(rate / hop),
            decode_only=decode_only,
        )
        self.config = config
        if decode_only:
            model.encoder = None

    def _latents(self, wav: Tensor) -> Tensor:
        return self.model.encoder(wav)

    def _quantize(self, latents: Tensor, n_q: int) -> Tensor:
        return self.model.quantizer.encode(latents, n_q=n_q).transpose(0, 1)

    def _dequantize(self, codes: Tensor) -> Tensor:
        return self.model.quantizer.decode(codes.transpose(0, 1))

    def _synthesize(self, quantized: Tensor) -> Tensor:
        return self.model.decoder(quantized)


def is_speechtokenizer(data: dict[str, Any]) -> bool:
    """Whether a config.json is one of SpeechTokenizer's, which name no model type."""
    return {"semantic_dimension", "strides", "n_q", "codebook_size", "sample_rate"} <= data.keys()


def load_speechtokenizer(folder: Path, data: dict[str, Any], decode_only: bool) -> SpeechTokenizerAdapter:
    """The codec in a folder with config.json and one file of weights.

    Raises:
        XcodecLMError: the package is not installed, or the weights are missing, damaged or of another model.
    """
    files = sorted([*folder.glob("*.safetensors"), *folder.glob("*.pt"), *folder.glob("*.ckpt")])
    if len(files) != 1:
        raise XcodecLMError(
            f"{folder} has {len(files)} files of weights beside its config.json, SpeechTokenizer needs one",
            "keep the file SpeechTokenizer.pt or one .safetensors file there",
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # the package uses an older spelling of weight norm
        model = speechtokenizer_class()(data)
    tensors, _ = load_tensors(files[0])
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise XcodecLMError(f"{files[0]}: weights do not fit config.json: {str(error)[:300]}") from None
    return SpeechTokenizerAdapter(model, data, decode_only=decode_only)


def speechtokenizer_class() -> Any:
    """The package's model class.

    The package imports its trainer with itself, and with it torchaudio and plotting, which encoding needs none of. Its
    model is therefore imported under another package name, past the package's `__init__`.

    Raises:
        XcodecLMError: the package or einops is not installed.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        raise XcodecLMError(f"SpeechTokenizer needs the package {PACKAGE}, which is not installed", INSTALL)
    if ALIAS not in sys.modules:
        package = types.ModuleType(ALIAS)
        package.__path__ = list(spec.submodule_search_locations)
        sys.modules[ALIAS] = package
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, which the package uses
            return importlib.import_module(f"{ALIAS}.model").SpeechTokenizer
    except ImportError as error:
        raise XcodecLMError(f"the package {PACKAGE} cannot be used: {error}", INSTALL) from None


def _fingerprint(model: nn.Module, config: dict[str, Any]) -> str:
    sizes = {key: config.get(key) for key in ("sample_rate", "strides", "activation", "dilation_base", "bidirectional")}
    tensors = (
        (key, value.detach().float().cpu())
        for key, value in sorted(model.state_dict().items())
        if key.startswith(("encoder.", "quantizer.")) and not key.endswith(TRAINING_ONLY)
    )
    return hash_tensors(tensors, {"model_type": PACKAGE, **sizes})
