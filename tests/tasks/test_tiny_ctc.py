"""The recogniser: it learns made-up words, is saved and resumed exactly, and keeps the contract of all recognisers."""

import json

import numpy as np
import pytest
import soundfile as sf
import torch
from transformers import (
    Wav2Vec2Config,
    Wav2Vec2CTCTokenizer,
    Wav2Vec2FeatureExtractor,
    Wav2Vec2ForCTC,
    Wav2Vec2Model,
    Wav2Vec2Processor,
    WhisperConfig,
    WhisperFeatureExtractor,
    WhisperForConditionalGeneration,
    WhisperProcessor,
    WhisperTokenizer,
)

from xcodec_lm.codec import load_codec
from xcodec_lm.codec.clips import read_manifest, write_manifest
from xcodec_lm.codec.runtime.order import generator
from xcodec_lm.codec.runtime.run import RunOptions, read_metrics
from xcodec_lm.configs.errors import AudioError, ConfigError, XcodecLMError
from xcodec_lm.configs.evaluators import AugmentConfig, EvaluatorDataConfig, EvaluatorTrainConfig, RecogniserConfig
from xcodec_lm.configs.run import OptimConfig, RunConfig
from xcodec_lm.tasks.eval.judge_audio import bands_below, features, low_pass, set_level
from xcodec_lm.tasks.eval.judge_augment import add_pauses, augment
from xcodec_lm.tasks.eval.judge_copies import choose, make_copies
from xcodec_lm.tasks.eval.tiny_ctc import Alphabet, TinyCTC, TinyTranscriber, load_tiny_ctc, save_tiny_ctc
from xcodec_lm.tasks.eval.train_evaluators import train
from xcodec_lm.tasks.eval.transcribers import Transcriber, load_transcriber, quiet_pieces

RATE = 16_000
WORDS = {"low": 300, "mid": 900, "top": 2500}
SMALL = RecogniserConfig(channels=16, layers=2, dropout=0.0)


def spoken(words, rng):
    """Each word is a tone of its own, with a gap behind."""
    parts = [np.zeros(800)]
    for word in words:
        time = np.arange(int(rng.integers(2400, 4000))) / RATE
        parts += [0.2 * np.hanning(len(time)) * np.sin(2 * np.pi * WORDS[word] * time), np.zeros(1200)]
    return (np.concatenate(parts) + 1e-4 * rng.standard_normal(sum(map(len, parts)))).astype(np.float32)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory):
    folder = tmp_path_factory.mktemp("words")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(60):
        words = list(rng.choice(list(WORDS), size=int(rng.integers(1, 4))))
        wav = spoken(words, rng)
        sf.write(folder / f"{index}.wav", wav, RATE)
        rows.append({"id": f"c{index}", "audio": f"{index}.wav", "duration": len(wav) / RATE, "text": " ".join(words),
                     "speaker": f"s{index % 2}", "split": "train" if index < 48 else "dev"})  # fmt: skip
    write_manifest(rows, folder / "words.jsonl")
    return folder / "words.jsonl"


def config_of(manifest, steps, **data):
    return EvaluatorTrainConfig(
        kind="recogniser", recogniser=SMALL,
        data=EvaluatorDataConfig(manifests=(str(manifest),), batch_clips=6, eval_clips=8, **data),
        optim=OptimConfig(steps=steps, lr=1e-2, betas=(0.9, 0.98), schedule="cosine", warmup_steps=5, clip_norm=1.0),
        run=RunConfig(log_every=1, eval_every=1000, save_every=2),
    )  # fmt: skip


@pytest.fixture(scope="module")
def trained(manifest, tmp_path_factory):
    return train(config_of(manifest, 70), RunOptions(tmp_path_factory.mktemp("runs") / "r", device="cpu"))


def test_it_learns_and_says_what_it_descends_from(trained, manifest):
    assert read_metrics(trained)[-1]["eval/wer"] < 0.2
    judge = load_transcriber(trained)
    rng = np.random.default_rng(99)
    asked = [["low", "low", "top"], ["mid"], ["top", "mid", "low"]]
    heard = judge.transcribe([spoken(words, rng) for words in asked])
    assert sum(text.split() == words for text, words in zip(heard, asked, strict=True)) >= 2
    assert judge.name == "tinyctc" and judge.ancestry["weights_from"].startswith("none")
    (origin,) = judge.ancestry["trained_on"]
    assert origin["rows"] == 48 and len(origin["sha256"]) == 64


def test_a_stopped_run_goes_on_with_the_same_losses(manifest, tmp_path):
    whole = train(config_of(manifest, 4), RunOptions(tmp_path / "whole", device="cpu"))
    train(config_of(manifest, 4), RunOptions(tmp_path / "parts", device="cpu", max_steps=2))
    parts = train(config_of(manifest, 4), RunOptions(tmp_path / "parts", device="cpu"))
    losses = [[row["loss"] for row in read_metrics(run)] for run in (whole, parts)]
    assert len(losses[0]) == 4 and losses[0] == losses[1]


