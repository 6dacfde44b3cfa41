"""`tts card`: a trained run as a folder for others, that speaks from wherever it lies."""

import json

import numpy as np

from xcodec_lm.codec import load_codec
from xcodec_lm.lm.shards import StoreWriter
from xcodec_lm.tasks.tts.voice import load_tts

SIZES = (
    "--model.layers", 1, "--model.heads", 2, "--model.dim", 32, "--model.mlp-dim", 32, "--model.n-q", 3,
    "--model.block", 128, "--nar.layers", 1, "--nar.heads", 2, "--nar.dim", 16, "--nar.mlp-dim", 16,
    "--data.batch-codes", 128, "--data.micro-batch-codes", 128, "--optim.steps", 2, "--nar-optim.steps", 2,
)  # fmt: skip


def test_a_run_becomes_a_folder_of_half_precision_with_a_card(cli, tmp_path):
    codec = load_codec("xcodec-tiny")
    rng = np.random.default_rng(0)
    with StoreWriter(tmp_path / "tokens", codec.spec, codec="xcodec-tiny") as writer:
        for number in range(12):
            row = {"id": f"u{number}", "split": "dev" if number > 9 else "train", "text": "one two", "speaker": "s",
                   "source": "own", "licence": "CC0-1.0", "duration": 0.8}  # fmt: skip
            writer.add(row, rng.integers(0, 1024, (40, codec.spec.n_q)))
    run, out = tmp_path / "run", tmp_path / "shipped" / "small"
    code, _, err = cli("tts", "train", "tts/tiny", "--data.tokens", tmp_path / "tokens", "--out", run, *SIZES)
    assert code == 0, err
    (tmp_path / "notes.md").write_text("It knows two words.")
    code, _, err = cli("tts", "card", run, "-o", out, "--notes", tmp_path / "notes.md")
    assert code == 0, err
    card, facts = (out / "README.md").read_text(), json.loads((out / "provenance.json").read_text())
    assert card.startswith("# small\n")
    assert card.count(codec.spec.fingerprint) == 1 and card.count("## AR") == card.count("## NAR") == 1
    assert "It knows two words." in card and "CC0-1.0 (10)" in card
    assert str(tmp_path) not in card and str(tmp_path) not in json.dumps(facts)
    whole = (run / "ar" / "model" / "model.safetensors").stat().st_size
    assert (out / "ar" / "model.safetensors").stat().st_size < 0.6 * whole
    tts = load_tts(out)
    assert tts.n_q == 3 and tts.guidable
    assert tts.say("two one").wav.isfinite().all()
    assert cli("tts", "card", tmp_path, "-o", tmp_path / "none")[0] == 1
