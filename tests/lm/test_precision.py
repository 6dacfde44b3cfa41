"""Lower precision: about the same logits, a small and measurable price in bits."""

import pytest
import torch

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import UsageError
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig
from xcodec_lm.lm.engine import GREEDY, continue_codes
from xcodec_lm.lm.examples import recording_bits
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import layout_from
from xcodec_lm.lm.precision import Int8Linear, in_precision

CONFIG = LayoutConfig("flatten", 2)


def make():
    torch.manual_seed(0)
    layout = layout_from(CONFIG, TokenSpec("toy", 16_000, 16_000, 320, (64, 64)))
    model = GPT(GPTConfig(layers=2, heads=2, dim=64, block=80, layout=CONFIG), layout.vocabulary.size).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model, layout


def codes_of(frames):
    return torch.randint(0, 64, (2, frames), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("precision", "off", "price"), [("bf16", 0.1, 0.02), ("int8", 0.15, 0.05)])
def test_logits_are_near_and_bits_cost_little(precision, off, price):
    model, layout = make()
    ids = layout.pack(codes_of(30))[None, :, 0]
    with torch.no_grad():
        exact = model(ids)
        lower = in_precision(model, precision)(ids).float()
    error = float((lower - exact).abs().max() / exact.abs().max())
    assert 1e-6 < error < off
    bits = [recording_bits(one, layout, codes_of(60)).mean() for one in (model, in_precision(model, precision))]
    assert abs(bits[1] - bits[0]) < price
    made = continue_codes(in_precision(model, precision), layout, codes_of(5)[None], 20, GREEDY)
    assert made.shape == (1, 2, 20) and (made >= 0).all() and (made < 64).all()


@pytest.mark.parametrize("bias", [True, False])
def test_an_int8_layer_is_the_product_of_rounded_numbers(bias):
    torch.manual_seed(0)
    linear, x = torch.nn.Linear(48, 20, bias=bias), torch.randn(3, 5, 48)
    linear.weight.data *= torch.logspace(-3, 3, 20)[:, None]  # each output has a scale of its own
    linear.weight.data[4] = 0
    scales = linear.weight.abs().amax(1, keepdim=True).clamp(min=1e-30) / 127
    weight = (linear.weight / scales).round() * scales
    low, high = x.min(), x.max()
    step = (high - low) / 127
    zero = (-low / step).round()
    rounded = (((x / step).round() + zero).clamp(0, 127) - zero) * step
    with torch.no_grad():
        made, wanted = Int8Linear(linear)(x), torch.nn.functional.linear(rounded, weight, linear.bias)
        spread = wanted.flatten(0, 1).std(0) + 1e-6
        assert made.shape == (3, 5, 20) and float(((made - wanted).abs() / spread).max()) < 0.05


def test_the_model_itself_stays_as_it_is():
    model, _ = make()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for precision in ("bf16", "int8"):
        in_precision(model, precision)
    assert in_precision(model, "fp32") is model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_refuses_what_there_is_not():
    model, _ = make()
    with pytest.raises(UsageError, match="fp32, bf16 or int8"):
        in_precision(model, "fp8")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="CPU alone"):
        in_precision(model.to("meta"), "int8")
