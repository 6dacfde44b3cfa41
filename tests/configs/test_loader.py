"""The loader: what it reads, and that every mistake is named with its place and the nearest right key."""
# pyright: reportOptionalMemberAccess=false, reportArgumentType=false

import subprocess
import sys
from dataclasses import dataclass, field
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from xcodec_lm import configs
from xcodec_lm.configs import CodecTrainConfig, ConfigError, LMTrainConfig
from xcodec_lm.configs.lm import LMRunConfig
from xcodec_lm.configs.run import OptimConfig, RunConfig


def written(tmp_path, text, name="mine.yaml"):
    path = tmp_path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(source, cls=CodecTrainConfig, overrides=None):
    with pytest.raises(ConfigError) as caught:
        configs.load(source, cls, overrides)
    return str(caught.value)


# ------------------------------------------------------------------ what it reads


def test_file_fills_the_dataclass_and_leaves_the_rest_at_its_defaults(tmp_path):
    config = configs.load(written(tmp_path, "optim: {lr: 0.5}\nmodel: {latent_dim: 8}\n"), CodecTrainConfig)
    assert config.optim.lr == 0.5 and config.model.latent_dim == 8
    assert config.model.encoder_strides == CodecTrainConfig().model.encoder_strides
    assert configs.load(written(tmp_path, ""), CodecTrainConfig) == CodecTrainConfig()


def test_a_group_keeps_defaults_of_its_own(tmp_path):
    given_lr = configs.load(written(tmp_path, "optim: {lr: 0.5}\n"), LMTrainConfig).optim
    own = LMTrainConfig().optim
    assert given_lr.lr == 0.5
    assert given_lr.schedule == own.schedule == "cosine" and given_lr.betas == own.betas == (0.9, 0.95)


@pytest.mark.parametrize("text", ["2e-4", "2.0e-4", "0.0002", "'2e-4'", "2E-4"])
def test_every_spelling_of_a_number_is_a_number(tmp_path, text):
    assert configs.load(written(tmp_path, f"optim: {{lr: {text}}}\n"), CodecTrainConfig).optim.lr == 2e-4


def test_whole_numbers_may_be_written_as_powers_of_ten(tmp_path):
    steps = configs.load(written(tmp_path, "optim: {steps: 4e5}\n"), CodecTrainConfig).optim.steps
    assert steps == 400_000 and isinstance(steps, int)
    exact = 2**53 + 1
    config = configs.load(written(tmp_path, f"run: {{seed: {exact}}}\n"), CodecTrainConfig)
    assert config.run.seed == exact


def test_none_is_a_value_only_where_it_is_allowed(tmp_path):
    assert configs.load(written(tmp_path, "model: {init_std: null}\n"), CodecTrainConfig).model.init_std is None
    assert "optim.lr must be a number, got None" in refusal(written(tmp_path, "optim: {lr: null}\n"))
    assert configs.load(written(tmp_path, "semantic: {teacher: none}\n"), CodecTrainConfig).semantic.teacher == "none"


def test_run_folder_is_read_by_its_config(tmp_path):
    written(tmp_path, "optim: {lr: 0.25}\n", "run/config.yaml")
    assert configs.load(tmp_path / "run", CodecTrainConfig).optim.lr == 0.25


# ------------------------------------------------------------------ base


def test_delta_of_a_preset_changes_only_its_own_keys(tmp_path):
    delta = configs.load(written(tmp_path, "base: xcodec/tiny\nloss: {mel_weight: 1}\n"), CodecTrainConfig)
    tiny = configs.load("xcodec/tiny", CodecTrainConfig)
    changed, plain = configs.to_dict(delta), configs.to_dict(tiny)
    assert changed["loss"].pop("mel_weight") == 1 and plain["loss"].pop("mel_weight") != 1
    assert changed == plain


def test_base_path_is_relative_to_the_file_and_chains(tmp_path, monkeypatch):
    written(tmp_path, "optim: {lr: 0.5, steps: 7}\n", "a/ground.yaml")
    written(tmp_path, "base: ../a/ground.yaml\noptim: {steps: 8}\n", "b/middle.yaml")
    top = written(tmp_path, "base: middle.yaml\nrun: {seed: 9}\n", "b/top.yaml")
    monkeypatch.chdir(tmp_path)
    config = configs.load(top, CodecTrainConfig)
    assert (config.optim.lr, config.optim.steps, config.run.seed) == (0.5, 8, 9)


