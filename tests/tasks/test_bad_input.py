"""Bad and odd input, each by command and by API: refused with a message, converted and said, or accepted."""
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
import torch

from xcodec_lm.codec import load_codec
from xcodec_lm.codec.audio import load_audio, save_audio
from xcodec_lm.codec.load import save_codec
from xcodec_lm.codec.tokens import AudioTokens
from xcodec_lm.configs.errors import AudioError, TokenError, XcodecLMError
from xcodec_lm.lm.shards import StoreWriter, TokenStore
from xcodec_lm.tasks.cli import main
from xcodec_lm.tasks.data.tokenize import tokenize
from xcodec_lm.tasks.music import load_music

RATE = 16_000


def write_manifest(path, *audio):
    rows = [{"id": file.stem, "audio": str(file), "duration": 0.5} for file in audio]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture(scope="module")
def music(tmp_path_factory, twin_folder, other_folder):
    """A folder with a store of each of two codecs and a language model of two steps over the first."""
    folder = tmp_path_factory.mktemp("music")
    rng = np.random.default_rng(0)
    files = [folder / f"{name}.wav" for name in "abc"]
    for file in files:
        sf.write(file, 0.4 * rng.uniform(-1, 1, RATE), RATE)
    manifest = write_manifest(folder / "corpus.jsonl", *files)
    for name, codec in (("store", twin_folder), ("other-store", other_folder)):
        assert main(["data", "tokenize", str(manifest), "--codec", str(codec), "--out", str(folder / name), "-q"]) == 0
    assert main([*train_arguments(folder), "-q"]) == 0
    return folder


def train_arguments(folder, store="store", run="run"):
    return [
        "music", "train", "music/tiny", "--data.tokens", str(folder / store), "--out", str(folder / run),
        "--model.layers", "1", "--model.heads", "2", "--model.dim", "16", "--model.block", "80",
        "--data.batch-codes", "160", "--data.micro-batch-codes", "160", "--optim.steps", "2", "--device", "cpu",
    ]  # fmt: skip


# ------------------------------------------------------------------ recordings that are refused


def make_bad(kind, folder, write_wav):
    """A bad file, and what its refusal must say."""
    path = folder / "bad.wav"
    if kind == "missing":
        return path, "file not found"
    if kind == "no bytes":
        path.write_bytes(b"")
        return path, "not readable as audio"
    if kind == "no samples":
        sf.write(path, np.zeros(0), RATE)
        return path, "empty, it has no samples"
    if kind == "text":
        path.write_text("these are words\n" * 200)
        return path, "not readable as audio"
    if kind == "truncated flac":
        path = write_wav("bad.flac", 2.0, kind="noise")
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        return path, "truncated|not readable"
    data = (0.5 * np.sin(np.arange(8000))).astype(np.float32)
    if kind == "nan":
        data[123] = np.nan
    if kind == "int16 scale":
        data *= 32_768
    sf.write(path, data, RATE, subtype="FLOAT")
    return path, {"nan": "sample 123 is nan, not a finite number", "int16 scale": "must lie in"}[kind]


BAD = ["missing", "no bytes", "no samples", "text", "truncated flac", "nan", "int16 scale"]


def says(message, said, *others):
    return any(part in message for part in said.split("|")) and all(str(part) in message for part in others)


@pytest.mark.parametrize("kind", BAD)
def test_encode_refuses_bad_recordings(cli, tmp_path, write_wav, twin_folder, kind):
    path, said = make_bad(kind, tmp_path, write_wav)
    code, out, err = cli("codec", "encode", path, "--codec", twin_folder, "-o", tmp_path / "a.tokens")
    assert code == 1 and out == "" and err.startswith("error: ") and says(err, said, path) and "Traceback" not in err
    assert not (tmp_path / "a.tokens").exists()


@pytest.mark.parametrize("kind", BAD)
def test_continue_refuses_bad_recordings(cli, tmp_path, write_wav, music, kind):
    path, said = make_bad(kind, tmp_path, write_wav)
    code, out, err = cli("music", "continue", path, "--run", music / "run", "--seconds", 0.1, "-o", tmp_path / "o.wav")
    assert code == 1 and out == "" and says(err, said, path) and "Traceback" not in err
    assert not (tmp_path / "o.wav").exists()


