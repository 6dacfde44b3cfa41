"""What tests of tasks share: reading a page back, untrained speech models."""

import base64
from html.parser import HTMLParser

import pytest
import torch

from xcodec_lm.codec import load_codec
from xcodec_lm.configs.text import TextConfig
from xcodec_lm.configs.valle import ValleConfig
from xcodec_lm.lm.valle_ar import ValleAR
from xcodec_lm.lm.valle_nar import ValleNAR
from xcodec_lm.tasks.data.synth_text import DIGITS
from xcodec_lm.tasks.report import Report, Section, render_html
from xcodec_lm.tasks.tts.symbols import TextEncoder

VOID = {"meta", "link", "img", "input", "br", "hr"}


class Page(HTMLParser):
    """The elements of a page; checks on the way that every tag is closed in order."""

    def __init__(self, text):
        super().__init__()
        self.open, self.elements, self.texts = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        assert len({name for name, _ in attrs}) == len(attrs), f"<{tag}> repeats an attribute"
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data):
        self.texts.append((self.open[-1] if self.open else "", data))

    def all(self, tag, **wanted):
        return [
            attrs for name, attrs in self.elements if name == tag and all(attrs.get(k) == v for k, v in wanted.items())
        ]

    @property
    def text(self):
        return " ".join("".join(data for tag, data in self.texts if tag not in ("script", "style")).split())


@pytest.fixture(scope="session")
def speech_run(twin_folder):
    """Writes a run folder of `tts train` with untrained models that know digits: `speech_run(folder, codec_folder)`."""

    def write(folder, codec_folder=twin_folder):
        sizes = ValleConfig(layers=1, heads=2, dim=16, mlp_dim=32, dropout=0.0, text_size=48, n_q=4, codebook_size=64)
        spec = load_codec(codec_folder).spec
        facts = {"codec": {"path": str(codec_folder), "fingerprint": spec.fingerprint, "spec": spec.to_dict()}}
        torch.manual_seed(0)
        pace = {"least": 0.5, "usual": 1.0, "most": 1.5}
        ValleAR(sizes).save_pretrained(folder / "ar" / "model", {**facts, "pace": pace})
        ValleNAR(sizes).save_pretrained(folder / "nar" / "model", facts)
        TextEncoder.build(TextConfig(), [" ".join(DIGITS)]).save(folder / "text")
        return folder

    return write


@pytest.fixture
def read_page():
    """Reads HTML: `read_page(text)`."""
    return Page


@pytest.fixture
def page_of():
    """The page of a report that holds some blocks: `page_of(*blocks)`."""

    def page(*blocks, **kwargs):
        return Page(render_html(Report("A report", [Section("A section", list(blocks))], **kwargs)))

    return page


@pytest.fixture
def payload():
    """The bytes inside a data URI: `payload(uri)`."""

    def decode(uri):
        head, data = uri.split(",", 1)
        assert head.startswith("data:") and head.endswith(";base64")
        return base64.b64decode(data, validate=True)

    return decode
