"""Makes the ABX fixture: random features, items, and what two other implementations score them with.

Run once for each, in an environment of its own; each run adds its scores to `abx.json`:

    python3.12 -m venv a && a/bin/pip install fastabx==0.9.0 && a/bin/python make_abx.py fastabx
    python3.11 -m venv b && b/bin/pip install zerospeech-libriabx==1.0.5 'numpy<2' torch torchaudio
    b/bin/python make_abx.py libriabx

The second has Libri-light's own code, which leaves out the last frame of every item; the first does so on request.
Libri-light's imports torchaudio, vdataset and progressbar, unused here; where they do not load, empty modules
of these names will do (so were the scores made, with torch 2.13).
"""

import json
import os
import sys
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent
RATE, FRAMES, WIDTH = 50, 150, 6
FILES, SPEAKERS, PHONES, CONTEXTS = 12, 4, ("AH", "B", "EH"), (("K", "T"), ("S", "SIL"))


def make() -> None:
    """Features and codes of 12 recordings, and 216 items in them; phones differ in their mean and in their codes."""
    rng = np.random.default_rng(0)
    features = {f"rec{i}": rng.standard_normal((FRAMES, WIDTH)).astype(np.float32) for i in range(FILES)}
    codes = {name: rng.integers(0, 40, (FRAMES, 1)).astype(np.int64) for name in features}
    means = 0.7 * rng.standard_normal((len(PHONES), WIDTH))
    lines = ["#file onset offset #phone prev-phone next-phone speaker"]
    for name in features:
        speaker = int(name[3:]) % SPEAKERS
        moment = 3
        for index in rng.permutation(18):
            phone, context = index % 3, CONTEXTS[index // 3 % 2]
            frames = int(rng.integers(3, 8))
            # Half of the ends lie on a frame's moment, where a rounding error would show.
            ends = [f"{(moment + 0.5) / RATE - d:.4f}" for d in rng.choice([0, 0.004], 2)]
            ends[1] = f"{float(ends[1]) + (frames - 1) / RATE:.4f}"
            features[name][moment : moment + frames] += means[phone].astype(np.float32)
            same = rng.random(frames) < 0.5
            codes[name][moment : moment + frames][same] = 100 + phone
            lines.append(f"{name} {ends[0]} {ends[1]} {PHONES[phone]} {context[0]} {context[1]} spk{speaker}")
            moment += frames
        assert moment < FRAMES
    (HERE / "abx.item").write_text("\n".join(lines) + "\n")
    arrays = {f"features/{name}": value for name, value in features.items()}
    np.savez_compressed(HERE / "abx.npz", **arrays, **{f"codes/{name}": value for name, value in codes.items()})


def fastabx(kind: str, mode: str, slice_rule: str) -> float:
    import torch
    from fastabx import zerospeech_abx

    os.environ["FASTABX_WITH_LIBRILIGHT_BUG"] = str(int(slice_rule == "libri-light"))
    with tempfile.TemporaryDirectory() as folder:
        for key, value in np.load(HERE / "abx.npz").items():
            if key.startswith(kind):
                torch.save(torch.from_numpy(value), f"{folder}/{key.split('/')[1]}.pt")
        return 100 * zerospeech_abx(
            HERE / "abx.item", folder, max_size_group=None, max_x_across=None, speaker=mode, frequency=RATE,
            distance="angular" if kind == "features" else "identical", device="cpu",
        )  # fmt: skip


def libriabx(mode: str) -> float:
    import torch
    from libriabx.libri_light.eval_ABX import ABX

    with tempfile.TemporaryDirectory() as folder:
        paths = []
        for key, value in np.load(HERE / "abx.npz").items():
            if key.startswith("features"):
                paths.append((key.split("/")[1], f"{folder}/{key.split('/')[1]}.pt"))
                torch.save(torch.from_numpy(value), paths[-1][1])
        # It reads times as floats and loses frames whose moment is an item's end; 0.1 ms more on both sides keeps them.
        head, *lines = (HERE / "abx.item").read_text().splitlines()
        for index, line in enumerate(lines):
            name, onset, offset, *rest = line.split()
            lines[index] = " ".join([name, f"{float(onset) - 1e-4:.4f}", f"{float(offset) + 1e-4:.4f}", *rest])
        items = Path(folder) / "wider.item"
        items.write_text("\n".join([head, *lines]) + "\n")
        scores = ABX(torch.load, items, paths, "cosine", RATE, [mode], False, 1000, 1000)
    return 100 * scores[mode]


if __name__ == "__main__":
    make()
    found = json.loads((HERE / "abx.json").read_text()) if (HERE / "abx.json").exists() else {}
    if sys.argv[1] == "fastabx":
        found["fastabx 0.9.0"] = {
            f"{kind} {mode} {rule}": fastabx(kind, mode, rule)
            for kind in ("features", "codes") for mode in ("within", "across") for rule in ("inclusive", "libri-light")
        }  # fmt: skip
    else:
        modes = ("within", "across")
        found["zerospeech-libriabx 1.0.5"] = {f"features {mode} libri-light": libriabx(mode) for mode in modes}
    (HERE / "abx.json").write_text(json.dumps(found, indent=1) + "\n")