@pytest.mark.parametrize("kind", BAD)
def test_tokenize_lists_bad_recordings_and_does_the_others(cli, tmp_path, write_wav, twin_folder, kind):
    path, said = make_bad(kind, tmp_path, write_wav)
    manifest = write_manifest(tmp_path / "corpus.jsonl", path, write_wav("good.wav", 0.5))
    code, out, err = cli("data", "tokenize", manifest, "--codec", twin_folder, "--out", tmp_path / "store")
    assert code == 3 and "1 recordings encoded" in out and "failed.jsonl" in err
    (failed,) = map(json.loads, (tmp_path / "store" / "failed.jsonl").read_text().splitlines())
    assert failed["id"] == "bad" and says(failed["reason"], said)
    assert [row["id"] for row in TokenStore.open(tmp_path / "store").rows] == ["good"]


@pytest.mark.parametrize("kind", BAD)
def test_eval_refuses_bad_recordings(cli, tmp_path, write_wav, twin_folder, kind):
    path, said = make_bad(kind, tmp_path, write_wav)
    manifest = write_manifest(tmp_path / "corpus.jsonl", path)
    code, _, err = cli("codec", "eval", twin_folder, manifest, "--split", "all")
    assert code == 1 and says(err, said, path)


@pytest.mark.parametrize("kind", BAD)
def test_training_refuses_bad_recordings(cli, tmp_path, write_wav, kind):
    path, said = make_bad(kind, tmp_path, write_wav)
    code, _, err = cli(
        "codec", "train", "baseline/demo", "--data.manifests", write_manifest(tmp_path / "corpus.jsonl", path),
        "--out", tmp_path / "run", "--model.encoder-channels", 1, "--model.decoder-channels", 16,
        "--model.quantizer.dim", 8, "--model.latent-dim", 8, "--device", "cpu",
    )  # fmt: skip
    assert code == 1 and says(err, said, path) and "Traceback" not in err


@pytest.mark.parametrize("kind", BAD)
def test_check_names_bad_recordings(cli, tmp_path, write_wav, kind):
    path, _ = make_bad(kind, tmp_path, write_wav)
    code, out, err = cli("data", "check", write_manifest(tmp_path / "corpus.jsonl", path))
    assert code == 1 and "bad" in out and "1 errors" in err


@pytest.mark.parametrize("kind", BAD)
def test_loading_refuses_bad_recordings(tmp_path, write_wav, kind):
    path, said = make_bad(kind, tmp_path, write_wav)
    with pytest.raises(AudioError) as caught:
        load_audio(path, RATE)
    assert says(str(caught.value), said, path)


def with_value(value):
    wav = torch.zeros(2, 1, 640)
    wav[1, 0, 123] = value
    return wav


@pytest.mark.parametrize(
    ("wav", "said"),
    [
        (torch.zeros(1, 1, 0), "wav is empty"),
        (torch.zeros(0, 1, 640), "wav is empty"),
        (with_value(float("nan")), "row 1: sample 123 is nan"),
        (with_value(float("inf")), "row 1: sample 123 is inf"),
        (with_value(20_000.0), "row 1: samples reach 20000"),
        ((10_000 * torch.ones(1, 1, 640)).to(torch.int16), "floating-point tensor, got torch.int16"),
        (torch.zeros(640), "must have shape"),
    ],
)
def test_api_refuses_bad_arrays(codec_folder, music, wav, said):
    codec = load_codec(codec_folder)
    with pytest.raises(AudioError, match=said):
        codec.encode(wav)
    with pytest.raises(AudioError, match=said):
        load_music(music / "run").continue_(wav, 0.1)


# ------------------------------------------------------------------ outputs that cannot be written


@pytest.fixture
def nowhere(tmp_path):
    """A folder that can never be, even for root: below a regular file."""
    (tmp_path / "file").write_text("")
    return tmp_path / "file" / "folder"


