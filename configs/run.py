"""Settings that every training run has, whatever it trains."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from xcodec_lm.configs.errors import ConfigError


@dataclass(frozen=True)
class RunConfig:
    """How a run is kept: seed, intervals in steps, checkpoints, trackers."""

    seed: int = 0
    """Seed of every random draw: initial weights, data order, crops, n_q, dropout."""
    log_every: int = 10
    """Steps between two rows of metrics.jsonl."""
    eval_every: int = 1000
    """Steps between two validations; the last step is always validated."""
    save_every: int = 1000
    """Steps between two checkpoints; the last step is always saved."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of the networks under autocast; quantizers, losses and teachers' targets stay in fp32."""
    threads: int | None = None
    """Threads of a process that trains on a CPU; null leaves PyTorch's choice. Narrow layers lose time with several."""
    track: Literal["none", "tensorboard"] = "none"
    """Tracker that gets the metrics beside metrics.jsonl."""

    def __post_init__(self):
        for name in ("log_every", "eval_every", "save_every", "keep_checkpoints"):
            if getattr(self, name) < 1:
                raise ConfigError(f"run.{name} must be at least 1, got {getattr(self, name)}")
        if self.threads is not None and self.threads < 1:
            raise ConfigError(f"run.threads must be at least 1, or null, got {self.threads}")


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its learning-rate schedule."""

    name: Literal["adamw", "muon", "scaled_adam"] = "adamw"
    """`muon` moves hidden matrices by Muon and the rest by AdamW; `scaled_adam` is VALL-E's recipe (lr 0.05, eden).
    Language models only: codecs and HuBERT take adamw."""
    steps: int = 400_000
    """Optimizer steps."""
    lr: float = 2e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.8, 0.99)
    """Betas of Adam's moments."""
    eps: float = 1e-6
    """Adam's epsilon."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on tensors of two and more dimensions only; scaled_adam has none."""
    schedule: Literal["constant", "exponential", "linear", "cosine", "inverse_sqrt", "eden"] = "exponential"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: int = 0
    """Steps of linear warm-up from zero; from one half under eden."""
    gamma: float = 0.999996
    """Factor per step of the exponential schedule."""
    min_lr_ratio: float = 0.1
    """Where the linear and the cosine schedule end, as a fraction of the peak."""
    decay_steps: int = 0
    """Step at which they end, to stay there; 0 for the last one."""
    eden_steps: float = 5000.0
    """Steps after which eden's rate begins to fall."""
    eden_epochs: float = 4.0
    """Epochs after which eden's rate begins to fall further."""
    epoch_steps: int = 0
    """Steps that eden takes for an epoch; 0 leaves its epoch part out."""
    clip_norm: float = 2.0
    """Largest gradient norm; longer gradients are scaled down to it. scaled_adam has a limit of its own instead."""
    clipping_scale: float = 2.0
    """scaled_adam's limit: this many times the median of recent gradient norms."""
    clipping_steps: int = 1000
    """How many steps that median looks back."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights that is exported; 0 exports the weights themselves."""

    def __post_init__(self):
        if self.steps < 1:
            raise ConfigError(f"optim.steps must be at least 1, got {self.steps}")
        if not self.lr > 0:
            raise ConfigError(f"optim.lr must be positive, got {self.lr}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"optim.ema_decay must lie in [0, 1), got {self.ema_decay}")
        for name in ("eden_steps", "eden_epochs", "clipping_scale", "clipping_steps"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"optim.{name} must be positive, got {getattr(self, name)}")
        if self.epoch_steps < 0:
            raise ConfigError(f"optim.epoch_steps must not be negative, got {self.epoch_steps}")

    @property
    def max_grad_norm(self) -> float:
        """What a trainer clips gradients to: `clip_norm`, or infinity where the optimizer has a limit of its own."""
        return math.inf if self.name == "scaled_adam" else self.clip_norm

    def require_adamw(self) -> None:
        """For models whose trainers know AdamW alone.

        Raises:
            ConfigError: `name` is another.
        """
        if self.name != "adamw":
            raise ConfigError(
                f"optim.name: {self.name} is for language models; this model trains with adamw",
                "leave out optim.name",
            )

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0.

        Source: eden is the schedule of k2-fsa/icefall's recipes,
            lr (1 + (step / eden_steps)^2)^-1/4 (1 + (epoch / eden_epochs)^2)^-1/4.
        """
        if self.schedule == "eden":
            warm = 1.0 if step >= self.warmup_steps else 0.5 + 0.5 * step / self.warmup_steps
            epoch = step // self.epoch_steps if self.epoch_steps else 0
            return (
                self.lr * warm * ((1 + (step / self.eden_steps) ** 2) * (1 + (epoch / self.eden_epochs) ** 2)) ** -0.25
            )
        if step < self.warmup_steps:
            return self.lr * (step + 1) / self.warmup_steps
        if self.schedule == "exponential":
            return self.lr * self.gamma ** (step - self.warmup_steps)
        if self.schedule in ("linear", "cosine"):
            end = self.decay_steps or self.steps
            progress = min(1.0, (step - self.warmup_steps) / max(1, end - self.warmup_steps))
            left = 1 - progress if self.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * progress))
            return self.lr * (self.min_lr_ratio + (1 - self.min_lr_ratio) * left)
        if self.schedule == "inverse_sqrt":
            return self.lr * math.sqrt(max(1, self.warmup_steps) / (step + 1))
        return self.lr
