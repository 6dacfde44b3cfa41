"""The demo's page "text to sound": what the shipped model makes of a few captions."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path

from xcodec_lm.codec.audio import resample, save_audio
from xcodec_lm.codec.runtime.order import derive_seed
from xcodec_lm.codec.runtime.progress import say
from xcodec_lm.tasks.report import Commands, Empty, KeyValues, Measure, Note, Report, Section, Table, Text, render

PRETRAINED = Path(__file__).parents[1] / "pretrained"
SHIPPED, CONDITIONER = "sound-tiny", "clap-tiny"
CAPTIONS = (
    "a dog barks", "rain falls on a roof", "a baby is crying", "a fire crackles", "waves break on the shore",
    "a clock is ticking",
)  # fmt: skip
SECONDS, SAMPLES = 5.0, 2


def write_sound_page(
    out: Path, seed: int = 0, captions: Sequence[str] = CAPTIONS, seconds: float = SECONDS, samples: int = SAMPLES
) -> Path | None:
    """Makes sounds with the shipped model, and writes `out/sound.html` and the sounds in `out/sound/`.

    Args:
        out: the demo's folder.
        seed: of the draws.
        captions: what is made.
        seconds: of each sound.
        samples: sounds of each caption.

    Returns:
        The page; None, and that is said, where no model ships.
    """
    missing = [name for name in (SHIPPED, CONDITIONER) if not (PRETRAINED / name / "config.json").is_file()]
    if missing:
        say(f"no page of text to sound: {' and '.join(missing)} does not ship with this installation")
        return None
    from xcodec_lm.tasks.sound.make import file_stem, load_sound
    from xcodec_lm.tasks.sound.neighbours import load_neighbours
    from xcodec_lm.tasks.sound.page import Captioned, Sounding, caption_players

    sound = load_sound(PRETRAINED / SHIPPED)
    assert sound.clap is not None
    seconds = min(seconds, sound.seen_s)
    seeds = [derive_seed(seed, "sound", caption) for caption in captions]
    made = sound.make(list(captions), seconds, seeds, samples=samples)
    known = load_neighbours(PRETRAINED / SHIPPED)
    texts = sound.clap.embed_texts(list(captions))
    (out / "sound").mkdir(parents=True, exist_ok=True)
    rows: list[Captioned] = []
    table: list[list[str | Measure | Empty]] = []
    for number, caption in enumerate(captions):
        sounds = []
        for sample in range(samples):
            wav = made.wavs[number * samples + sample]
            save_audio(out / "sound" / f"{file_stem(caption)}-{sample + 1}.wav", wav, made.sample_rate)
            heard = resample(wav[0].clamp(-1, 1).numpy(), made.sample_rate, sound.clap.sample_rate)
            vector = sound.clap.embed_audio([heard])[0]
            score = float(vector @ texts[number])
            sounds.append(Sounding(f"sound {sample + 1}", wav[0].numpy(), made.sample_rate, f"CLAP {score:.2f}"))
            near: list[str | Measure | Empty] = [Empty("the model's folder does not list its training clips")] * 2
            if known is not None and known.rows:
                row, cosine = known.nearest(vector)
                near = [f"{row['id']}: {row['caption']}", Measure(cosine)]
            table.append([f"{caption} ({sample + 1})", Measure(score), *near])
        rows.append(Captioned(caption, sounds))
    lines = [
        shlex.join(["xcodec-lm", "sound", "make", caption, "--run", SHIPPED, "--seconds", f"{seconds:g}", "-n",
                    str(samples), "--seed", str(own), "-o", str(Path("sounds"))])
        for caption, own in zip(captions, seeds, strict=True)
    ]  # fmt: skip
    report = Report(
        "Text to sound",
        [
            Section("Listening", [caption_players(rows, "Captions, and what was made of them")]),
            Section(
                "Scores and nearest training clips",
                [
                    Note(f"The score is that of {CONDITIONER}, on which the model is conditioned, so it is no "
                         "independent judgement: sound eval judges with another CLAP."),
                    Table(["sound", "CLAP score", "nearest training clip", "its cosine"], table,
                          "Cosines of embeddings: with the caption, and with the nearest training clip"),
                ],
            ),
        ],
        subtitle=f"{SHIPPED}: {len(captions)} captions, {samples} sounds each of {seconds:g} s.",
        provenance=[
            Text("Every sound is made by the command that stands here."),
            Commands(lines, "Commands"),
            KeyValues({"codec": sound.codec.spec.name, "codec fingerprint": sound.spec.fingerprint,
                       "CLAP": sound.clap.name, "CLAP fingerprint": sound.clap.fingerprint}, "Models"),
        ],
    )  # fmt: skip
    return render(report, out / "sound.html")
