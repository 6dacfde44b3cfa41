"""`reproduce`: stages and their keys, lists, the paper's figures as data, and what the command refuses."""

import json

import pytest

from xcodec_lm.codec.clips import Clip
from xcodec_lm.configs.errors import UsageError, XcodecLMError
from xcodec_lm.tasks.reproduce import lists, paper, stages
from xcodec_lm.tasks.reproduce.evaluators import parse_weights
from xcodec_lm.tasks.reproduce.page import as_text, our_table
from xcodec_lm.tasks.reproduce.scores import Metric, empty, number, row, scores
from xcodec_lm.tasks.reproduce.settings import ROOTS, Settings, named
from xcodec_lm.tasks.reproduce.stages import Place, Stage, bind, claim, run
from xcodec_lm.tasks.reproduce.tables import MODULES, command_of, identity, table

# ---------------------------------------------------------------------- stages


class Chain:
    """Two stages that count how often they are made."""

    def __init__(self, place, first=1, second=1, text="a list\n"):
        self.place, self.made = place, []
        self.first, self.second, self.text = first, second, text

    def stages(self):
        def prepare(folder, before):
            self.made.append("prepare")
            (folder / "list.txt").write_text(self.text)
            return {"value": self.first}

        def score(folder, before):
            self.made.append("score")
            return {"sum": before["prepare"]["value"] + self.second}

        return [
            Stage("prepare", {"first": self.first, "text": self.text}, prepare, files=("list.txt",)),
            Stage("score", {"second": self.second}, score),
        ]

    def run(self, only=None):
        self.made.clear()
        done = run(self.place, self.stages(), only)
        return self.made.copy(), {name: one.facts for name, one in done.items()}


@pytest.fixture
def place(tmp_path):
    claim(tmp_path / "out")
    return Place(tmp_path / "out", 2)


def test_stages_are_made_once_and_again_when_what_decides_them_changes(place, capsys):
    chain = Chain(place)
    assert chain.run() == (["prepare", "score"], {"prepare": {"value": 1}, "score": {"sum": 2}})
    assert chain.run() == ([], {"prepare": {"value": 1}, "score": {"sum": 2}})
    assert "prepare reused" in capsys.readouterr().err
    chain.second = 5
    assert chain.run() == (["score"], {"prepare": {"value": 1}, "score": {"sum": 6}})
    chain.first = 2
    assert chain.run()[1]["score"] == {"sum": 7} and chain.made == ["prepare", "score"]


def test_a_stage_that_gives_the_same_again_does_not_spoil_those_after_it(place):
    chain = Chain(place)
    chain.run()
    (place.folder / "prepare" / "stage.json").unlink()  # as after a kill
    assert chain.run()[0] == ["prepare"]


def test_a_stage_is_made_again_when_only_its_predecessors_list_changed(place):
    chain = Chain(place)
    chain.run()
    chain.text = "another list\n"
    assert chain.run()[0] == ["prepare", "score"]


def test_a_stage_needs_its_predecessor(place):
    chain = Chain(place)
    with pytest.raises(XcodecLMError, match="stage score needs prepare, which is not made yet") as error:
        chain.run("score")
    assert "--stage prepare" in error.value.hint
    assert chain.run("prepare")[0] == ["prepare"]
    assert chain.run("score")[0] == ["score"]
    chain.first = 3
    with pytest.raises(XcodecLMError, match="made from other inputs"):
        chain.run("score")


def test_an_unknown_stage_is_named_with_those_that_there_are(place):
    with pytest.raises(XcodecLMError, match="no stage 'train'") as error:
        Chain(place).run("train")
    assert "prepare, score" in error.value.hint


def test_a_list_that_was_edited_is_refused_and_sha256sum_can_check_it(place):
    chain = Chain(place)
    chain.run()
    locked = (place.folder / "prepare" / "files.sha256").read_text()
    assert locked == f"{stages.hash_file(place.folder / 'prepare' / 'list.txt')}  list.txt\n"
    (place.folder / "prepare" / "list.txt").write_text("edited\n")
    with pytest.raises(XcodecLMError, match="is not as stage prepare wrote it"):
        chain.run()


def test_a_stage_that_fails_is_not_taken_for_done(place):
    def broken(folder, before):
        raise XcodecLMError("no")

    with pytest.raises(XcodecLMError, match="no"):
        run(place, [Stage("prepare", {}, broken)])
    assert not (place.folder / "prepare" / "stage.json").exists()