def test_lists_of_a_delta_replace_those_of_the_base(tmp_path):
    path = written(tmp_path, "base: xcodec/tiny\nloss: {disc_hops: [32], disc_channels: [8]}\n")
    assert configs.load(path, CodecTrainConfig).loss.disc_hops == (32,)


def test_mistake_in_the_base_is_named_with_the_base(tmp_path):
    written(tmp_path, "optim:\n  lr: fast\n", "ground.yaml")
    message = refusal(written(tmp_path, "base: ground.yaml\n"))
    assert "ground.yaml line 2" in message and "mine.yaml" not in message


@pytest.mark.parametrize("back", ["mine.yaml", "../{folder}/mine.yaml"])
def test_base_that_leads_back_to_itself_is_refused(tmp_path, back):
    written(tmp_path, f"base: {back.format(folder=tmp_path.name)}\n", "other.yaml")
    assert "leads back to itself" in refusal(written(tmp_path, "base: other.yaml\n"))


@pytest.mark.parametrize("base", ["3", "[xcodec/tiny]"])
def test_base_must_be_a_name(tmp_path, base):
    assert "line 1: `base:` must be a preset name or a path" in refusal(written(tmp_path, f"base: {base}\n"))


def test_unknown_preset_is_named_with_the_nearest():
    message = refusal("xcodec/tinny")
    assert "'xcodec/tinny'" in message and "did you mean 'xcodec/tiny'" in message and "presets ls" in message
    with pytest.raises(ConfigError, match="did you mean 'music/tiny'"):
        configs.preset_text("musik/tiny")


def test_missing_file_is_named(tmp_path):
    assert "nowhere.yaml: file not found" in refusal(tmp_path / "nowhere.yaml")
    assert "config.yaml: file not found" in refusal(tmp_path)


# ------------------------------------------------------------------ overrides


def test_overrides_lie_over_the_file(tmp_path):
    path = written(tmp_path, "optim: {lr: 0.5, steps: 7}\n")
    config = configs.load(path, CodecTrainConfig, {"optim.lr": "1e-3", "model.quantizer.dim": 32, "run.seed": 4})
    assert (config.optim.lr, config.optim.steps) == (1e-3, 7)
    assert config.model.quantizer.dim == 32 and config.run.seed == 4


def test_mistaken_override_is_named():
    message = refusal("xcodec/tiny", overrides={"optim.lrr": 1})
    assert "override optim.lrr" in message and "did you mean 'lr'" in message
    assert "override optim.steps: optim.steps must be a whole number" in refusal(
        "xcodec/tiny", overrides={"optim.steps": 1.5}
    )
    assert "lr is not a group" in refusal("xcodec/tiny", overrides={"optim.lr.peak": 1})


# ------------------------------------------------------------------ mistakes


