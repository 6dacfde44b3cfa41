"""A frozen teacher's features: those of transformers, the same alone, in a padded batch, in chunks; and in windows."""

import pytest
import torch
from torch.nn import functional as F
from transformers import AutoConfig, AutoModel

from xcodec_lm.codec import load_codec, teacher_forward
from xcodec_lm.codec.nn.semantic import SemanticDecoder, SemanticEncoder
from xcodec_lm.codec.semantic import quiet_transformers
from xcodec_lm.codec.teacher_forward import LocalFeatures, frames_of, teacher_features
from xcodec_lm.configs.codec import SemanticConfig

HOP, RATE = 320, 16_000
LENGTHS = torch.tensor([1, 37, 150, 2, 80]) * HOP
RAW = [
    *[(kind, norm, stable) for kind in ("hubert", "wav2vec2", "wavlm") for norm in ("group", "layer")
      for stable in (False, True)],
    ("wav2vec2-bert", "", False),
]  # fmt: skip


def build(kind, norm="group", stable=False, **options):
    """A teacher with random weights, biases and norms included."""
    options = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48} | options
    if kind != "wav2vec2-bert":
        options |= {
            "conv_dim": (16,) * 7, "num_conv_pos_embeddings": 16, "num_conv_pos_embedding_groups": 4,
            "feat_extract_norm": norm, "do_stable_layer_norm": stable, "conv_bias": norm == "layer",
        }  # fmt: skip
    torch.manual_seed(7)
    with quiet_transformers():
        model = AutoModel.from_config(AutoConfig.for_model(kind, **options)).eval()
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture(scope="module", params=RAW, ids=["-".join(map(str, case)) for case in RAW])
def teacher(request):
    return build(*request.param)


def noise(*shape, seed=0):
    """Unlike rows: loud and soft, so that statistics over the wrong samples show."""
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return rows * torch.logspace(-2, -0.5, shape[0])[:, None, None]


def features(model, wav, lengths=None, window_s=60.0, **options):
    return teacher_features(model, wav, HOP, RATE, window_s, lengths, **options)


