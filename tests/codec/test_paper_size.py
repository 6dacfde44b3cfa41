"""Exactness at the size of the published codec, from one sample to a minute. Minutes of CPU time, hence `slow`."""

import pytest
import torch
from transformers import XcodecConfig, XcodecModel

from xcodec_lm.codec import load_codec, xcodec

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def codec(tmp_path_factory):
    folder = tmp_path_factory.mktemp("paper")
    torch.manual_seed(0)
    model = XcodecModel(XcodecConfig()).eval()
    for layer in model.quantizer.quantizers:
        layer.codebook.embed.normal_()
    model.save_pretrained(folder)
    return load_codec(folder)


@pytest.mark.parametrize("samples", [(1, 960_000), (321, 40_000, 112_001)])
def test_rows_from_one_sample_to_a_minute_share_a_batch_and_keep_their_codes(codec, monkeypatch, samples):
    monkeypatch.setattr(xcodec, "buckets", lambda frames, limit, device: iter([list(range(len(frames)))]))
    rng = torch.Generator().manual_seed(1)
    rows = [0.1 * torch.randn(1, 1, count, generator=rng) for count in samples]
    batch = torch.cat([torch.nn.functional.pad(row, (0, max(samples) - row.shape[2])) for row in rows])
    tokens = codec.encode(batch, torch.tensor(samples))
    wav, lengths = codec.decode(tokens)
    assert lengths.tolist() == list(samples)
    for index, row in enumerate(rows):
        alone = codec.encode(row)
        assert torch.equal(tokens.row(index).codes, alone.codes)
        single, _ = codec.decode(alone)
        torch.testing.assert_close(wav[index : index + 1, :, : row.shape[2]], single, rtol=0, atol=1e-5)
