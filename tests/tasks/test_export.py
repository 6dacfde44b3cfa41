"""Export to transformers: equal logits, equal greedy decoding, legal ids alone, and refusals that leave nothing."""

import json

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig

from xcodec_lm.codec.tokens import TokenSpec
from xcodec_lm.configs.errors import TokenError, XcodecLMError
from xcodec_lm.configs.lm import GPTConfig, LayoutConfig
from xcodec_lm.lm.engine import GREEDY, continue_codes
from xcodec_lm.lm.gpt import GPT
from xcodec_lm.lm.layouts import layout_from
from xcodec_lm.lm.sampling import Sampling
from xcodec_lm.lm.serving import SECTION, CodeLogitsProcessor, IdRules
from xcodec_lm.tasks.cli import main
from xcodec_lm.tasks.export import export_transformers

SPEC = TokenSpec("levels", 16_000, 8_000, 320, (32, 24, 32), fingerprint="d" * 64)


def make(run, n_q=2, specials="standard", ids="offset", bias=True, arch="gpt2", name="flatten"):
    config = LayoutConfig("first" if n_q == 1 else name, n_q, ids, specials)
    layout = layout_from(config, SPEC)
    torch.manual_seed(2)
    model = GPT(GPTConfig(arch, layers=2, heads=2, dim=32, block=60, bias=bias, layout=config), layout.vocabulary.size)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)  # large enough that a mistake shows
    facts = {"fingerprint": SPEC.fingerprint, "path": None, "spec": SPEC.to_dict()}
    model.save_pretrained(run / "model", {"codec": facts})
    return model.eval(), layout


@pytest.fixture
def exported(tmp_path):
    model, layout = make(tmp_path / "run")
    export_transformers(tmp_path / "run", tmp_path / "out")
    return model, layout, AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()


def prompts(layout, rows=3, frames=4):
    codes = torch.stack(
        [torch.randint(0, size, (rows, frames), generator=torch.Generator().manual_seed(3)) for size in (32, 24)], 1
    )
    ids = layout.pack(codes)[..., 0]
    return codes, torch.cat([torch.full((rows, 1), layout.vocabulary.bos), ids], 1)


def continued(model, layout, codes, frames):
    """Ids that our engine adds, greedily."""
    return layout.pack(continue_codes(model, layout, codes, frames, GREEDY))[..., 0]


@pytest.mark.parametrize(
    ("n_q", "specials", "ids", "bias", "arch"),
    [
        (1, "none", "offset", True, "gpt2"),
        (2, "standard", "shared", False, "gpt2"),
        (3, "standard", "offset", True, "gpt2"),
        (2, "standard", "offset", True, "llama"),
    ],
)
def test_logits_of_the_folder_equal_ours(tmp_path, n_q, specials, ids, bias, arch):
    model, layout = make(tmp_path / "run", n_q, specials, ids, bias, arch)
    (tmp_path / "out").mkdir()  # an empty folder may be there
    done = export_transformers(tmp_path / "run" / "model", tmp_path / "out")
    assert 0 < done.difference < 1e-4
    assert (done.architecture, done.vocab_size) == (
        {"gpt2": "GPT2LMHeadModel", "llama": "LlamaForCausalLM"}[arch],
        layout.vocabulary.size,
    )
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    read = torch.randint(0, layout.vocabulary.size, (2, 60), generator=torch.Generator().manual_seed(8))
    with torch.no_grad():
        torch.testing.assert_close(theirs(read).logits, model(read), atol=1e-4, rtol=0)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "config.json", "generation_config.json", "model.safetensors",
    ]  # fmt: skip
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]


def test_the_folder_says_what_its_ids_mean(tmp_path, exported):
    _, layout, _ = exported
    config = AutoConfig.from_pretrained(tmp_path / "out")
    section = getattr(config, SECTION)
    assert section == json.loads((tmp_path / "out" / "config.json").read_text())[SECTION]
    assert IdRules.from_dict(section) == IdRules.of(layout)
    assert section["id_ranges"] == [[0, 32], [32, 56]] and section["layout"] == "flatten"
    assert section["codec"]["fingerprint"] == SPEC.fingerprint and section["frame_rate"] == 50
    assert TokenSpec.from_dict(section["codec"]["spec"]) == SPEC
    settings = GenerationConfig.from_pretrained(tmp_path / "out")
    ids = layout.vocabulary
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (ids.bos, ids.eos, ids.pad)
    assert (config.bos_token_id, config.eos_token_id) == (ids.bos, ids.eos)
    assert (settings.do_sample, settings.top_k, settings.max_length) == (True, 0, 61)


