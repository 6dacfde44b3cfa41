"""Low-rank adapters in the decoder, through peft: the model stays as it is, small matrices beside its layers learn.

Source: arXiv 2106.09685.
"""

from __future__ import annotations

from torch import Tensor, nn

from xcodec_lm.configs.errors import XcodecLMError
from xcodec_lm.configs.tts_llama import LoraConfig
from xcodec_lm.lm.gpt import GPT

ADAPTER = "default"
"""peft's name of the only adapter."""
INSTALL = "pip install 'xcodec-lm[lora]'"


def add_adapters(model: GPT, config: LoraConfig) -> None:
    """Gives linear layers of the blocks adapters, and lets these alone be trained.

    Args:
        model: changed in place; what it computes stays the same until it is trained.
        config: rank, layers; with `embedding`, embedding and head are trained too.

    Raises:
        XcodecLMError: peft is not installed.
    """
    try:
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model
    except ImportError:
        raise XcodecLMError("lora.rank needs peft, which is not installed", INSTALL) from None
    names = [
        name
        for name, module in model.blocks.named_modules()
        if isinstance(module, nn.Linear) and name.split(".")[-1] in config.targets
    ]
    settings = PeftConfig(
        r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout, target_modules=names, bias="none"
    )
    inject_adapter_in_model(settings, model.blocks, ADAPTER)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".lora_" in name or (config.embedding and name in ("wte.weight", "head.weight")))


def merged_weights(model: GPT) -> dict[str, Tensor]:
    """The weights of a model whose adapters, if it has any, are added to the layers that they belong to."""
    state = model.state_dict()
    weights = {name.replace(".base_layer.", "."): value for name, value in state.items() if ".lora_" not in name}
    for name, module in model.named_modules():
        if hasattr(module, "lora_A"):
            change = module.get_delta_weight(ADAPTER)  # type: ignore[operator]
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + change.detach()
    return weights