@pytest.fixture(scope="module")
def ctc_folder(tmp_path_factory):
    """A transformers CTC model with random weights."""
    folder = tmp_path_factory.mktemp("ctc")
    vocabulary = {sign: index for index, sign in enumerate(["<pad>", "<unk>", "|", *"ABCDEFGH"])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = Wav2Vec2CTCTokenizer(folder / "vocab.json", pad_token="<pad>", unk_token="<unk>",
                                     word_delimiter_token="|", bos_token=None, eos_token=None)  # fmt: skip
    extractor = Wav2Vec2FeatureExtractor(sampling_rate=RATE, do_normalize=True)
    Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    config = Wav2Vec2Config(
        vocab_size=len(vocabulary), hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        conv_dim=(8,) * 7, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2, pad_token_id=0,
    )  # fmt: skip
    Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def whisper_folder(tmp_path_factory):
    """A Whisper of transformers' with random weights that knows single characters."""
    folder = tmp_path_factory.mktemp("whisper")
    signs = [chr(code) for code in (*range(33, 127), 288)]
    names = ["<|endoftext|>", "<|startoftranscript|>", "<|en|>", "<|transcribe|>", "<|notimestamps|>"]
    tokenizer = WhisperTokenizer(vocab={sign: index for index, sign in enumerate([*signs, *names])}, merges=[])
    WhisperProcessor(WhisperFeatureExtractor(feature_size=8), tokenizer).save_pretrained(folder)
    torch.manual_seed(0)
    end = len(signs)
    config = WhisperConfig(
        vocab_size=len(tokenizer), num_mel_bins=8, d_model=16, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=16, decoder_ffn_dim=16,
        max_target_positions=12, pad_token_id=end, bos_token_id=end, eos_token_id=end, decoder_start_token_id=end + 1,
        suppress_tokens=None, begin_suppress_tokens=None,
    )  # fmt: skip
    WhisperForConditionalGeneration(config).save_pretrained(folder)
    return folder


FOLDERS = {"tinyctc": "trained", "ctc": "ctc_folder", "whisper": "whisper_folder"}


@pytest.fixture(params=list(FOLDERS))
def judge(request):
    return load_transcriber(request.getfixturevalue(FOLDERS[request.param]))


def test_the_contract_of_recognisers(judge):
    assert isinstance(judge, Transcriber)
    rng = np.random.default_rng(1)
    clips = [spoken(["low", "top"], rng), spoken(["mid"], rng), (0.1 * rng.standard_normal(1600)).astype(np.float32),
             np.full(1, 0.5, np.float32), spoken(["mid"] * 200, rng)[: 60 * RATE]]  # fmt: skip
    together = judge.transcribe(clips)
    assert together == [judge.transcribe([clip])[0] for clip in clips]
    assert together[::-1] == judge.transcribe(clips[::-1])
    assert judge.transcribe([np.zeros(RATE, np.float32), np.full(RATE, 1e-4, np.float32)]) == ["", ""]
    assert judge.transcribe([]) == []


@pytest.mark.parametrize("bad, message", [
    (np.array([0.1, np.nan], np.float32), "sample 1 is nan"),
    (np.zeros((2, 100), np.float32), "one-dimensional"),
    (np.zeros(100, np.int16), "array of floats"),
    (np.zeros(0, np.float32), "empty"),
    (np.full(100, 3000.0, np.float32), "divide 16-bit"),
])  # fmt: skip
def test_clips_that_are_none_are_refused(judge, bad, message):
    with pytest.raises(AudioError, match=message):
        judge.transcribe([bad])


def test_alphabets():
    words = Alphabet.build(["one two", "two"])
    assert (words.units, words.symbols) == ("words", ("one", "two"))
    many = Alphabet.build([f"w{index}" for index in range(101)])
    assert many.units == "characters"
    for alphabet, text in ((words, "two two one"), (Alphabet.build(["ab b", "ba"], "characters"), "abba b")):
        outputs = alphabet.encode(text).repeat_interleave(2)
        frames = torch.stack([outputs, torch.zeros_like(outputs)], 1).flatten()
        frames = torch.cat([frames[i : i + 4] for i in range(0, len(frames), 4)])  # x 0 x 0, a blank between repeats
        assert alphabet.decode(frames[torch.arange(len(frames)) % 4 != 2]) == text
    with pytest.raises(ConfigError, match="no training clip has a `text`"):
        Alphabet.build(["", " "])


def test_rows_of_a_batch_are_heard_as_alone():
    torch.manual_seed(0)
    model = TinyCTC(SMALL, Alphabet("words", ("a", "b"))).eval()
    rows = [torch.randn(length, model.bands) for length in (37, 8, 1, 64)]
    padded = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True) + 0.0
    lengths = torch.tensor([37, 8, 1, 64])
    with torch.inference_mode():
        scores, sizes = model(padded, lengths)
        for row, alone in enumerate(rows):
            single, size = model(alone[None], lengths[row : row + 1])
            assert int(size) == int(sizes[row])
            torch.testing.assert_close(scores[row, : int(size)], single[0], atol=1e-5, rtol=1e-5)


