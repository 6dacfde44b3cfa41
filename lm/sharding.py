"""FSDP2: weights, gradients and optimizer states spread over the devices, a block at a time gathered for its turn.

Checkpoints and exports hold whole tensors, so a run can go on with any number of devices, sharded or not.
Source: https://docs.pytorch.org/docs/stable/distributed.fsdp.fully_shard.html
"""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.optim import Optimizer

from xcodec_lm.codec.runtime.run import Run
from xcodec_lm.configs.errors import ConfigError

_WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def shard(model: nn.Module, run: Run) -> None:
    """Spreads a model over the processes of a run, in place, one of its `blocks` after the other.

    Raises:
        ConfigError: the run has one process alone.
    """
    if run.world == 1:
        raise ConfigError("run.shard needs several devices", "start it with --gpus N or torchrun, or leave it out")
    for name, part in model.named_modules():
        if name.rpartition(".")[2] == "blocks" and isinstance(part, nn.ModuleList):
            for block in part:
                fully_shard(block)
    fully_shard(model)
    # These are called in place of `forward`, and need their weights gathered as well.
    for name in ("hidden", "logits", "slot_logits", "read_rows", "hidden_rows"):
        if hasattr(model, name):
            register_fsdp_forward_method(model, name)


class WholeModel:
    """A sharded model as a checkpoint sees it: all processes gather, and every one reads."""

    def __init__(self, model: nn.Module):
        self.model = model

    def state_dict(self) -> dict[str, Any]:
        """Whole tensors on the CPU, on the first process; the others take part and get nothing."""
        return get_model_state_dict(self.model, options=_WHOLE)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes this process's part of whole tensors."""
        set_model_state_dict(self.model, state, options=StateDictOptions(full_state_dict=True))


class WholeOptimizer:
    """The optimizer of a sharded model as a checkpoint sees it."""

    def __init__(self, model: nn.Module, optimizer: Optimizer):
        self.model, self.optimizer = model, optimizer

    def state_dict(self) -> dict[str, Any]:
        """Whole states by names of parameters, on the first process."""
        return get_optimizer_state_dict(self.model, self.optimizer, options=_WHOLE)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes this process's part of whole states."""
        options = StateDictOptions(full_state_dict=True)
        set_optimizer_state_dict(self.model, self.optimizer, state, options=options)


def gathered(model: nn.Module, whole: nn.Module) -> nn.Module:
    """A whole copy on the CPU, on the first process; all take part.

    Args:
        model: the sharded model.
        whole: an empty model of the same shape, on the meta device, that takes the weights.
    """
    state = get_model_state_dict(model, options=_WHOLE)
    if state:
        whole.load_state_dict(state, assign=True)
    return whole