@pytest.mark.parametrize(
    ("text", "line", "parts"),
    [
        ("optim:\n  lr: 1\n  warmup_step: 3\n", 3, ["unknown key 'optim.warmup_step'", "'warmup_steps'"]),
        ("\noptimm: {lr: 1}\n", 2, ["unknown key 'optimm'", "did you mean 'optim'"]),
        ("model:\n  quantizer:\n    dims: 4\n", 3, ["unknown key 'model.quantizer.dims'", "did you mean 'dim'"]),
        ("optim:\n  lr: fast\n", 2, ["optim.lr must be a number", "'fast'"]),
        ("optim: {lr: true}\n", 1, ["optim.lr must be a number", "True"]),
        ("optim: {lr: [1, 2]}\n", 1, ["optim.lr must be a number", "[1, 2]"]),
        ("optim: {lr: {peak: 1}}\n", 1, ["optim.lr must be a number", "{'peak': 1}"]),
        ("optim: {steps: 1.5}\n", 1, ["optim.steps must be a whole number", "1.5"]),
        ("optim: {steps: true}\n", 1, ["optim.steps must be a whole number", "True"]),
        ("optim: {steps: .inf}\n", 1, ["optim.steps must be a whole number", "inf"]),
        ("optim:\n\n  betas: [0.9]\n", 3, ["optim.betas must have 2 entries, got 1"]),
        ("optim: {betas: 0.9}\n", 1, ["optim.betas must be a list, got 0.9"]),
        ("optim: {betas: [0.9, x]}\n", 1, ["optim.betas[1] must be a number", "'x'"]),
        ("model: {encoder_strides: [8, five]}\n", 1, ["model.encoder_strides[1] must be a whole number"]),
        ("optim: {schedule: cosin}\n", 1, ["optim.schedule must be one of", "cosine", "did you mean 'cosine'"]),
        ("run: {precision: 16}\n", 1, ["run.precision must be one of fp32, bf16; got 16"]),
        ("model: {weight_norm: 'yes'}\n", 1, ["model.weight_norm must be true or false", "'yes'"]),
        ("semantic: {teacher: 3}\n", 1, ["semantic.teacher must be text, got 3"]),
        ("optim: 3\n", 1, ["optim is a group of keys, got 3"]),
        ("optim:\n  lr: 1\n  lr: 2\n", 3, ["'lr' is given twice"]),
        ("run: {}\noptim: {}\nrun: {}\n", 3, ["'run' is given twice"]),
        ("optim:\n\tlr: 1\n", 2, ["not valid YAML"]),
        ("optim: {lr: 1\n", 2, ["not valid YAML"]),
        ("optim:\n  lr: !own 3\n", 2, ["not valid YAML"]),
        ("run:\n  seed: 2024-13-45\n", 2, ["not valid YAML"]),
    ],
)
def test_mistake_is_named_with_file_line_and_the_right_key(tmp_path, text, line, parts):
    message = refusal(written(tmp_path, text))
    assert f"mine.yaml line {line}: " in message
    for part in parts:
        assert part in message
    assert "_Value" not in message


def test_key_of_nothing_like_it_gets_no_suggestion(tmp_path):
    message = refusal(written(tmp_path, "zzz: 1\n"))
    assert "unknown key 'zzz'" in message and "did you mean" not in message


@pytest.mark.parametrize("content", [b"- 1\n- 2\n", b"just text\n"])
def test_file_that_is_no_mapping_is_refused(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert "mine.yaml: expected keys and values" in refusal(path)


@pytest.mark.parametrize("content", [b"\x80\x81\xff\xfe model", b"optim: {lr: \x00}\n"])
def test_file_that_is_no_text_is_refused(tmp_path, content):
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert "mine.yaml" in refusal(path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("optim: {lr: 0}\n", "optim.lr must be positive"),
        ("optim: {steps: 0}\n", "optim.steps must be at least 1"),
        ("optim: {ema_decay: 1}\n", "optim.ema_decay must lie in"),
        ("run: {save_every: 0}\n", "run.save_every must be at least 1"),
        ("model: {decoder_strides: [8, 5]}\n", "have different products"),
        ("model: {quantizer: {n_q: 2}}\n", "n_q_choices holds 3"),
        ("model: {quantizer: {n_q_choices: []}}\n", "n_q_choices is empty"),
        ("loss: {mel_bands: [5]}\n", "mel_windows and loss.mel_bands must have the same length"),
        ("loss: {disc_hops: [5]}\n", "disc_hops and loss.disc_channels must have the same length"),
        ("data: {crop_s: 0.01234}\n", "not a whole number of frames"),
        ("data: {crop_s: 0}\n", "not a whole number of frames"),
        ("data: {batch_s: 1}\n", "shorter than one crop"),
    ],
)
def test_values_that_contradict_each_other_are_refused_with_the_file(tmp_path, text, said):
    message = refusal(written(tmp_path, text))
    assert "mine.yaml" in message and said in message


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: {layout: {name: first, n_q: 4}}\n", "layout.name: first has one codebook"),
        ("model: {layout: {name: flatten, n_q: 0}}\n", "layout.n_q must be at least 1"),
        ("model: {heads: 5}\n", "not divisible by model.heads 5"),
        ("model: {dropout: 1}\n", "model.dropout must lie in"),
        ("model: {block: 0}\n", "model.block must be at least 1"),
        ("data: {batch_codes: 100}\n", "below model.block"),
    ],
)
def test_language_model_settings_are_checked_too(tmp_path, text, said):
    assert said in refusal(written(tmp_path, text), LMTrainConfig)