def test_a_folder_of_something_else_is_not_taken(tmp_path):
    (tmp_path / "thesis.tex").write_text("")
    with pytest.raises(XcodecLMError, match="holds something that reproduce did not make"):
        claim(tmp_path)
    with pytest.raises(XcodecLMError, match="holds something"):
        claim(tmp_path / "thesis.tex")


def test_a_folder_keeps_its_settings(place):
    bind(place, {"seed": 0, "demo": True})
    bind(place, {"demo": True, "seed": 0})
    with pytest.raises(XcodecLMError, match=r"table 2 of other settings \(seed: 0 there, 1 asked for\)"):
        bind(place, {"seed": 1, "demo": True})
    bind(Place(place.out, 6), {"seed": 1, "demo": True})  # another table is another folder


def test_shared_works_are_made_once_and_named_as_reused(place):
    made = []
    for _ in range(2):
        folder = place.shared("corpus", {"seed": 0}, lambda to: made.append(to))
    assert len(made) == 1 and folder == made[0] and place.reused == [place.name(folder)]
    assert place.shared("corpus", {"seed": 1}, lambda to: made.append(to)) != folder


def test_paths_are_named_relative_to_out_so_that_it_can_move(place, tmp_path):
    assert place.name(place.out / "shared" / "x.jsonl") == "shared/x.jsonl"
    assert place.name(tmp_path / "elsewhere") == str(tmp_path / "elsewhere")
    assert place.path(place.name(tmp_path / "elsewhere")) == tmp_path / "elsewhere"


# ---------------------------------------------------------------------- lists


def test_crops_lie_in_their_tracks_and_depend_on_the_seed_alone():
    tracks = [("b", 60.0), ("a", 41.5), ("short", 39.9)]
    crops = lists.draw_crops(tracks, 600, 40.0, seed=0)
    lengths = dict(tracks)
    assert len(crops) == 600 and {name for name, _ in crops} == {"a", "b"}
    assert all(0 <= start <= lengths[name] - 40.0 and round(start, 3) == start for name, start in crops)
    assert crops == lists.draw_crops(tracks[::-1], 600, 40.0, seed=0)
    assert crops != lists.draw_crops(tracks, 600, 40.0, seed=1)
    with pytest.raises(XcodecLMError, match="none of 3 tracks lasts 100 s"):
        lists.draw_crops(tracks, 1, 100.0, seed=0)


def test_clips_are_drawn_once_each_in_the_order_of_ids(tmp_path):
    clips = [Clip(f"c{index:03d}", tmp_path, 1.0, None, {}) for index in range(50)]
    drawn = lists.draw_clips(clips[::-1], 10, seed=3)
    assert [clip.id for clip in drawn] == sorted({clip.id for clip in drawn}) and len(drawn) == 10
    assert drawn == lists.draw_clips(clips, 10, seed=3)
    assert lists.draw_clips(clips, 99, seed=3) == clips


def test_each_clip_gets_one_of_its_captions():
    rows = [{"id": f"{index}", "captions": ["one", "two", "three"]} for index in range(40)] + [
        {"id": "alone", "caption": "only"}
    ]
    drawn = lists.draw_captions(rows, seed=0)
    assert [name for name, _ in drawn] == sorted(row["id"] for row in rows)
    assert dict(drawn)["alone"] == "only" and {caption for _, caption in drawn} == {"one", "two", "three", "only"}


def test_lists_are_read_back_as_written(tmp_path):
    lists.write_lines(tmp_path / "a.txt", "clip\tstart", [("x y", 1.5), ("z", "0.000")])
    assert (tmp_path / "a.txt").read_text() == "#clip\tstart\nx y\t1.5\nz\t0.000\n"
    assert lists.read_lines(tmp_path / "a.txt") == [["x y", "1.5"], ["z", "0.000"]]


# ---------------------------------------------------------------------- the paper


def test_the_papers_tables_are_whole():
    assert sorted(paper.TABLES) == sorted(MODULES) == [1, 2, 3, 4, 5, 6, 7]
    for found in paper.TABLES.values():
        assert all(list(values) == list(found.columns) for values in found.rows.values())
    assert paper.TABLES[1].rows["X-Codec-hubert"]["wer"] == 4.07
    assert paper.TABLES[2].rows["X-Codec, nq 8"] == {"within": 3.3, "across": 4.3}
    assert paper.TABLES[5].rows["X-Codec"]["emovo"] == 35.2 and len(paper.TABLES[5].columns) == 12


def test_arch_is_named_as_its_data_sets_are():
    from xcodec_lm.tasks.eval.arch_sets import SETS

    assert list(paper.TABLES[5].columns) == list(SETS)