def test_commands_refuse_outputs_that_cannot_be_written(cli, tmp_path, nowhere, write_wav, twin_folder, music):
    wav, tokens = write_wav(seconds=0.5), tmp_path / "a.tokens"
    manifest = write_manifest(tmp_path / "corpus.jsonl", wav)
    assert cli("codec", "encode", wav, "--codec", twin_folder, "-o", tokens)[0] == 0
    commands = [
        ["codec", "encode", wav, "--codec", twin_folder, "-o", nowhere / "a.tokens"],
        ["codec", "decode", tokens, "--codec", twin_folder, "-o", nowhere / "a.wav"],
        ["codec", "decode", tokens, "--codec", twin_folder, "-o", tmp_path / "absent" / "a.wav"],
        ["codec", "train", "baseline/demo", "--data.manifests", manifest, "--out", nowhere],
        ["data", "tokenize", manifest, "--codec", twin_folder, "--out", nowhere],
        ["data", "scan", tmp_path, "-o", nowhere / "a.jsonl"],
        ["data", "synth", "-o", nowhere, "--music-clips", 1, "--sound-clips", 0, "--clip-s", 1],
        ["music", "continue", wav, "--run", music / "run", "--seconds", 0.1, "-o", nowhere / "a.wav"],
        ["music", "train", "music/tiny", "--data.tokens", music / "store", "--out", nowhere],
        ["presets", "cp", "xcodec/tiny", "-o", nowhere / "a.yaml"],
        ["demo", "--quick", "--out", nowhere],
    ]
    for command in commands:
        code, out, err = cli(*command)
        assert code == 1, f"{command}: {code} {out} {err}"
        assert "cannot write" in err and "Traceback" not in err, f"{command}: {err}"


def test_api_refuses_outputs_that_cannot_be_written(tmp_path, nowhere, twin_folder):
    codec = load_codec(twin_folder)
    tokens = codec.encode(torch.zeros(1, 1, 320))
    with pytest.raises(TokenError, match="cannot write"):
        tokens.save(nowhere / "a.tokens")
    for path in (nowhere / "a.wav", tmp_path / "absent" / "a.wav", tmp_path / "a.nothing"):
        with pytest.raises(AudioError, match="cannot write"):
            save_audio(path, torch.zeros(9), RATE)
    with pytest.raises(XcodecLMError, match="cannot write"):
        save_codec(codec, nowhere)
    with pytest.raises(XcodecLMError, match="cannot write"):
        StoreWriter(nowhere, codec.spec)


# ------------------------------------------------------------------ tokens and stores of another codec


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_tokenize_refuses_a_store_of_another_codec(cli, music, other_folder, twin_folder, tmp_path):
    store = shutil.copytree(music / "store", tmp_path / "store")
    before = contents(store)
    code, _, err = cli("data", "tokenize", music / "corpus.jsonl", "--codec", other_folder, "--out", store)
    assert code == 1 and "made by another codec" in err and str(store) in err
    with pytest.raises(TokenError, match="made by another codec"):
        tokenize([music / "corpus.jsonl"], load_codec(other_folder), store)
    assert contents(store) == before
    code, out, _ = cli("data", "tokenize", music / "corpus.jsonl", "--codec", twin_folder, "--out", store)
    assert code == 0 and "3 already there" in out


def test_store_api_refuses_another_codec_and_other_layers(music, other_folder, twin_folder):
    before = contents(music / "store")
    with pytest.raises(TokenError, match="made by another codec"):
        StoreWriter(music / "store", load_codec(other_folder).spec)
    with pytest.raises(TokenError, match="holds 4 quantizers"):
        StoreWriter(music / "store", load_codec(twin_folder).spec.take(2))
    assert contents(music / "store") == before


def test_training_goes_on_only_with_the_store_it_was_begun_with(cli, music, tmp_path):
    shutil.copytree(music / "other-store", tmp_path / "store")
    run = shutil.copytree(music / "run", tmp_path / "run")
    code, _, err = cli(*train_arguments(music, "other-store"), "--optim.steps", 3)
    assert code == 1 and "another configuration" in err and "data.tokens" in err
    # The same name, but the folder behind it was replaced.
    (run / "config.yaml").write_text(
        (run / "config.yaml").read_text().replace(str(music / "store"), str(tmp_path / "store"))
    )
    code, _, err = cli(*train_arguments(tmp_path), "--optim.steps", 3)
    assert code == 1 and "is not the token store that" in err and str(tmp_path / "store") in err


