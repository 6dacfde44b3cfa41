"""Small models in the layouts that others publish, with random weights, and what they compute, written from papers.

Nothing here uses the code under test: weights are a dict of tensors under the published names, and every computation
is a function over that dict.
"""

import math

import numpy as np
import torch
import torch.nn.functional as F

STRIDES = (5, 2, 2, 2, 2, 2, 2)
KERNELS = (10, 3, 3, 3, 3, 2, 2)


def random_state(shapes, seed=0):
    """Tensors of given shapes, of a scale that keeps activations near 1."""
    rng = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(7)
        elif name.endswith(("running_var", "weight_g", "grep_a")) or ("bn" in name and name.endswith("weight")):
            state[name] = 0.5 + torch.rand(shape, generator=rng)
        else:
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 10
            state[name] = torch.randn(shape, generator=rng) / math.sqrt(max(1, fan_in))
    return state


def norm_shapes(name, size):
    kinds = {"weight": (size,), "bias": (size,), "running_mean": (size,), "running_var": (size,)}
    return {f"{name}.{kind}": shape for kind, shape in kinds.items()} | {f"{name}.num_batches_tracked": ()}


def batch_norm(w, name, x):
    return F.batch_norm(x, *(w[f"{name}.{kind}"] for kind in ("running_mean", "running_var", "weight", "bias")))


def linear(w, name, x):
    return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])


def layer_norm(w, name, x):
    return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"])


# ------------------------------------------------------------------ wav2vec 2.0 and WavLM by fairseq's names


