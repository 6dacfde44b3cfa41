"""TextGrids as ABX items: both text forms, silence, speakers, and files that are none."""

from decimal import Decimal

import pytest

from xcodec_lm.tasks.eval.abx_items import Item, ItemError, read_items

LONG = """File type = "ooTextFile"
Object class = "TextGrid"

xmin = 0
xmax = 1.0
tiers? <exists>
size = 2
item []:
    item [1]:
        class = "IntervalTier"
        name = "words"
        xmin = 0
        xmax = 1.0
        intervals: size = 1
        intervals [1]:
            xmin = 0
            xmax = 1.0
            text = "the ""cab"" came"
    item [2]:
        class = "IntervalTier"
        name = "phones"
        xmin = 0
        xmax = 1.0
        intervals: size = 6
        intervals [1]:
            xmin = 0
            xmax = 0.1
            text = ""
        intervals [2]:
            xmin = 0.1
            xmax = 0.25
            text = "K"
        intervals [3]:
            xmin = 0.25
            xmax = 0.31
            text = "AE1"
        intervals [4]:
            xmin = 0.31
            xmax = 0.4
            text = "B"
        intervals [5]:
            xmin = 0.4
            xmax = 0.5
            text = "spn"
        intervals [6]:
            xmin = 0.5
            xmax = 1.0
            text = "T"
"""
SHORT = """File type = "ooTextFile"
Object class = "TextGrid"

0
1
<exists>
2
"TextTier"
"notes"
0
1
1
0.5
"x"
"IntervalTier"
"phones"
0
1
3
0
0.2
"D"
0.2
0.6
"IY0"
0.6
1
"P"
"""


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(exist_ok=True)
    path.write_text(text, encoding=encoding)


def test_both_forms_give_triphones_of_the_folders_speaker(tmp_path):
    write(tmp_path / "anna" / "one.TextGrid", LONG)
    write(tmp_path / "ben" / "two.TextGrid", SHORT, "utf-16")
    assert read_items(tmp_path) == [
        Item("one", "AE", "anna", "K", "B", Decimal("0.1"), Decimal("0.4")),  # not those beside silence and noise
        Item("two", "IY", "ben", "D", "P", Decimal("0"), Decimal("1")),
    ]


def test_the_phone_alone_on_request(tmp_path):
    from xcodec_lm.tasks.eval.textgrid import items_of_textgrids

    write(tmp_path / "anna" / "one.TextGrid", LONG)
    (item,) = items_of_textgrids(tmp_path, "phone")
    assert (item.onset_s, item.offset_s) == (Decimal("0.25"), Decimal("0.31"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "it ends early"),
        ("hello", "no TextGrid in text form"),
        (SHORT[:150], "it ends early"),
        (SHORT.replace('"P"', "7"), "a number where a text was expected"),
        (SHORT.replace('"phones"', '"words"'), "has the tiers words, and none called phones"),
        (SHORT.replace('"D"', '"sil"'), "no TextGrid has a phone between two others"),
    ],
)
def test_files_that_are_no_textgrids_are_refused(tmp_path, text, message):
    write(tmp_path / "s" / "a.TextGrid", text)
    with pytest.raises(ItemError) as error:
        read_items(tmp_path)
    assert message in error.value.message and error.value.hint


def test_a_folder_without_any_is_refused(tmp_path):
    with pytest.raises(ItemError, match="there is no"):
        read_items(tmp_path)