def test_continuation_refuses_another_codec(cli, music, write_wav, other_folder, tmp_path):
    prompt, out = write_wav(), tmp_path / "o.wav"
    code, _, err = cli("music", "continue", prompt, "--run", music / "run", "--codec", other_folder, "-o", out)
    assert code == 1 and "made by another codec" in err and not out.exists()
    with pytest.raises(TokenError, match="made by another codec"):
        load_music(music / "run", codec=other_folder)
    tokens = load_codec(other_folder).encode(torch.zeros(1, 1, 640))
    with pytest.raises(TokenError, match="the prompt was made by another codec"):
        load_music(music / "run").continue_(tokens, 0.1)


def test_decoding_refuses_tokens_of_another_codec(cli, twin_folder, other_folder, tmp_path):
    tokens = load_codec(other_folder).encode(torch.zeros(1, 1, 640))
    tokens.save(tmp_path / "a.tokens")
    code, _, err = cli("codec", "decode", tmp_path / "a.tokens", "--codec", twin_folder, "-o", tmp_path / "a.wav")
    assert code == 1 and "made by another codec" in err and not (tmp_path / "a.wav").exists()
    with pytest.raises(TokenError, match="made by another codec"):
        load_codec(twin_folder).decode(tokens)


@pytest.mark.parametrize("content", [None, b"words", b""])
def test_decoding_refuses_what_is_no_token_file(cli, twin_folder, tmp_path, content):
    path = tmp_path / "a.tokens"
    if content is not None:
        path.write_bytes(content)
    code, _, err = cli("codec", "decode", path, "--codec", twin_folder, "-o", tmp_path / "a.wav")
    assert code == 1 and str(path) in err and ("not a token file" in err or "file not found" in err)


def test_decoding_refuses_codes_out_of_range(twin_folder):
    codec = load_codec(twin_folder)
    tokens = codec.encode(torch.zeros(1, 1, 640))
    codes = tokens.codes.clone()
    codes[0, 2, 1] = 64
    tokens = replace(tokens, codes=codes)
    with pytest.raises(TokenError, match=r"code 64 of row 0, quantizer 2, frame 1 is outside 0\.\.63"):
        codec.decode(tokens)


# ------------------------------------------------------------------ converted by the commands, refused by the API


ODD = {
    "stereo": ({"channels": 2}, "mixed 2 channels to mono"),
    "8 kHz": ({"rate": 8000}, "resampled 8000 to 16000 Hz"),
}


@pytest.mark.parametrize("kind", ODD)
def test_commands_convert_and_say_so(cli, tmp_path, write_wav, codec_folder, music, kind):
    options, said = ODD[kind]
    wav = write_wav(seconds=0.5, **options)
    code, _, err = cli("codec", "encode", wav, "--codec", codec_folder, "-o", tmp_path / "a.tokens")
    assert code == 0 and said in err and str(wav) in err
    codec = load_codec(codec_folder)
    stored = AudioTokens.load(tmp_path / "a.tokens")
    assert torch.equal(stored.codes, codec.encode(load_audio(wav, RATE).wav[None]).codes)
    assert stored.samples.tolist() == [8000]
    code, _, err = cli("music", "continue", wav, "--run", music / "run", "--seconds", 0.1, "-o", tmp_path / "o.wav")
    assert code == 0 and said in err
    manifest = write_manifest(tmp_path / "corpus.jsonl", wav)
    code, _, err = cli("data", "tokenize", manifest, "--codec", codec_folder, "--out", tmp_path / "store")
    assert code == 0 and said in err
    np.testing.assert_array_equal(TokenStore.open(tmp_path / "store").codes(0), stored.codes[0].T.numpy())


def test_api_refuses_stereo_and_other_rates(codec_folder, music):
    codec, model = load_codec(codec_folder), load_music(music / "run")
    for take in (codec.encode, lambda wav, **options: model.continue_(wav, 0.1, **options)):
        with pytest.raises(AudioError, match=r"must be mono, got 2 channels(.|\n)*hint: .*mean"):
            take(torch.zeros(1, 2, 640))
        with pytest.raises(AudioError, match=r"has 8000 Hz, the codec needs 16000 Hz(.|\n)*hint: .*load_audio"):
            take(torch.zeros(1, 1, 640), sample_rate=8000)


# ------------------------------------------------------------------ accepted: one sample


def test_commands_take_one_sample(cli, tmp_path, codec_folder):
    wav, tokens, back = tmp_path / "a.wav", tmp_path / "a.tokens", tmp_path / "b.wav"
    sf.write(wav, [0.25], RATE)
    code, out, err = cli("codec", "encode", wav, "--codec", codec_folder, "-o", tokens)
    assert code == 0 and err == "" and "1 frames" in out
    code, _, _ = cli("codec", "decode", tokens, "--codec", codec_folder, "-o", back)
    assert code == 0 and sf.info(back).frames == 1