def test_saved_and_loaded_says_the_same(tmp_path):
    torch.manual_seed(1)
    model = TinyCTC(SMALL, Alphabet("characters", (" ", "a", "b"))).eval()
    save_tiny_ctc(model, tmp_path / "j", {"seed": 1})
    wavs = [np.random.default_rng(2).uniform(-0.5, 0.5, 9000).astype(np.float32)]
    assert load_tiny_ctc(tmp_path / "j").transcribe(wavs) == TinyTranscriber(model).transcribe(wavs)
    config = tmp_path / "j" / "config.json"
    config.write_text(config.read_text().replace('"channels": 16', '"channels": 15'))
    with pytest.raises(XcodecLMError, match="does not fit"):
        load_tiny_ctc(tmp_path / "j")
    config.write_text('{"model_type": "xcodec_lm_tiny_ctc", "version": 1}')
    with pytest.raises(XcodecLMError, match="incomplete"):
        load_tiny_ctc(tmp_path / "j")


def test_folders_without_a_recogniser(tmp_path, ctc_folder):
    with pytest.raises(XcodecLMError, match="holds no judge"):
        load_transcriber(tmp_path)
    torch.manual_seed(0)
    Wav2Vec2Model(Wav2Vec2Config(hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                                 conv_dim=(8,) * 7, num_conv_pos_embeddings=8,
                                 num_conv_pos_embedding_groups=2)).save_pretrained(tmp_path)  # fmt: skip
    with pytest.raises(XcodecLMError, match="not a recogniser"):
        load_transcriber(tmp_path)
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "config.json").write_text((ctc_folder / "config.json").read_text())
    with pytest.raises(XcodecLMError, match="cannot be loaded"):
        load_transcriber(bare)


def test_features_do_not_depend_on_level_or_on_pauses():
    wav = torch.from_numpy(spoken(["low", "top"], np.random.default_rng(3)))
    base = features(wav, 80)
    torch.testing.assert_close(features(0.25 * wav, 80), base, atol=1e-4, rtol=1e-4)
    longer = features(torch.cat([wav, torch.zeros(16 * 160)]), 80)
    torch.testing.assert_close(longer[: len(base) - 2], base[:-2], atol=1e-3, rtol=1e-3)
    assert features(torch.zeros(1000), 80).abs().max() == 0
    assert bands_below(8000) == 80 and 45 < bands_below(3800) < 60


def test_low_pass_and_level():
    time = torch.arange(RATE) / RATE
    wav = torch.sin(2 * torch.pi * 500 * time) + torch.sin(2 * torch.pi * 6000 * time)
    torch.testing.assert_close(low_pass(wav), torch.sin(2 * torch.pi * 500 * time), atol=5e-3, rtol=0)
    assert 20 * set_level(wav, -25.0).square().mean().sqrt().log10() == pytest.approx(-25, abs=0.1)
    assert torch.equal(set_level(torch.zeros(100)), torch.zeros(100))


def test_variations_are_keyed_and_can_be_off():
    wav = torch.from_numpy(spoken(["low", "mid"], np.random.default_rng(4)))
    config = AugmentConfig()
    first, again, other = (augment(wav, config, generator(0, "judge", 5, item)) for item in (0, 0, 1))
    assert torch.equal(first, again) and first.shape != other.shape
    off = AugmentConfig(gain_db=0, speed=0, noise_share=0, low_pass_share=0, tilt_db=0, pause_share=0)
    torch.testing.assert_close(augment(wav, off, generator(0, "x")), wav, atol=1e-5, rtol=0)
    paused = add_pauses(wav, [0.1, 0.2, 0.05], 0.5)
    assert len(paused) == len(wav) + 0.35 * RATE
    assert torch.equal(paused[paused != 0], wav[wav != 0])


def test_every_codec_copies_the_same_clips_with_the_same_layers(manifest, tmp_path, twin_folder, other_folder):
    codecs = {"a": load_codec(twin_folder), "b": load_codec(other_folder)}
    path = make_copies([manifest], codecs, 3, 6.0, tmp_path, seed=1)
    rows = [clip.row for clip in read_manifest(path)]
    mine, yours = ([(row["copy_of"], row["n_q"], row["damage"], row["text"], row["duration"])
                    for row in rows if row["codec"] == name] for name in "ab")  # fmt: skip
    assert mine == yours and len(mine) == 3
    before = path.stat().st_mtime_ns
    assert make_copies([manifest], codecs, 3, 6.0, tmp_path, seed=1).stat().st_mtime_ns == before
    assert [clip.id for clip in choose([manifest], 100, 0.01, 0)] == []
    assert all(clip.split == "train" for clip in choose([manifest], 100, 6.0, 0))


def test_long_clips_are_cut_at_quiet_places_and_nothing_is_lost():
    wav = torch.randn(50_000, generator=torch.Generator().manual_seed(0))
    wav[17_000:19_000] = 0
    pieces = quiet_pieces(wav, 20_000, 8_000)
    assert torch.equal(torch.cat(pieces), wav)
    assert all(len(piece) <= 20_000 for piece in pieces)
    assert 17_000 <= len(pieces[0]) <= 19_000
