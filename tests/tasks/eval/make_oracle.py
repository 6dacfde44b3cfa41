"""Writes oracle.json: what torchmetrics says of seeded data. Run once, in an environment of its own:

    pip install torch==2.13.0 torchmetrics==1.9.0
    python tests/tasks/eval/make_oracle.py

The data are not stored: `oracle_data.py` makes them again from their seeds.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parent))
import oracle_data as data


def main() -> None:
    import torchmetrics
    from torchmetrics.functional import kl_divergence
    from torchmetrics.functional.audio import scale_invariant_signal_distortion_ratio
    from torchmetrics.functional.text import char_error_rate, word_error_rate
    from torchmetrics.image.fid import _compute_fid
    from torchmetrics.image.inception import InceptionScore

    found: dict[str, object] = {"torchmetrics": torchmetrics.__version__, "torch": torch.__version__, "frechet": []}
    for seed, rows, dims in data.FRECHET:
        x, y = data.sets(seed, rows, dims)
        moments = [part for values in (x, y) for part in (values.mean(0), np.cov(values, rowvar=False))]
        found["frechet"].append(float(_compute_fid(*(torch.from_numpy(np.atleast_1d(part)) for part in moments))))
    logits = torch.from_numpy(data.logits(5))

    class Outputs(torch.nn.Module):
        num_features = logits.shape[1]

        def forward(self, index: torch.Tensor) -> torch.Tensor:
            return logits[index[:, 0, 0, 0].long()]

    score = InceptionScore(feature=Outputs(), splits=1)
    score.set_dtype(torch.float64)
    score.update(torch.arange(len(logits), dtype=torch.uint8)[:, None, None, None])
    found["inception"] = float(score.compute()[0])
    made, reference = (torch.from_numpy(data.logits(seed)).softmax(dim=1) for seed in data.KL)
    found["kl"] = [float(kl_divergence(q[None], p[None])) for q, p in zip(reference, made, strict=True)]
    found["si_sdr"] = [
        float(scale_invariant_signal_distortion_ratio(*map(torch.from_numpy, data.signals(seed)), zero_mean=True))
        for seed in data.SI_SDR
    ]
    hypotheses, references = data.TEXTS
    found["wer"] = float(word_error_rate(hypotheses, references))
    found["cer"] = float(char_error_rate(hypotheses, references))
    path = Path(__file__).with_name("oracle.json")
    path.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