def test_api_takes_one_sample_alone_and_beside_others(codec_folder):
    codec = load_codec(codec_folder)
    wav = torch.zeros(2, 1, 1000)
    wav[0, 0, 0] = 0.25
    wav[1] = 0.4 * torch.randn(1, 1000, generator=torch.Generator().manual_seed(0)).clamp(-2, 2)
    alone = codec.encode(wav[:1, :, :1], sample_rate=RATE)
    assert alone.codes.shape == (1, 4, 1) and alone.samples.tolist() == [1] and codec.frames(1) == 1
    decoded, lengths = codec.decode(alone)
    assert decoded.shape == (1, 1, 1) and lengths.tolist() == [1] and torch.isfinite(decoded).all()
    both = codec.encode(wav, torch.tensor([1, 1000]))
    assert both.lengths.tolist() == [1, 4] and torch.equal(both.row(0).codes, alone.codes)
    assert torch.equal(both.row(1).codes, codec.encode(wav[1:]).codes)
    decoded, lengths = codec.decode(both)
    assert lengths.tolist() == [1, 1000] and not decoded[0, :, 1:].any()


def test_a_prompt_of_one_sample_is_one_frame(cli, tmp_path, music):
    sf.write(tmp_path / "a.wav", [0.25], RATE)
    arguments = ["music", "continue", tmp_path / "a.wav", "--run", music / "run", "--seconds", 0.1]
    assert cli(*arguments, "-o", tmp_path / "o.wav")[0] == 0
    assert sf.info(tmp_path / "o.wav").frames == 320 + 1600


# ------------------------------------------------------------------ accepted: ten minutes

MINUTES = 10
slow = pytest.mark.slow


@pytest.mark.parametrize("name", ["twin_folder", pytest.param("teacher_folder", marks=slow)])
def test_commands_take_ten_minutes(cli, tmp_path, request, name):
    folder, seconds = request.getfixturevalue(name), 60 * MINUTES
    wav, tokens, back = tmp_path / "a.wav", tmp_path / "a.tokens", tmp_path / "b.wav"
    sf.write(wav, 0.3 * np.random.default_rng(0).uniform(-1, 1, seconds * RATE).astype(np.float32), RATE)
    code, out, _ = cli("codec", "encode", wav, "--codec", folder, "-o", tokens)
    assert code == 0 and f"{50 * seconds} frames" in out
    code, _, _ = cli("codec", "decode", tokens, "--codec", folder, "-o", back, "--n-q", 1)
    assert code == 0 and sf.info(back).frames == seconds * RATE


@pytest.mark.parametrize("name", [pytest.param("twin_folder", marks=slow), "teacher_folder"])
def test_api_takes_ten_minutes(request, name, capsys):
    codec, samples = load_codec(request.getfixturevalue(name)), 60 * MINUTES * RATE
    wav = 0.3 * torch.rand(1, 1, samples, generator=torch.Generator().manual_seed(0)) - 0.15
    tokens = codec.encode(wav)
    assert tokens.codes.shape == (1, 4, codec.frames(samples)) and tokens.samples.tolist() == [samples]
    assert ("the teacher sees 60 s at a time" in capsys.readouterr().err) == codec.has_semantics
    # Far from its ends, a minute's codes do not depend on the rest for the twin, and hardly with a windowed teacher.
    part = codec.encode(wav[:, :, 240 * RATE : 300 * RATE]).codes[0, 0, 500:2500]
    agreement = (part == tokens.codes[0, 0, 12_500:14_500]).double().mean()
    assert agreement == 1 if not codec.has_semantics else agreement > 0.5
    decoded, lengths = codec.decode(tokens)
    assert lengths.tolist() == [samples] and decoded.shape == wav.shape and torch.isfinite(decoded).all()
    piece = codec.decode(tokens.crop(15_000, 15_100))[0]
    halo = codec.lookahead_frames * 320
    start = 15_000 * 320
    torch.testing.assert_close(
        decoded[:, :, start + halo : start + 100 * 320 - halo], piece[:, :, halo : 100 * 320 - halo]
    )