# ------------------------------------------------------------------ writing


@dataclass(frozen=True)
class Inner:
    name: str = "a"
    ratio: float = 0.5
    mode: Literal["one", "two"] = "one"


@dataclass(frozen=True)
class Outer:
    count: int = 1
    flag: bool = False
    maybe: float | None = None
    pair: tuple[float, int] = (1.0, 2)
    many: tuple[int, ...] = ()
    words: tuple[str, ...] = ()
    inner: Inner = field(default_factory=lambda: Inner(name="b", ratio=0.25))


numbers = st.floats(allow_nan=False)
inners = st.builds(Inner, st.text(st.characters(codec="utf-8")), numbers, st.sampled_from(["one", "two"]))
outers = st.builds(
    Outer, st.integers(), st.booleans(), st.none() | numbers, st.tuples(numbers, st.integers()),
    st.lists(st.integers(), max_size=3).map(tuple), st.lists(st.text(), max_size=3).map(tuple), inners,
)  # fmt: skip


@settings(max_examples=50, deadline=None)
@given(outers)
def test_what_is_saved_is_loaded_again(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    configs.save(config, path)
    assert configs.load(path, Outer) == config
    assert configs.from_dict(configs.to_dict(config), Outer, "here") == config


@settings(max_examples=10, deadline=None)
@given(st.floats(1e-9, 1e3), st.integers(0, 2**62), st.sampled_from(["constant", "cosine"]))
def test_train_configs_are_loaded_again(tmp_path_factory, lr, seed, schedule):
    path = tmp_path_factory.mktemp("config") / "config.yaml"
    for cls, run in ((CodecTrainConfig, RunConfig), (LMTrainConfig, LMRunConfig)):
        config = cls(optim=OptimConfig(lr=lr, schedule=schedule), run=run(seed=seed))
        configs.save(config, path)
        assert configs.load(path, cls) == config


def test_to_dict_is_plain_and_spells_out_every_key():
    data = configs.to_dict(CodecTrainConfig())
    assert set(data) == {"model", "semantic", "data", "optim", "loss", "run"}
    assert data["model"]["encoder_strides"] == [8, 5, 4, 2] and data["model"]["quantizer"]["dim"] == 1024

    def plain(value):
        if isinstance(value, dict):
            return all(isinstance(key, str) and plain(item) for key, item in value.items())
        if isinstance(value, list):
            return all(map(plain, value))
        return value is None or type(value) in (int, float, bool, str)

    assert plain(data)


def test_from_dict_is_checked_like_a_file():
    config = configs.from_dict({"optim": {"lr": "1e-3", "betas": (0.5, 0.6)}}, CodecTrainConfig, "config.json")
    assert config.optim.lr == 1e-3 and config.optim.betas == (0.5, 0.6)
    with pytest.raises(ConfigError, match=r"config\.json: unknown key 'optim\.lrr'; did you mean 'lr'"):
        configs.from_dict({"optim": {"lrr": 1}}, CodecTrainConfig, "config.json")


def test_configurations_are_free_of_torch():
    code = (
        "import sys; from xcodec_lm import configs; configs.load('xcodec/tiny', configs.CodecTrainConfig);"
        "print(sorted({'torch', 'transformers', 'accelerate'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ------------------------------------------------------------------ schedule


def test_learning_rates_follow_their_schedule():
    cosine = OptimConfig(steps=100, lr=1.0, schedule="cosine", warmup_steps=10, min_lr_ratio=0.1)
    assert [cosine.lr_at(step) for step in (0, 4, 9)] == [0.1, 0.5, 1.0]
    assert cosine.lr_at(10) == 1.0 and cosine.lr_at(55) == pytest.approx(0.55)
    assert cosine.lr_at(100) == pytest.approx(0.1) and cosine.lr_at(500) == pytest.approx(0.1)
    decay = OptimConfig(lr=1.0, schedule="exponential", gamma=0.5, warmup_steps=2)
    assert [decay.lr_at(step) for step in range(5)] == [0.5, 1.0, 1.0, 0.5, 0.25]
    assert {OptimConfig(lr=3.0, schedule="constant").lr_at(step) for step in (0, 10, 10**6)} == {3.0}
