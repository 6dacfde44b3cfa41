"""Small trees in the layouts in which the data sets of ARCH are published; files are empty unless a test fills them."""

import json

import pytest

from xcodec_lm.tasks.eval.arch_readers import AUDIOMNIST_FOLDS, IRMAS, MTT_TAGS


def touch(root, names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def text(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)


def esc50(root):
    rows = [(f"{fold}-{n}-A-{n % 3}.wav", fold, f"class {n % 3}", n // 2) for fold in range(1, 6) for n in range(12)]
    lines = [f"{name},{fold},0,{label},False,{fold}00{source},A" for name, fold, label, source in rows]
    text(root / "meta" / "esc50.csv", "filename,fold,target,category,esc10,src_file,take\n" + "\n".join(lines))
    touch(root, [f"audio/{row[0]}" for row in rows])


def us8k(root):
    rows = [(f"{fold}{n}-0-0-{n}.wav", f"{fold}{n}", fold, f"class {n % 2}") for fold in range(1, 11) for n in range(6)]
    lines = [f"{name},{source},0.0,4.0,1,{fold},0,{label}" for name, source, fold, label in rows]
    head = "slice_file_name,fsID,start,end,salience,fold,classID,class\n"
    text(root / "metadata" / "UrbanSound8K.csv", head + "\n".join(lines))
    touch(root, [f"audio/fold{row[2]}/{row[0]}" for row in rows])


def fsd50k(root):
    dev = [(n, "Bark,Dog" if n % 2 else "Rain", "val" if n % 5 == 0 else "train") for n in range(20)]
    lines = [f'{n},"{labels}","/m/1",{part}' for n, labels, part in dev]
    text(root / "FSD50K.ground_truth" / "dev.csv", "fname,labels,mids,split\n" + "\n".join(lines))
    lines = [f'{n},"{"Bark,Dog" if n % 2 else "Rain"}","/m/1"' for n in range(20, 30)]
    text(root / "FSD50K.ground_truth" / "eval.csv", "fname,labels,mids\n" + "\n".join(lines))
    touch(root, [f"FSD50K.dev_audio/{n}.wav" for n in range(20)])
    touch(root, [f"FSD50K.eval_audio/{n}.wav" for n in range(20, 30)])


def vivae(root):
    kinds = ("anger", "fear", "pain")
    touch(root, [f"full_set/S{s:02d}_{kind}_low_{n:02d}.wav" for s in range(1, 12) for kind in kinds for n in (1, 2)])


def fma_small(root):
    head = "\n".join([",artist,set,set,track", ",id,split,subset,genre_top", "track_id,,,,"])
    rows = [(n, n // 3, "small" if n % 10 else "large", ("Rock", "Folk")[n % 2]) for n in range(990, 1060)]
    lines = [f"{n},{artist},training,{subset},{genre}" for n, artist, subset, genre in rows]
    text(root / "fma_metadata" / "tracks.csv", head + "\n" + "\n".join(lines))
    touch(root, [f"fma_small/{n // 1000:03d}/{n:06d}.mp3" for n, _, subset, _ in rows if subset == "small"])


def mtt(root):
    head = "\t".join(["clip_id", *MTT_TAGS, "no tag of ours", "mp3_path"])
    lines, parts = [], {"train": [], "val": [], "test": []}
    for n in range(30):
        tags = ["1" if (index == n % 4 and n % 10) else "0" for index in range(len(MTT_TAGS))]
        name = f"{n % 16:x}/artist-album-{n:02d}-title-0-29.mp3"
        lines.append("\t".join([str(n), *tags, "1", name]))
        parts[("train", "train", "val", "test")[n % 4 if n > 3 else 0]].append(f"{n}\t[0 1]")
        touch(root, [name])
    text(root / "annotations_final.csv", head + "\n" + "\n".join(lines))
    for part, rows in parts.items():
        text(root / f"{part}_gt_mtt.tsv", "\n".join(rows) + "\n")


def irmas(root):
    touch(root, [f"IRMAS-TrainingData/{label}/[{label}]{n}__1.wav" for label in IRMAS for n in range(6)])
    for part in (1, 2, 3):
        folder = root / f"IRMAS-TestingData-Part{part}" / f"Part{part}"
        for n in range(4):
            touch(folder, [f"song {part}-{n}.wav"])
            text(folder / f"song {part}-{n}.txt", f"{IRMAS[n]}\t\n{IRMAS[n + 1]}\t\n")


def medley_solos(root):
    lines = []
    for n in range(24):
        subset = ("training", "training", "validation", "test")[n % 4]
        lines.append(f"{subset},flute,{n % 3},{n // 4},uuid-{n}")
        touch(root, [f"audio/Medley-solos-DB_{subset}-{n % 3}_uuid-{n}.wav"])
    text(root / "Medley-solos-DB_metadata.csv", "subset,instrument,instrument_id,song_id,uuid4\n" + "\n".join(lines))


def ravdess(root):
    kinds = [(actor, emotion, song) for actor in range(1, 7) for emotion in range(1, 9) for song in (1, 2)]
    touch(root, [f"Actor_{a:02d}/03-{song:02d}-{e:02d}-01-01-01-{a:02d}.wav" for a, e, song in kinds])


def audiomnist(root, speakers=None):
    chosen = speakers or [speaker for fold in AUDIOMNIST_FOLDS for speaker in fold[:2]]
    touch(root, [f"data/{s:02d}/{digit}_{s:02d}_{n}.wav" for s in chosen for digit in range(3) for n in range(2)])


def slurp(root):
    for name, count in (("train", 6), ("devel", 3), ("test", 3)):
        rows = []
        for n in range(count):
            files = [f"audio-{name}-{n}-{take}.flac" for take in range(2)]
            touch(root, [f"audio/slurp_real/{file}" for file in files])
            rows.append({"slurp_id": n, "intent": f"intent {n % 2}", "recordings": [{"file": file} for file in files]})
        text(root / "dataset" / "slurp" / f"{name}.jsonl", "\n".join(map(json.dumps, rows)) + "\n")


def emovo(root):
    names = [f"{s}/{e}-{s}-{n}.wav" for s in ("f1", "f2", "m1") for e in ("dis", "gio") for n in ("b1", "b2", "l1")]
    touch(root, names)


TREES = {
    "esc50": esc50, "us8k": us8k, "fsd50k": fsd50k, "vivae": vivae, "fma_small": fma_small, "mtt": mtt, "irmas": irmas,
    "medley_solos": medley_solos, "ravdess": ravdess, "audiomnist": audiomnist, "slurp": slurp, "emovo": emovo,
}  # fmt: skip


@pytest.fixture
def arch_tree():
    """Writes the tree of a data set: `arch_tree(name, root)`."""
    return lambda name, root: TREES[name](root)