def test_greedy_decoding_equals_our_engine(exported):
    model, layout, theirs = exported
    codes, read = prompts(layout)
    rules = IdRules.of(layout)
    made = theirs.generate(
        read,
        attention_mask=torch.ones_like(read),
        logits_processor=[CodeLogitsProcessor(rules, read.shape[1], min_frames=99)],
        do_sample=False,
        max_length=None,
        max_new_tokens=40,
    )
    ours = continued(model, layout, codes, 20)
    assert torch.equal(made[:, read.shape[1] :], ours)
    assert ours.unique().numel() > 3


def test_rows_padded_on_the_left_are_continued_as_alone(exported):
    model, layout, theirs = exported
    codes, read = prompts(layout)
    short = torch.cat([torch.full((1, 4), layout.vocabulary.pad), read[1:2, :-4]], 1)  # two frames less
    batch = torch.cat([read[:1], short])
    mask = torch.tensor([[1] * batch.shape[1], [0] * 4 + [1] * (batch.shape[1] - 4)])
    processor = CodeLogitsProcessor(IdRules.of(layout), batch.shape[1], min_frames=99)
    made = theirs.generate(
        batch, attention_mask=mask, logits_processor=[processor], do_sample=False, max_length=None, max_new_tokens=20
    )[:, batch.shape[1] :]
    assert torch.equal(made[:1], continued(model, layout, codes[:1], 10))
    assert torch.equal(made[1:], continued(model, layout, codes[1:2, :, :-2], 10))


@pytest.mark.parametrize("sampling", [None, Sampling(top_p=0.98, ras_window=6, ras_threshold=0.2)])
def test_generate_yields_only_legal_ids_and_ends_at_frame_borders(exported, sampling):
    _, layout, theirs = exported
    _, read = prompts(layout, rows=12)
    ids, rules = layout.vocabulary, IdRules.of(layout)
    torch.manual_seed(1)
    processor = CodeLogitsProcessor(rules, read.shape[1], min_frames=2, sampling=sampling)
    made = theirs.generate(read, attention_mask=torch.ones_like(read), logits_processor=[processor])
    ended = 0
    for row in made[:, read.shape[1] :].tolist():
        length = row.index(ids.eos) if ids.eos in row else len(row)
        ended += ids.eos in row
        assert length >= 4 and set(row[length + 1 :]) <= {ids.pad}
        layout.unpack(
            torch.tensor(row[:length])[:, None]
        )  # raises where an id is out of place, or a frame is not whole
    assert ended > 0
    free = theirs.generate(read, attention_mask=torch.ones_like(read), max_length=12)[:, read.shape[1] :]
    assert bool((free[:, 0] >= 32).any())  # without the processor, ids of other places come


def test_refuses_a_folder_that_is_not_empty_and_a_source_without_a_model(tmp_path):
    make(tmp_path / "run")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    with pytest.raises(XcodecLMError, match="full exists already"):
        export_transformers(tmp_path / "run", tmp_path / "full")
    with pytest.raises(XcodecLMError, match="holds no"):
        export_transformers(tmp_path / "nothing", tmp_path / "out")
    assert (tmp_path / "full" / "notes.txt").read_text() == "mine" and not (tmp_path / "out").exists()


def test_refuses_models_that_others_cannot_serve(tmp_path):
    model, _ = make(tmp_path / "run", name="delay")
    with pytest.raises(TokenError, match="layout delay is not one sequence with one id a step"):
        export_transformers(tmp_path / "run", tmp_path / "out")
    model.save_pretrained(tmp_path / "bare")
    with pytest.raises(XcodecLMError, match="names no codec"):
        export_transformers(tmp_path / "bare", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_nothing_is_left_where_logits_differ(tmp_path, monkeypatch):
    make(tmp_path / "run")
    converted = GPT.to_transformers

    def wrong(self):
        model = converted(self)
        model.transformer.h[1].mlp.c_fc.weight.data[0, 0] += 1
        return model

    monkeypatch.setattr(GPT, "to_transformers", wrong)
    with pytest.raises(XcodecLMError, match="logits differ"):
        export_transformers(tmp_path / "run", tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]


def test_the_command_reports_the_difference(tmp_path, capsys):
    make(tmp_path / "run")
    assert main(["export", str(tmp_path / "run"), "--to", "transformers", "-o", str(tmp_path / "out"), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["folder"] == str(tmp_path / "out") and 0 < data["difference"] < 1e-4
    assert main(["export", str(tmp_path / "run"), "-o", str(tmp_path / "out")]) == 1
    assert "exists already" in capsys.readouterr().err
