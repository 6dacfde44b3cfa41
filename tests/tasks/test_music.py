"""Music continuation with a small stand-in for a codec: what comes out, what is checked, what is said."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile as sf
import torch
from torch import Tensor

from xcodec_lm.codec.audio import save_audio
from xcodec_lm.codec.streaming import WindowedStreamDecoder
from xcodec_lm.codec.tokens import AudioTokenizer, AudioTokens, TokenSpec, stack_codes
from xcodec_lm.configs.errors import AudioError, TokenError, UsageError, XcodecLMError
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import layout_from
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.tasks.music import load_music
from xcodec_lm.tasks.music.continuation import continue_file, read_prompt, stream_pcm

SPEC = TokenSpec("levels", 16_000, 8_000, 320, (32, 32, 32), fingerprint="d" * 64)


class LevelCodec:
    """A frame becomes its mean level in 32 steps, then the rest in finer ones; decoded at half the rate."""

    causal, lookahead_frames = True, 0

    def __init__(self, spec: TokenSpec = SPEC):
        self.spec = spec

    def frames(self, samples: int) -> int:
        return -(-samples // self.spec.hop_samples)

    def encode(
        self, wav: Tensor, lengths: Tensor | None = None, n_q: int | None = None, *, sample_rate: int | None = None
    ) -> AudioTokens:
        if sample_rate not in (None, self.spec.sample_rate):
            raise AudioError(f"the audio has {sample_rate} Hz, the codec needs {self.spec.sample_rate} Hz")
        frames, hop = self.frames(wav.shape[2]), self.spec.hop_samples
        rest = torch.nn.functional.pad(wav[:, 0], (0, frames * hop - wav.shape[2])).unflatten(1, (frames, hop)).mean(2)
        codes, step = [], 1 / 16
        for _ in self.spec.codebook_sizes:
            codes.append((rest / step + 16).round().clamp(0, 31).long())
            rest, step = rest - (codes[-1] - 16) * step, step / 16
        samples = torch.full((len(wav),), wav.shape[2])
        tokens = stack_codes(list(torch.stack(codes, 1)), self.spec, samples)
        return tokens.take(n_q or self.spec.n_q)

    def decode(self, tokens: AudioTokens) -> tuple[Tensor, Tensor]:
        steps = (1 / 16) ** torch.arange(1, tokens.spec.n_q + 1)
        levels = ((tokens.codes - 16) * steps[:, None]).sum(1)  # (B, T)
        wav = levels.repeat_interleave(self.spec.hop_samples // 2, dim=1)[:, None]
        return wav, torch.full((len(wav),), wav.shape[2])

    def stream_decoder(self, batch: int = 1) -> WindowedStreamDecoder:
        return WindowedStreamDecoder(self, batch, 0, 0)


def save_model(run, n_q=2, path=None):
    torch.manual_seed(0)
    config = LayoutConfig("first" if n_q == 1 else "flatten", n_q)
    model = GPT(
        GPTConfig(layers=1, heads=2, dim=16, block=64, layout=config), layout_from(config, SPEC).vocabulary.size
    )
    facts = {"fingerprint": SPEC.fingerprint, "path": path, "spec": SPEC.to_dict()}
    model.save_pretrained(run / "model", {"codec": facts})
    return run


@pytest.fixture
def run(tmp_path):
    return save_model(tmp_path / "run")


def prompt(samples=6400, rows=1):
    return torch.sin(torch.arange(samples) / 900).expand(rows, 1, samples) * 0.8


def test_the_stand_in_is_a_tokenizer():
    assert isinstance(LevelCodec(), AudioTokenizer)
    wav, _ = LevelCodec().decode(LevelCodec().encode(prompt()))
    means = prompt()[0, 0].unflatten(0, (20, 320)).mean(1)
    torch.testing.assert_close(wav[0, 0, ::160], means, atol=2e-4, rtol=0)


def test_continues_wavs_with_prompt_and_continuation_in_one(run):
    codec = LevelCodec()
    music = load_music(run, codec)
    result = music.continue_(prompt(), seconds=0.3, seed=5)
    assert result.prompt_frames == 20 and result.tokens.codes.shape == (1, 2, 35)
    assert result.sample_rate == 8_000 and result.wav.shape == (1, 1, 35 * 160) and result.prompt_samples == 3200
    assert torch.equal(result.tokens.codes[:, :, :20], codec.encode(prompt(), n_q=2).codes)
    result.tokens.check_range()
    assert torch.equal(result.wav, codec.decode(result.tokens)[0])
    again, other = (load_music(run, codec).continue_(prompt(), 0.3, seed=seed) for seed in (5, 6))
    assert torch.equal(again.wav, result.wav)
    assert not torch.equal(other.tokens.codes, result.tokens.codes)


def test_tokens_and_wav_prompts_are_continued_alike(run):
    music = load_music(run / "model", LevelCodec())
    from_wav = music.continue_(prompt(rows=2), 0.2, seed=1)
    from_tokens = music.continue_(LevelCodec().encode(prompt(rows=2)), 0.2, seed=1)
    assert torch.equal(from_wav.tokens.codes, from_tokens.tokens.codes) and len(from_wav.tokens) == 2
    assert not torch.equal(from_wav.tokens.codes[0], from_wav.tokens.codes[1])  # rows have draws of their own


def test_a_last_frame_that_is_not_full_is_left_out(run):
    music = load_music(run, LevelCodec())
    for given in (prompt(6500), LevelCodec().encode(prompt(6500))):
        result = music.continue_(given, 0.2, seed=1)
        assert result.prompt_frames == 20
        assert torch.equal(result.tokens.codes, music.continue_(prompt(6400), 0.2, seed=1).tokens.codes)
    assert music.continue_(prompt(100), 0.2).prompt_frames == 1  # there is no full one


def test_one_codebook_is_decoded_as_one(tmp_path):
    result = load_music(save_model(tmp_path / "first", n_q=1), LevelCodec()).continue_(prompt(), 0.2)
    assert result.tokens.spec.n_q == 1 and result.tokens.codes.shape == (1, 1, 30)


def test_several_samples_of_one_prompt_differ(run):
    made = load_music(run, LevelCodec()).continue_(prompt(rows=2), 0.3, seed=4, samples=3)
    codes = made.tokens.codes
    assert codes.shape == (6, 2, 35) and len({tuple(row.flatten().tolist()) for row in codes}) == 6
    assert torch.equal(codes[0, :, :20], codes[2, :, :20]) and torch.equal(codes[:3, :, :20], codes[3:, :, :20])
    with pytest.raises(UsageError, match="at least 1"):
        load_music(run, LevelCodec()).continue_(prompt(), 0.3, samples=0)


def test_streamed_audio_is_that_of_the_whole(run):
    music = load_music(run, LevelCodec())
    pieces = list(music.stream(prompt(), 0.3, seed=5))
    assert len(pieces) > 10  # as it is made
    torch.testing.assert_close(torch.cat(pieces), music.continue_(prompt(), 0.3, seed=5).wav[0, 0])
    with pytest.raises(UsageError, match="one prompt"):
        next(music.stream(prompt(rows=2), 0.3))


def test_greedy_and_filters_reach_the_sampler(run):
    music = load_music(run, LevelCodec())
    greedy = music.continue_(prompt(), 0.2, seed=1, sampling=Sampling(0)).tokens.codes
    for sampling in (Sampling(0), Sampling(top_k=1), Sampling(top_p=1e-6), Sampling(min_p=1)):
        assert torch.equal(music.continue_(prompt(), 0.2, seed=2, sampling=sampling).tokens.codes, greedy)


def test_refuses_another_codec_and_prompts_that_do_not_fit(run):
    with pytest.raises(TokenError, match="another codec"):
        load_music(run, LevelCodec(replace(SPEC, fingerprint="e" * 64)))
    music = load_music(run, LevelCodec())
    strange = LevelCodec(replace(SPEC, fingerprint="e" * 64)).encode(prompt())
    with pytest.raises(TokenError, match="the prompt was made by another codec"):
        music.continue_(strange, 1)
    with pytest.raises(TokenError, match="1 codebooks"):
        music.continue_(LevelCodec().encode(prompt()).take(1), 1)
    uneven = stack_codes([torch.zeros(3, 4).long(), torch.zeros(3, 5).long()], SPEC)
    with pytest.raises(TokenError, match="equally long"):
        music.continue_(uneven, 1)
    with pytest.raises(AudioError, match="44100 Hz"):
        music.continue_(prompt(), 1, sample_rate=44_100)
    for seconds in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UsageError, match="seconds"):
            music.continue_(prompt(), seconds)


def test_finds_the_codec_that_the_model_names(tmp_path, monkeypatch):
    asked = []

    def load_codec(source, device="cpu"):
        asked.append((str(source), device))
        return LevelCodec()

    monkeypatch.setattr("xcodec_lm.codec.load_codec", load_codec, raising=False)
    (tmp_path / "codec").mkdir()
    load_music(save_model(tmp_path / "a", path="../codec"))
    load_music(save_model(tmp_path / "b", path="someone/a-codec"))
    load_music(tmp_path / "a", codec=tmp_path / "elsewhere")
    assert [source for source, _ in asked] == [str(tmp_path / "codec"), "someone/a-codec", str(tmp_path / "elsewhere")]
    with pytest.raises(XcodecLMError, match="does not say where the codec is"):
        load_music(save_model(tmp_path / "c"))
    with pytest.raises(XcodecLMError, match="is not at"):
        load_music(save_model(tmp_path / "d", path="../gone"))


def test_says_what_is_wrong_with_a_run_folder(tmp_path):
    with pytest.raises(XcodecLMError, match="holds no language model"):
        load_music(tmp_path / "nothing", LevelCodec())
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(XcodecLMError, match="has not finished"):
        load_music(tmp_path, LevelCodec())
    save_model(tmp_path / "x")
    text = (tmp_path / "x/model/config.json").read_text().replace('"codec"', '"codek"')
    (tmp_path / "x/model/config.json").write_text(text)
    with pytest.raises(XcodecLMError, match="names no codec"):
        load_music(tmp_path / "x", LevelCodec())
    (tmp_path / "x/model/config.json").write_text(text.replace('"codek"', '"codec"').replace("32,", "90,"))
    with pytest.raises(XcodecLMError, match="128 ids, but"):
        load_music(tmp_path / "x", LevelCodec())


def test_continues_a_file(tmp_path, run, capsys):
    stereo = torch.stack([prompt(22_050)[0, 0], prompt(22_050)[0, 0] * 0.5], dim=1)
    sf.write(tmp_path / "prompt.wav", stereo.numpy(), 22_050)
    music = load_music(run, LevelCodec())
    audio = read_prompt(music, tmp_path / "prompt.wav")
    result = continue_file(music, audio, 0.5, tmp_path / "out.wav", seed=3)
    written, rate = sf.read(tmp_path / "out.wav")
    assert rate == 8_000 and len(written) == 8_000 * 1.5 and result.prompt_frames == 50
    said = capsys.readouterr().err
    assert "mixed 2 channels to mono" in said and "resampled 22050 to 16000 Hz" in said
    short = read_prompt(music, tmp_path / "prompt.wav", prompt_s=0.4)
    assert continue_file(music, short, 0.5, tmp_path / "short.wav").prompt_frames == 20
    made = continue_file(music, audio, 2.0, tmp_path / "many.wav", samples=2)
    assert sf.info(tmp_path / "many-2.wav").frames == made.wav.shape[2] and not (tmp_path / "many.wav").exists()
    assert "their last half is kept" in capsys.readouterr().err


def test_streams_pcm(tmp_path, run):
    save_audio(tmp_path / "prompt.wav", prompt()[0], 16_000)
    music, chunks = load_music(run, LevelCodec()), []
    audio = read_prompt(music, tmp_path / "prompt.wav")
    written, rate = stream_pcm(music, audio, 0.3, chunks.append, seed=5)
    whole = continue_file(music, audio, 0.3, tmp_path / "out.wav", seed=5).wav[0, 0]
    pcm = np.frombuffer(b"".join(chunks), "<i2")
    assert (written, rate) == (len(pcm), 8_000) and len(chunks) > 10
    np.testing.assert_allclose(pcm / 32767, whole.numpy(), atol=1e-4)


def test_refuses_files_before_it_writes(tmp_path, run):
    save_audio(tmp_path / "prompt.wav", prompt()[0], 16_000)
    music = load_music(run, LevelCodec())
    with pytest.raises(AudioError, match="file not found"):
        read_prompt(music, tmp_path / "none.wav")
    audio = read_prompt(music, tmp_path / "prompt.wav")
    with pytest.raises(UsageError, match="seconds"):
        continue_file(music, audio, 0, tmp_path / "out.wav")
    with pytest.raises(XcodecLMError, match="is no folder"):
        continue_file(music, audio, 1, tmp_path / "no" / "out.wav")
    assert not (tmp_path / "out.wav").exists()
