"""Optimizers of the language models: AdamW, Muon beside AdamW, ScaledAdam.

`make_optimizer` makes the one that a configuration names. All of them need nothing but gradients that are already
averaged over devices, keep all that they know in `state_dict` (readable with `weights_only`), and so go on after a
resume as if there had been no stop. A trainer sets `group["lr"] = optim.lr_at(step) * group.get("lr_scale", 1)`.
Sharded parameters (DTensor, FSDP2): AdamW only. Muon multiplies whole matrices and ScaledAdam takes means over whole
tensors; both refuse shards.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from typing import Any, cast, overload

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from xcodec_lm.configs.errors import ConfigError
from xcodec_lm.configs.run import OptimConfig
from xcodec_lm.lm.muon import Muon

_HEAD = re.compile(r"(^|[._])heads?(\.|$)")


def make_optimizer(model: nn.Module, optim: OptimConfig) -> Optimizer:
    """The optimizer that a configuration names, over the parameters of a model that are trained.

    Weight decay acts on tensors of two and more dimensions, so on matrices and embeddings, not on biases and norms.

    Args:
        model: the model; before or, for `adamw`, after its parameters are sharded.
        optim: `name` and its settings.

    Raises:
        ConfigError: parameters are sharded, and the optimizer needs them whole.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if optim.name == "scaled_adam":
        return ScaledAdam(trained, optim.lr, optim.betas, optim.eps, optim.clipping_scale, optim.clipping_steps)
    hidden = hidden_matrices(model) if optim.name == "muon" else []
    taken = {id(parameter) for parameter in hidden}
    rest = [parameter for parameter in trained if id(parameter) not in taken]
    groups = [
        {"params": [p for p in rest if p.dim() >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in rest if p.dim() < 2], "weight_decay": 0.0},
    ]
    adamw = AdamW(groups, lr=optim.lr, betas=optim.betas, eps=optim.eps, fused=True)
    return MuonAdamW(hidden, adamw, optim.lr, optim.weight_decay) if optim.name == "muon" else adamw


def hidden_matrices(model: nn.Module) -> list[nn.Parameter]:
    """The matrices that Muon is for: trained weights of linear layers, but no embeddings and no output heads.

    A head is a layer that is called so (`head`, `lm_head`, `heads.0`), or whose weight is an embedding's.
    """
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, (nn.Embedding, nn.EmbeddingBag))}
    found: dict[int, nn.Parameter] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear) and not _HEAD.search(name) and id(module.weight) not in embeddings:
            found[id(module.weight)] = cast(nn.Parameter, module.weight)
    return [weight for weight in found.values() if weight.requires_grad]


class MuonAdamW(Optimizer):
    """Muon for hidden matrices and AdamW for the rest, as one optimizer with one state.

    Muon's updates are scaled to the RMS of AdamW's, so both take one learning rate and one weight decay, those of an
    AdamW recipe. A packed projection (queries, keys and values) counts as one matrix.

    Args:
        matrices: parameters (out, in) for Muon.
        adamw: optimizer of all others.
        lr: learning rate of Muon until the trainer sets it.
        weight_decay: decoupled, on Muon's matrices.

    Raises:
        ConfigError: a parameter is a shard.
    """

    def __init__(self, matrices: Iterable[nn.Parameter], adamw: AdamW, lr: float, weight_decay: float):
        muon = Muon(matrices, lr, weight_decay)
        self._parts = (muon, adamw)
        super().__init__([*muon.param_groups, *adamw.param_groups], {})
        _refuse_shards(self, "muon")
        self._share()

    def _share(self) -> None:
        """Gives both parts this optimizer's groups and state, which `state_dict` then holds once and whole."""
        first = 0
        for part in self._parts:
            count = len(part.param_groups)
            part.param_groups, part.state = self.param_groups[first : first + count], self.state
            first += count

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes over what `state_dict` gave."""
        super().load_state_dict(state_dict)  # puts new groups and a new state in place
        self._share()

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of both."""
        loss = _evaluate(closure)
        _refuse_shards(self, "muon")
        for part in self._parts:
            part.step()
        return loss


