"""The command `reproduce`: a table of the X-Codec paper, or all of them."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

from xcodec_lm.configs.errors import PartialError, UsageError
from xcodec_lm.tasks.commands.common import Device, Result, device_of

TABLES = tuple(f"table{number}" for number in range(1, 8))


def reproduce(
    table: Positional[str], /, out: Path = Path("runs/reproduce"), demo: bool = False, corpus: Path | None = None,
    quick: bool = False, codecs: tuple[str, ...] = ("xcodec-tiny", "baseline-tiny"), runs: tuple[str, ...] = (),
    librispeech: Path | None = None, libritts: Path | None = None, musdb: Path | None = None,
    audiocaps: Path | None = None, captions: Path | None = None, arch_root: Path | None = None,
    items: Path | None = None, train_data: tuple[Path, ...] = (), clap: str | None = None,
    weights: tuple[str, ...] = (), judges: Path | None = None, datasets: tuple[str, ...] = (),
    split: Literal["all", "train", "test"] = "all", preset: str = "", steps: int | None = None,
    stage: Literal["prepare", "tokenize", "train", "generate", "score", "report"] | None = None, seed: int = 0,
    device: Device = "auto",
) -> Result | tuple[Result, PartialError]:  # fmt: skip
    """Makes a table of the X-Codec paper (table1 to table7, or all) on its data sets, or on a small corpus.

    Prints our figures with intervals beside the paper's, with what differs, and writes OUT/tableN.json and
    OUT/tableN.html. What is made already is reused, and said; a stopped call goes on where it was.

    Args:
        table: table1 to table7, or all.
        out: folder of stages and reports; tables share corpora, tokens and models in it.
        demo: on the small corpus, with small models and evaluators that are trained here.
        corpus: for --demo: folder with speech.jsonl, music.jsonl and sound.jsonl; without it one is synthesised.
        quick: for --demo: every stage at a size of seconds; its figures say nothing.
        codecs: run, model folder, shipped name or hub id, each perhaps as NAME=SOURCE; the first is compared with the
            others.
        runs: trained language models as NAME=RUN by the name of their codec; without them models are trained.
        librispeech: folder that holds test-clean/ (tables 1, 2).
        libritts: folder that holds test-clean/ and the training subsets (tables 1, 6).
        musdb: folder of MUSDB18-HQ with train/ and test/ (tables 3, 7).
        audiocaps: folder of AudioCaps' audio, with its lists or with --captions (table 4).
        captions: test.csv of AudioCaps (table 4).
        arch_root: folder with a folder for each data set of ARCH (table 5).
        items: test-clean.item of Libri-light (table 2).
        train_data: manifests to train language models on (tables 1, 3, 4, 7).
        clap: the CLAP that conditions models of sound (table 4).
        weights: published evaluators as NAME=PATH, such as utmos22=FILE; `eval list` names them.
        judges: folder of eval train-evaluators, for the recogniser and the judge of voices of table 1.
        datasets: of ARCH; without it those that are there (table 5).
        split: tracks of MUSDB18 (tables 3, 7).
        preset: of the language models; without it the paper's, in the demo a small one.
        steps: training steps of the language models; without it the preset's.
        stage: make this stage alone; those before it must be made.
        seed: of every draw.
        device: where to compute.
    """
    from xcodec_lm.tasks.reproduce.evaluators import parse_weights
    from xcodec_lm.tasks.reproduce.settings import Settings
    from xcodec_lm.tasks.reproduce.tables import reproduce as make
    from xcodec_lm.tasks.reproduce.tables import reproduce_all

    if table not in (*TABLES, "all"):
        close = difflib.get_close_matches(table, (*TABLES, "all"), n=1)
        meant = f"; did you mean {close[0]}?" if close else ""
        raise UsageError(f"the paper has no {table!r}{meant}", f"there are {', '.join(TABLES)} and all")
    if table == "all" and stage is not None:
        raise UsageError("--stage is for one table, not for all", "name the table")
    settings = Settings(
        demo=demo, corpus=corpus, quick=quick, librispeech=librispeech, libritts=libritts, musdb=musdb,
        audiocaps=audiocaps, captions=captions, arch_root=arch_root, items=items, train_data=train_data, codecs=codecs,
        runs=runs, weights=parse_weights(weights), judges=judges, clap=clap, preset=preset, steps=steps, split=split,
        datasets=datasets, seed=seed, device=device_of(device),
    )  # fmt: skip
    if table != "all":
        made = make(int(table.removeprefix("table")), settings, out, stage)
        return Result(made.text, made.data)
    found, partial = reproduce_all(settings, out)
    lines = ["\n\n".join(one.text for one in found), "", "table   wall s   processor s"]
    lines += [f"{one.number:<8}{one.wall_s:>6.0f}{one.cpu_s:>14.0f}" for one in found]
    lines.append(f"all     {sum(one.wall_s for one in found):>6.0f}{sum(one.cpu_s for one in found):>14.0f}")
    result = Result("\n".join(lines), {"tables": [one.data for one in found]})
    return result if partial is None else (result, partial)
