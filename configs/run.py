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
    """AdamW and its learning-rate schedule."""

    steps: int = 400_000
    """Optimizer steps."""
    lr: float = 2e-4
    """Peak learning rate."""
    betas: tuple[float, float] = (0.8, 0.99)
    """AdamW's betas."""
    eps: float = 1e-6
    """AdamW's epsilon."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on tensors of two and more dimensions only."""
    schedule: Literal["constant", "exponential", "linear", "cosine", "inverse_sqrt"] = "exponential"
    """Shape of the learning rate after the warm-up."""
    warmup_steps: int = 0
    """Steps of linear warm-up from zero."""
    gamma: float = 0.999996
    """Factor per step of the exponential schedule."""
    min_lr_ratio: float = 0.1
    """Where the linear and the cosine schedule end, as a fraction of the peak."""
    decay_steps: int = 0
    """Step at which they end, to stay there; 0 for the last one."""
    clip_norm: float = 2.0
    """Largest gradient norm; longer gradients are scaled down to it."""
    ema_decay: float = 0.0
    """Decay of the moving average of the weights that is exported; 0 exports the weights themselves."""

    def __post_init__(self):
        if self.steps < 1:
            raise ConfigError(f"optim.steps must be at least 1, got {self.steps}")
        if not self.lr > 0:
            raise ConfigError(f"optim.lr must be positive, got {self.lr}")
        if not 0 <= self.ema_decay < 1:
            raise ConfigError(f"optim.ema_decay must lie in [0, 1), got {self.ema_decay}")

    def lr_at(self, step: int) -> float:
        """Learning rate of a step, counted from 0."""
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