def ssl_shapes(prefix="", dim=128, conv=8, hidden=32, layers=2, kernel=16, groups=4, wavlm_heads=0, buckets=32):
    """Base (post-norm) without `wavlm_heads`; with them a WavLM whose convolutions and layers are those of Large."""
    shapes = {"mask_emb": (dim,), "layer_norm.weight": (conv,), "layer_norm.bias": (conv,),
              "post_extract_proj.weight": (dim, conv), "post_extract_proj.bias": (dim,),
              "encoder.pos_conv.0.bias": (dim,), "encoder.pos_conv.0.weight_g": (1, 1, kernel),
              "encoder.pos_conv.0.weight_v": (dim, dim // groups, kernel),
              "encoder.layer_norm.weight": (dim,), "encoder.layer_norm.bias": (dim,)}  # fmt: skip
    for index, size in enumerate(KERNELS):
        place = f"feature_extractor.conv_layers.{index}"
        shapes[f"{place}.0.weight"] = (conv, 1 if index == 0 else conv, size)
        if wavlm_heads or index == 0:
            norm = f"{place}.2.1" if wavlm_heads else f"{place}.2"
            shapes |= {f"{norm}.weight": (conv,), f"{norm}.bias": (conv,)}
    for index in range(layers):
        place = f"encoder.layers.{index}"
        for name in ("self_attn.k_proj", "self_attn.v_proj", "self_attn.q_proj", "self_attn.out_proj"):
            shapes |= {f"{place}.{name}.weight": (dim, dim), f"{place}.{name}.bias": (dim,)}
        for name in ("self_attn_layer_norm", "final_layer_norm"):
            shapes |= {f"{place}.{name}.weight": (dim,), f"{place}.{name}.bias": (dim,)}
        shapes |= {f"{place}.fc1.weight": (hidden, dim), f"{place}.fc1.bias": (hidden,)}
        shapes |= {f"{place}.fc2.weight": (dim, hidden), f"{place}.fc2.bias": (dim,)}
        if wavlm_heads:
            shapes |= {f"{place}.self_attn.grep_linear.weight": (8, dim // wavlm_heads)}
            shapes |= {f"{place}.self_attn.grep_linear.bias": (8,), f"{place}.self_attn.grep_a": (1, wavlm_heads, 1, 1)}
    if wavlm_heads:
        shapes["encoder.layers.0.self_attn.relative_attention_bias.weight"] = (buckets, wavlm_heads)
    return {prefix + name: shape for name, shape in shapes.items()}


def bucket(offset, buckets, furthest=800):
    """T5's buckets of key minus query, in both directions."""
    half, far = buckets // 2, abs(offset)
    exact = half // 2
    if far >= exact:
        scaled = exact + math.log(far / exact) / math.log(furthest / exact) * (half - exact)
        far = min(int(scaled), half - 1)
    return far + (half if offset > 0 else 0)


def ssl_states(w, wav):
    """wav (N,) -> the states of all layers, each (T, D); those of a pre-norm model end with a layer norm."""
    large = "feature_extractor.conv_layers.0.2.1.weight" in w
    x = wav[None, None]
    for index, stride in enumerate(STRIDES):
        place = f"feature_extractor.conv_layers.{index}"
        x = F.conv1d(x, w[f"{place}.0.weight"], stride=stride)
        if large:
            x = layer_norm(w, f"{place}.2.1", x.transpose(1, 2)).transpose(1, 2)
        elif index == 0:
            x = F.group_norm(x, x.shape[1], w[f"{place}.2.weight"], w[f"{place}.2.bias"])
        x = F.gelu(x)
    x = linear(w, "post_extract_proj", layer_norm(w, "layer_norm", x[0].T))
    direction, length = w["encoder.pos_conv.0.weight_v"], w["encoder.pos_conv.0.weight_g"]
    kernel = length * direction / direction.square().sum(dim=(0, 1), keepdim=True).sqrt()
    groups = x.shape[1] // direction.shape[1]
    positions = F.conv1d(x.T[None], kernel, w["encoder.pos_conv.0.bias"], padding=kernel.shape[2] // 2, groups=groups)
    x = x + F.gelu(positions[0, :, : len(x)].T)
    if not large:
        x = layer_norm(w, "encoder.layer_norm", x)
    found = [x]
    for index in range(1 + max(int(name.split(".")[2]) for name in w if name.startswith("encoder.layers."))):
        place = f"encoder.layers.{index}"

        def wide(y, place=place):
            return linear(w, f"{place}.fc2", F.gelu(linear(w, f"{place}.fc1", y)))

        if large:
            x = x + attention(w, place, layer_norm(w, f"{place}.self_attn_layer_norm", x))
            x = x + wide(layer_norm(w, f"{place}.final_layer_norm", x))
        else:
            x = layer_norm(w, f"{place}.self_attn_layer_norm", x + attention(w, place, x))
            x = layer_norm(w, f"{place}.final_layer_norm", x + wide(x))
        found.append(x)
    if large:
        found[-1] = layer_norm(w, "encoder.layer_norm", x)
    return found


def attention(w, place, x):
    gates = w.get(f"{place}.self_attn.grep_a")
    heads = gates.shape[1] if gates is not None else x.shape[1] // 64
    q, k, v = (linear(w, f"{place}.self_attn.{name}_proj", x).view(len(x), heads, -1).transpose(0, 1) for name in "qkv")
    scores = q @ k.transpose(1, 2) / math.sqrt(q.shape[2])
    if gates is not None:
        table = w["encoder.layers.0.self_attn.relative_attention_bias.weight"]
        offsets = torch.tensor([[bucket(b - a, len(table)) for b in range(len(x))] for a in range(len(x))])
        bias = table[offsets].permute(2, 0, 1)  # (heads, T, T)
        own = x.view(len(x), heads, -1).transpose(0, 1)
        raw = linear(w, f"{place}.self_attn.grep_linear", own).view(heads, len(x), 2, 4).sum(dim=3).sigmoid()
        gate = raw[..., :1] * (raw[..., 1:] * gates[0] - 1) + 2
        scores = scores + gate * bias
    mixed = (scores.softmax(dim=2) @ v).transpose(0, 1).reshape(len(x), -1)
    return linear(w, f"{place}.self_attn.out_proj", mixed)


def part(w, prefix):
    return {name.removeprefix(prefix): value for name, value in w.items() if name.startswith(prefix)}


# ------------------------------------------------------------------ UTMOS


def utmos_shapes(dim=128, given=4, rnn=6, hidden=10):
    shapes = ssl_shapes("wav2vec2.", dim)
    shapes |= {"domain_emb": (1, given), "judge_emb": (1, given)}
    for end in ("", "_reverse"):
        shapes |= {f"blstm.weight_ih_l0{end}": (4 * rnn, dim + 2 * given), f"blstm.weight_hh_l0{end}": (4 * rnn, rnn)}
        shapes |= {f"blstm.bias_ih_l0{end}": (4 * rnn,), f"blstm.bias_hh_l0{end}": (4 * rnn,)}
    shapes |= {"projection.0.weight": (hidden, 2 * rnn), "projection.0.bias": (hidden,)}
    return shapes | {"projection.2.weight": (1, hidden), "projection.2.bias": (1,)}


def lstm(w, end, x):
    """One direction, step by step."""
    names = (f"blstm.weight_ih_l0{end}", f"blstm.weight_hh_l0{end}", f"blstm.bias_ih_l0{end}", f"blstm.bias_hh_l0{end}")
    into, back, bias_in, bias_back = (w[name] for name in names)
    h = c = x.new_zeros(back.shape[1])
    out = []
    for row in x:
        i, f, g, o = (into @ row + bias_in + back @ h + bias_back).chunk(4)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        h = o.sigmoid() * c.tanh()
        out.append(h)
    return torch.stack(out)


def utmos_score(w, wav):
    frames = ssl_states(part(w, "wav2vec2."), wav)[-1]
    given = torch.cat([w["domain_emb"], w["judge_emb"]], dim=1).repeat(len(frames), 1)
    x = torch.cat([frames, given], dim=1)
    x = torch.cat([lstm(w, "", x), lstm(w, "_reverse", x.flip(0)).flip(0)], dim=1)
    return float(linear(w, "projection.2", F.relu(linear(w, "projection.0", x))).mean()) * 2 + 3


# ------------------------------------------------------------------ WavLM with an ECAPA-TDNN


def ecapa_shapes(dim=128, heads=4, channels=16, pooled=24, squeeze=5, focus=7, out=12):
    shapes = ssl_shapes("feature_extract.model.", dim, wavlm_heads=heads)
    shapes["feature_weight"] = (3,)
    shapes["loss_calculator.projection.weight"] = (9, out)

    def conv(name, before, after, kernel):
        return {f"{name}.weight": (after, before, kernel), f"{name}.bias": (after,)}

    shapes |= conv("layer1.conv", dim, channels, 5) | norm_shapes("layer1.bn", channels)
    width = channels // 8
    for layer in ("layer2", "layer3", "layer4"):
        for name in ("Conv1dReluBn1", "Conv1dReluBn2"):
            shapes |= conv(f"{layer}.{name}.conv", channels, channels, 1) | norm_shapes(f"{layer}.{name}.bn", channels)
        for index in range(7):
            shapes |= conv(f"{layer}.Res2Conv1dReluBn.convs.{index}", width, width, 3)
            shapes |= norm_shapes(f"{layer}.Res2Conv1dReluBn.bns.{index}", width)
        for name, before, after in (("linear1", channels, squeeze), ("linear2", squeeze, channels)):
            place = f"{layer}.SE_Connect.{name}"
            shapes |= {f"{place}.weight": (after, before), f"{place}.bias": (after,)}
    shapes |= conv("conv", 3 * channels, pooled, 1)
    shapes |= conv("pooling.linear1", pooled, focus, 1) | conv("pooling.linear2", focus, pooled, 1)
    return shapes | norm_shapes("bn", 2 * pooled) | {"linear.weight": (out, 2 * pooled), "linear.bias": (out,)}


def ecapa_vector(w, features):
    """(T, D) weighted features -> the embedding before it gets unit length."""

    def conv(name, x, dilation=1):
        kernel = w[f"{name}.weight"]
        padding = dilation * (kernel.shape[2] - 1) // 2
        return F.conv1d(x, kernel, w[f"{name}.bias"], padding=padding, dilation=dilation)

    def unit(name, x):
        return batch_norm(w, f"{name}.bn", F.relu(conv(f"{name}.conv", x)))

    x = features.T[None]
    x = (x - x.mean(dim=2, keepdim=True)) / (x.var(dim=2, keepdim=True, correction=0) + 1e-5).sqrt()
    x = unit("layer1", x)
    outputs = []
    for dilation, layer in ((2, "layer2"), (3, "layer3"), (4, "layer4")):
        y = unit(f"{layer}.Conv1dReluBn1", x)
        width = y.shape[1] // 8
        done, last = [], 0
        for index in range(7):
            name = f"{layer}.Res2Conv1dReluBn"
            last = conv(f"{name}.convs.{index}", y[:, index * width : (index + 1) * width] + last, dilation)
            last = batch_norm(w, f"{name}.bns.{index}", F.relu(last))
            done.append(last)
        y = unit(f"{layer}.Conv1dReluBn2", torch.cat([*done, y[:, 7 * width :]], dim=1))
        gate = linear(w, f"{layer}.SE_Connect.linear2", F.relu(linear(w, f"{layer}.SE_Connect.linear1", y.mean(dim=2))))
        x = x + y * gate.sigmoid()[:, :, None]
        outputs.append(x)
    x = F.relu(conv("conv", torch.cat(outputs, dim=1)))
    shares = conv("pooling.linear2", torch.tanh(conv("pooling.linear1", x))).softmax(dim=2)
    mean = (shares * x).sum(dim=2)
    spread = (shares * (x - mean[:, :, None]).square()).sum(dim=2).clamp_min(1e-9).sqrt()
    return linear(w, "linear", batch_norm(w, "bn", torch.cat([mean, spread], dim=1)))[0]


def ecapa_embedding(w, wav):
    wav = (wav - wav.mean()) / (wav.var(correction=0) + 1e-5).sqrt()
    shares = w["feature_weight"].softmax(dim=0)
    states = ssl_states(part(w, "feature_extract.model."), wav)
    vector = ecapa_vector(w, sum(share * state for share, state in zip(shares, states, strict=True)))
    return (vector / vector.norm()).numpy()


# ------------------------------------------------------------------ spectra, by their definitions


def slaney(hz):
    """Slaney's mel scale: straight below 1 kHz, logarithmic above."""
    return hz / (200 / 3) if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)


def slaney_back(mel):
    return mel * 200 / 3 if mel < 15 else 1000 * math.exp((mel - 15) * math.log(6.4) / 27)


def slaney_bank(rate, size, bands, low, high):
    """(bins, bands), one triangle after the other."""
    step = (slaney(high) - slaney(low)) / (bands + 1)
    edges = [slaney_back(slaney(low) + step * index) for index in range(bands + 2)]
    bank = np.zeros((size // 2 + 1, bands))
    for b in range(bands):
        left, peak, right = edges[b : b + 3]
        for k in range(size // 2 + 1):
            hz = k * rate / size
            height = (hz - left) / (peak - left) if hz <= peak else (right - hz) / (right - peak)
            bank[k, b] = max(0.0, height) * 2 / (right - left)
    return bank


def hann(size):
    return 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)


# ------------------------------------------------------------------ Cnn14


def cnn14_state(rate=16_000, bands=64, channels=(2, 3, 4, 4, 5, 6), dim=8, classes=5, seed=0):
    size, low, high = {16_000: (512, 50, 8000), 32_000: (1024, 50, 14_000)}[rate]
    shapes = norm_shapes("bn0", bands)
    for index, (before, after) in enumerate(zip((1, *channels), channels, strict=False), start=1):
        block = f"conv_block{index}"
        shapes |= {f"{block}.conv1.weight": (after, before, 3, 3), f"{block}.conv2.weight": (after, after, 3, 3)}
        shapes |= norm_shapes(f"{block}.bn1", after) | norm_shapes(f"{block}.bn2", after)
    shapes |= {"fc1.weight": (dim, channels[-1]), "fc1.bias": (dim,)}
    shapes |= {"fc_audioset.weight": (classes, dim), "fc_audioset.bias": (classes,)}
    state = random_state(shapes, seed)
    phase = 2 * np.pi / size * np.outer(np.arange(size // 2 + 1), np.arange(size))
    for name, waves in (("conv_real", np.cos(phase)), ("conv_imag", -np.sin(phase))):
        kernel = torch.tensor(waves * hann(size), dtype=torch.float32)
        state[f"spectrogram_extractor.stft.{name}.weight"] = kernel[:, None]
    state["logmel_extractor.melW"] = torch.tensor(slaney_bank(rate, size, bands, low, high), dtype=torch.float32)
    return state


def cnn14_outputs(w, wav, rate=16_000):
    """wav (N,) numpy -> vector and logits; the spectrum by the file's own convolutions."""
    size, hop = {16_000: (512, 160), 32_000: (1024, 320)}[rate]
    wav = wav - wav.mean()
    wav = np.pad(wav, (0, max(0, 2 * rate - len(wav))))
    x = torch.tensor(np.pad(wav, size // 2, mode="reflect"), dtype=torch.float32)[None, None]
    kernels = (w[f"spectrogram_extractor.stft.conv_{name}.weight"] for name in ("real", "imag"))
    real, imag = (F.conv1d(x, kernel, stride=hop) for kernel in kernels)
    mel = (real**2 + imag**2)[0].T @ w["logmel_extractor.melW"]
    mel = 10 * torch.log10(mel.clamp_min(1e-10))
    x = batch_norm(w, "bn0", mel)[None, None]  # (1, 1, T, bands)
    for index in range(1, 7):
        for number in (1, 2):
            block = f"conv_block{index}"
            x = F.conv2d(x, w[f"{block}.conv{number}.weight"], padding=1)
            x = F.relu(batch_norm(w, f"{block}.bn{number}", x))
        x = F.avg_pool2d(x, 2 if index < 6 else 1)
    x = x.mean(dim=3)[0]
    vector = F.relu(linear(w, "fc1", x.max(dim=1)[0] + x.mean(dim=1)))
    return vector.numpy(), linear(w, "fc_audioset", vector).numpy()


# ------------------------------------------------------------------ VGGish


def vggish_state(channels=(2, 3, 4, 4, 5, 5), hidden=16, dim=8, seed=0):
    shapes = {}
    for place, before, after in zip((0, 3, 6, 8, 11, 13), (1, *channels), channels, strict=False):
        shapes |= {f"features.{place}.weight": (after, before, 3, 3), f"features.{place}.bias": (after,)}
    for place, before, after in ((0, channels[-1] * 24, hidden), (2, hidden, hidden), (4, hidden, dim)):
        shapes |= {f"embeddings.{place}.weight": (after, before), f"embeddings.{place}.bias": (after,)}
    return random_state(shapes, seed)


def vggish_patches(wav):
    """Log-mel patches of a clip (N,), frame by frame in double precision."""

    def mel(hz):
        return 1127 * np.log(1 + hz / 700)

    edges = np.linspace(mel(125), mel(7500), 66)
    position = mel(np.arange(257) * 16_000 / 512)
    bank = np.stack([
        np.maximum(0, np.minimum((position - a) / (b - a), (c - position) / (c - b)))
        for a, b, c in zip(edges, edges[1:], edges[2:], strict=False)
    ])  # fmt: skip
    rows = []
    for start in range(0, len(wav) - 400 + 1, 160):
        spectrum = np.abs(np.fft.rfft(wav[start : start + 400].astype(np.float64) * hann(400), 512))
        rows.append(np.log(bank @ spectrum + 0.01))
    return [np.array(rows[start : start + 96]) for start in range(0, len(rows) - 95, 96)]


def vggish_vectors(w, wav):
    out = []
    for patch in vggish_patches(wav):
        x = torch.tensor(patch, dtype=torch.float32)[None, None]
        for place in (0, 3, 6, 8, 11, 13):
            x = F.relu(F.conv2d(x, w[f"features.{place}.weight"], w[f"features.{place}.bias"], padding=1))
            if place not in (6, 11):
                x = F.max_pool2d(x, 2)
        x = torch.stack([x[0, :, row, column] for row in range(6) for column in range(4)]).flatten()  # channels last
        x = F.relu(linear(w, "embeddings.2", F.relu(linear(w, "embeddings.0", x))))
        out.append(linear(w, "embeddings.4", x).numpy())
    return np.stack(out)