def test_the_papers_row_stands_below_ours_only_where_both_measure_the_same():
    cells = {"within": number(10.0), "across": empty("no such items")}
    rows = [row("ours", cells, "nq 8", "X-Codec, nq 8"), row("noise", cells, reference=True)]
    for same in (True, False):
        metrics = [Metric(key, key, ".1f", "min", same) for key in ("within", "across")]
        found = our_table(paper.TABLES[2], scores(metrics, rows))
        heads = [line[0] for line in found.rows]
        assert heads == ["ours, nq 8", *(["    the paper's X-Codec, nq 8"] if same else []), "noise"]
        assert found.references == ([1, 2] if same else [1])
        text = as_text(paper.TABLES[2], scores(metrics, rows, not_comparable=["of this"]), found, [])
        assert "no such items" in text and "not comparable with the paper because:\n  of this" in text
        ours, printed = text.split("as the paper prints it")
        assert "3.3" in printed and ("3.3" in ours) is same


# ---------------------------------------------------------------------- what is refused


def test_names_of_codecs_and_runs():
    assert named(("runs/a/model", "mine=runs/b"), "--codecs") == {"model": "runs/a/model", "mine": "runs/b"}
    with pytest.raises(UsageError, match="'a' is used twice"):
        named(("x/a", "y/a"), "--codecs")
    with pytest.raises(UsageError, match="no name or no source"):
        named(("=x",), "--codecs")


def test_weights_are_named_as_plug_ins():
    assert parse_weights(("utmos22=/w/utmos.ckpt",)) == {"utmos22": "/w/utmos.ckpt"}
    for wrong, told in (("utmos=/w", "no plug-in"), ("utmos22", "no name or no path")):
        with pytest.raises(UsageError, match=told):
            parse_weights((wrong,))


def test_an_unknown_table_is_a_usage_error(cli):
    code, _, err = cli("reproduce", "tabel2", "--demo")
    assert code == 2 and "did you mean table2" in err
    code, _, err = cli("reproduce", "table8", "--demo")
    assert code == 2 and "table1, table2" in err


@pytest.mark.parametrize("number", sorted(MODULES))
def test_missing_data_is_named_with_where_it_goes_and_what_still_works(cli, tmp_path, number):
    code, _, err = cli("reproduce", f"table{number}", "--out", tmp_path / "out")
    assert code == 1 and f"reproduce table{number} --demo" in err
    for root in table(number).needs:
        assert f"--{root.replace('_', '-')}" in err and ROOTS[root].split(",")[0] in err
    assert not (tmp_path / "out").exists()


def test_all_without_any_data_names_every_table(cli, tmp_path):
    code, _, err = cli("reproduce", "all", "--out", tmp_path / "out")
    assert code == 1 and all(f"table {number}" in err for number in MODULES)


def test_a_root_that_is_not_there_is_told_from_one_that_is_not_given(cli, tmp_path):
    code, _, err = cli("reproduce", "table6", "--libritts", tmp_path / "nowhere", "--out", tmp_path / "out")
    assert code == 1 and f"--libritts {tmp_path / 'nowhere'} is not there" in err


@pytest.mark.parametrize(
    ("argv", "told"),
    [
        (("--demo", "--musdb", "x"), "--demo takes no data set"),
        (("--corpus", "x"), "--corpus is for --demo"),
        (("--quick",), "--quick is for --demo"),
        (("--demo", "--steps", "0"), "--steps must be at least 1"),
        (("--demo", "--weights", "nobody=x"), "no plug-in is called"),
    ],
)
def test_options_that_do_not_fit(cli, tmp_path, argv, told):
    code, _, err = cli("reproduce", "table3", "--out", tmp_path / "out", *argv)
    assert code == 2 and told in err


def test_a_table_is_known_by_what_decides_it(tmp_path):
    here, there = (Settings(libritts=tmp_path, musdb=tmp_path / name) for name in "ab")
    assert identity(table(6), here) == identity(table(6), there)  # table 6 looks at LibriTTS alone
    assert identity(table(3), here) != identity(table(3), there)
    assert identity(table(6), Settings(libritts=tmp_path, device="cuda")) == identity(table(6), here)
    json.dumps(identity(table(1), here))


def test_the_command_of_a_table_is_its_settings(tmp_path):
    settings = Settings(demo=True, codecs=("a=runs/a", "b"), seed=3)
    assert command_of(2, settings, tmp_path) == (
        f"xcodec-lm reproduce table2 --demo --codecs a=runs/a b --seed 3 --out {tmp_path}"
    )