def peer_states(model, wav):
    """transformers' own hidden states."""
    padded = F.pad(wav[:, 0], (HOP // 2, HOP // 2))
    if model.config.model_type == "wav2vec2-bert":
        from xcodec_lm.codec.fbank import w2v_bert_features

        padded = w2v_bert_features(padded)
    with torch.no_grad():
        return model(padded, output_hidden_states=True).hidden_states


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


def test_mean_and_single_layers_are_those_of_transformers_bit_for_bit(teacher):
    wav = noise(2, 1, 60 * HOP)
    states = peer_states(teacher, wav)
    assert len(states) == 4
    assert torch.equal(features(teacher, wav), torch.stack(states, dim=1).mean(dim=1))
    for layer, state in enumerate(states):
        assert torch.equal(features(teacher, wav, layers=layer), state)


def test_rows_of_a_padded_batch_are_those_of_each_alone(teacher):
    wav = noise(len(LENGTHS), 1, int(LENGTHS.max()))  # not silent beyond a row's end
    for layers in ("mean", 3):
        batch = features(teacher, wav, LENGTHS, layers=layers)
        for row, length in enumerate(LENGTHS.tolist()):
            alone = features(teacher, wav[row : row + 1, :, :length], layers=layers)[0]
            assert alone.shape[0] == length // HOP
            assert error(batch[row, : len(alone)], alone) < 1e-6
            assert not batch[row, len(alone) :].any()


def test_equal_lengths_below_the_tensors_end_are_cut(teacher):
    wav = noise(2, 1, 20 * HOP)
    lengths = torch.tensor([12, 12]) * HOP
    assert torch.equal(features(teacher, wav, lengths), features(teacher, wav[..., : 12 * HOP]))


@pytest.mark.parametrize("chunk", [3, 64])
def test_convolutions_in_chunks_are_those_of_the_whole(teacher, chunk, monkeypatch):
    wav = F.pad(noise(2, 1, 64 * HOP)[:, 0], (160, 160)) + 0.1
    whole = LocalFeatures(teacher, wav)
    expected = whole(0, whole.total)
    monkeypatch.setattr(teacher_forward, "WHOLE_FRAMES", 8)
    monkeypatch.setattr(teacher_forward, "CHUNK_FRAMES", 2 * chunk)
    monkeypatch.setattr(teacher_forward, "LEAST_CHUNK_FRAMES", 1)
    with torch.no_grad():
        cut = LocalFeatures(teacher, wav)
        assert cut.total == whole.total == 64
        assert error(cut(0, 64), expected) < 1e-6
        assert error(cut(11, 39), expected[:, 11:39]) < 1e-6


def test_a_constant_offset_does_not_spoil_the_statistics(monkeypatch):
    """In single precision the sum of squares would lose the variance behind a large mean."""
    model = build("hubert")
    model.feature_extractor.conv_layers[0].conv.weight.data += 0.3
    wav = 1.0 + 0.1 * noise(1, 1, 64 * HOP)[:, 0]
    monkeypatch.setattr(teacher_forward, "WHOLE_FRAMES", 8)
    scale = LocalFeatures(model.requires_grad_(False), wav).affine[0]
    layer = model.feature_extractor.conv_layers[0]
    exact = layer.conv.double()(wav.double()[:, None]).var(dim=2, unbiased=False)
    expected = layer.layer_norm.weight.double() * (exact + layer.layer_norm.eps).rsqrt()
    assert error(scale[..., 0].double(), expected) < 1e-4


def test_codes_are_the_same_in_batches_and_chunks(teacher_folder, monkeypatch):
    codec = load_codec(teacher_folder)
    lengths = torch.tensor([300, 1, 90, 250, 17]) * HOP
    wav = noise(len(lengths), 1, int(lengths.max()), seed=3)

    def codes(values):
        return [
            codec.quantizer.encode(codec.latents(wav[row : row + 1, :, :length], values(row, length)))
            for row, length in enumerate(lengths.tolist())
        ]

    def alone(row, length):
        return features(codec.semantic_model, wav[row : row + 1, :, :length])

    with torch.inference_mode():
        expected = codes(alone)
        batch = features(codec.semantic_model, wav, lengths)
        assert all(map(torch.equal, codes(lambda row, n: batch[row : row + 1, : n // HOP]), expected))
        monkeypatch.setattr(teacher_forward, "WHOLE_FRAMES", 16)
        monkeypatch.setattr(teacher_forward, "CHUNK_FRAMES", 33)
        assert all(map(torch.equal, codes(alone), expected))


def test_hubert_that_normalises_before_its_positions_is_exact_in_batches():
    model = build("hubert", conv_pos_batch_norm=True)
    norm = model.encoder.pos_conv_embed.batch_norm
    norm.running_mean.uniform_(-1, 1), norm.running_var.uniform_(0.5, 2)
    wav = noise(2, 1, 40 * HOP)
    batch = features(model, wav, torch.tensor([9, 40]) * HOP)
    assert error(batch[0, :9], features(model, wav[:1, :, : 9 * HOP])[0]) < 1e-6


def test_training_mode_never_reaches_the_teacher(teacher, teacher_folder):
    wav = noise(1, 1, 30 * HOP)
    expected = features(teacher, wav)
    teacher.train()
    assert torch.equal(features(teacher, wav), expected) and not teacher.training
    codec = load_codec(teacher_folder).train()
    assert not any(module.training for module in codec.semantic_model.modules())


def test_windows_are_exact_in_the_convolutions_and_told_once(capsys):
    model = build("hubert")
    wav = noise(1, 1, 200 * HOP)
    whole = features(model, wav)
    cut = features(model, wav, window_s=1.5)
    said = capsys.readouterr().err
    assert "sees 1.5 s at a time" in said and "this audio has 4 s" in said and "% of the variance" in said
    assert cut.shape == whole.shape
    assert error(cut, whole) < 0.2
    # The first layer's input, before any attention, is equal: statistics are those of the whole recording.
    inputs = features(model, wav, window_s=1.5, layers=0)
    assert error(inputs, features(model, wav, layers=0)) < 1e-6
    assert capsys.readouterr().err == ""


def test_rows_of_a_batch_in_windows_are_those_of_each_alone():
    model = build("wav2vec2")
    lengths = torch.tensor([200, 30, 76]) * HOP
    wav = noise(3, 1, 200 * HOP)
    batch = features(model, wav, lengths, window_s=1.5)
    for row, length in enumerate(lengths.tolist()):
        assert torch.equal(
            batch[row : row + 1, : length // HOP], features(model, wav[row : row + 1, :, :length], None, 1.5)
        )
        assert not batch[row, length // HOP :].any()


@pytest.mark.parametrize(("kind", "frames"), [("hubert", 1200), ("wavlm", 900), ("wav2vec2-bert", 900)])
def test_windows_are_shorter_where_memory_is_quadratic(kind, frames, monkeypatch):
    model, seen = build(kind, num_hidden_layers=1), []
    monkeypatch.setattr(
        teacher_forward, "pooled_states", lambda _, x, *rest: seen.append(x.shape[1]) or x.new_zeros(*x.shape[:2], 4)
    )
    assert features(model, noise(1, 1, 1200 * HOP)).shape == (1, 1200, 4)
    assert max(seen) == frames  # of 20 s the first window spends 2 s on no left context


@pytest.mark.parametrize(("strides", "ratios"), [((1, 1), (1, 1)), ((2, 1), (1, 2)), ((3, 2), (1, 1))])
def test_semantic_stacks_under_a_mask_give_each_row_its_own(strides, ratios):
    config = SemanticConfig(dim=8, strides=strides, channel_ratios=ratios, block_dilations=(1, 2), unit_kernel_size=5)
    torch.manual_seed(0)
    lengths = [6, 24, 12]
    mask = (torch.arange(24) < torch.tensor(lengths)[:, None])[:, None].float()
    for stack in (SemanticEncoder(config), SemanticDecoder(config)):
        width = 8 if isinstance(stack, SemanticEncoder) else stack.conv1.in_channels
        x = torch.randn(3, width, 24)
        batch = stack(x, mask)
        for row, length in enumerate(lengths):
            alone = stack(x[row : row + 1, :, :length])
            torch.testing.assert_close(batch[row : row + 1, :, : alone.shape[2]], alone, rtol=1e-5, atol=1e-5)
        assert torch.equal(stack(x, torch.ones_like(mask)), stack(x))


def test_frames_are_those_of_the_model(teacher):
    for hops in (1, 2, 7):
        assert (
            frames_of(teacher.config, hops * HOP + HOP) == features(teacher, noise(1, 1, hops * HOP)).shape[1] == hops
        )