class ScaledAdam(Optimizer):
    """Adam whose step is relative to the size of each tensor, which is learnt too; it clips gradients by itself.

    With r the RMS of a tensor w before the step, within `rms_bounds`, g its gradient, c Adam's bias correction and m, v
    the averages of g and of g^2, and n, s the same of <g, w> (the gradient of w's log scale):

        w <- w - lr r c m / (sqrt(v) + eps) - scale_lr lr w c n / (sqrt(s) + eps)

    So lr is the relative change of a tensor in a step, and neither the scale of the loss nor that of a tensor matters.
    Outside the bounds the second term leads back at its largest rate, so they give a little. Tensors of one element
    have no scale of their own: they take plain Adam steps at `scalar_lr` times the rate.

    Before that, gradients are scaled down together where their norm, each weighed with r, exceeds `clipping_scale`
    times the median of the norms of the last `clipping_steps` steps, this one included. Gradients must be finite.

    Args:
        params: parameters, floating point.
        lr: relative step; the recipe's is 0.05.
        betas: of Adam's averages.
        eps: Adam's.
        clipping_scale: largest norm in medians.
        clipping_steps: steps that the median looks back.
        rms_bounds: smallest and largest RMS of a tensor, such as of a zero bias, for its step.
        scale_lr: rate of the scale relative to lr.
        scalar_lr: rate of tensors of one element relative to lr; `lr_scale` of their group.

    Raises:
        ConfigError: a parameter is a shard.

    Source: Yao et al. 2023, "Zipformer", section 3.5, arXiv 2310.11230; values of lifeiteng/vall-e. There the scale is
        updated every fourth step with the summed gradients, r has no upper bound, and no step is clipped before there
        are enough norms for a whole median, which is then taken anew once in that many steps.
    """

    def __init__(
        self,
        params: Iterable[nn.Parameter],
        lr: float = 0.05,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        clipping_scale: float = 2.0,
        clipping_steps: int = 1000,
        rms_bounds: tuple[float, float] = (1e-5, 3.0),
        scale_lr: float = 0.1,
        scalar_lr: float = 0.1,
    ):
        params = list(params)
        groups = [
            {"params": [p for p in params if p.numel() > 1], "lr_scale": 1.0},
            {"params": [p for p in params if p.numel() == 1], "lr_scale": scalar_lr, "lr": lr * scalar_lr},
        ]
        super().__init__(
            groups, {"lr": lr, "betas": tuple(betas), "eps": eps, "rms_bounds": tuple(rms_bounds), "scale_lr": scale_lr}
        )
        self.clipping_scale, self.clipping_steps = clipping_scale, clipping_steps
        _refuse_shards(self, "scaled_adam")

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step; without a wait for the device."""
        loss = _evaluate(closure)
        _refuse_shards(self, "scaled_adam")
        items = [
            (group, param, param.grad, _rms(param))
            for group in self.param_groups
            for param in group["params"]
            if param.grad is not None
        ]
        if not items:
            return loss
        norms = [
            grad.norm() * (rms.clamp(min=group["rms_bounds"][0]) if param.numel() > 1 else 1.0)
            for group, param, grad, rms in items
        ]
        factor = self._clipping_factor(torch.stack(norms).norm())
        for group, param, grad, rms in items:
            _scaled_adam_step(group, self.state[param], param, grad * factor, rms)
        return loss

    def _clipping_factor(self, norm: Tensor) -> Tensor:
        """What to multiply gradients of this norm by; remembers the norm."""
        memory = cast(dict[Any, Any], self.state)["clipping"]  # the only state that is no parameter's
        if not memory:
            memory |= {"norms": torch.zeros(self.clipping_steps), "steps": 0}
        if memory["norms"].device != norm.device:  # at first, and after loading a checkpoint
            memory["norms"] = memory["norms"].to(norm.device)
        memory["norms"][memory["steps"] % self.clipping_steps] = norm
        memory["steps"] += 1
        median = memory["norms"][: memory["steps"]].median()
        return (self.clipping_scale * median / norm.clamp(min=1e-30)).clamp(max=1.0)


def _scaled_adam_step(group: dict[str, Any], state: dict[str, Any], param: Tensor, grad: Tensor, rms: Tensor) -> None:
    """Moves one tensor; see `ScaledAdam` for the formula."""
    lr, eps, (beta1, beta2), (smallest, largest) = group["lr"], group["eps"], group["betas"], group["rms_bounds"]
    has_scale = param.numel() > 1
    if not state:
        state |= {"step": 0, "exp_avg": torch.zeros_like(param), "exp_avg_sq": torch.zeros_like(param)}
        if has_scale:
            state |= {"scale_avg": torch.zeros_like(rms), "scale_avg_sq": torch.zeros_like(rms)}
    state["step"] += 1
    correction = math.sqrt(1 - beta2 ** state["step"]) / (1 - beta1 ** state["step"])

    def direction(name: str, grad: Tensor) -> Tensor:
        mean, square = state[name], state[f"{name}_sq"]
        mean.lerp_(grad, 1 - beta1)
        square.mul_(beta2).addcmul_(grad, grad, value=1 - beta2)
        return correction * mean / (square.sqrt() + eps)

    if not has_scale:
        param.sub_(lr * direction("exp_avg", grad))
        return
    growth = -direction("scale_avg", (grad * param).sum())
    growth = torch.where(rms < smallest, 1.0, torch.where(rms > largest, -1.0, growth))
    update = lr * rms.clamp(smallest, largest) * direction("exp_avg", grad)
    param.mul_(1 + group["scale_lr"] * lr * growth).sub_(update)


def _rms(tensor: Tensor) -> Tensor:
    return tensor.norm() / math.sqrt(tensor.numel())


@torch.enable_grad()
def _evaluate(closure: Callable[[], float] | None) -> float | None:
    return None if closure is None else closure()


def _refuse_shards(optimizer: Optimizer, name: str) -> None:
    if not torch.distributed.is_available():
        return
    from torch.distributed.tensor import DTensor

    if any(isinstance(param, DTensor) for group in optimizer.param_groups for param in group["params"]):
        raise ConfigError(
            f"optim.name: {name} needs whole parameters, but FSDP2 has sharded them",
            "use optim.name adamw, or train without sharding",
        )
