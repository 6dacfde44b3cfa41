"""Convolutions that adapt the teacher's features in X-Codec 2; a second one restores them in training.

Parameter names are those of `transformers.Xcodec2Model`. Source: https://huggingface.co/HKUSTAudio/xcodec2.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class SemanticAdapter(nn.Module):
    """Convolution, a residual unit of ReLUs and two convolutions, convolution."""

    def __init__(self, dim: int):
        super().__init__()
        self.conv1 = nn.Conv1d(dim, dim, 3, padding=1, bias=False)
        self.conv2 = nn.Conv1d(dim, dim, 3, padding=1)
        self.conv3 = nn.Conv1d(dim, dim, 3, padding=1)
        self.conv4 = nn.Conv1d(dim, dim, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D, T) -> (B, D, T)."""
        x = F.relu(self.conv1(x))
        return self.conv4(x + self.conv3(F.relu(self.conv2(x))))
