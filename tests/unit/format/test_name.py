"""A segment's name is one value: what is written is what is parsed, and age is its order."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorin.engine.format.name import SegmentName, is_same_line
from quorin.errors import CorruptSegmentError

LINE = "0123456789ab"


def test_a_name_is_parsed_as_it_was_written() -> None:
    name = SegmentName("User_Profile_2", LINE, 0x1F)
    assert str(name) == "quorin_User_Profile_2_0123456789ab0000001f"
    assert SegmentName.parse(str(name)) == name
    assert name.line == "quorin_User_Profile_2_0123456789ab"
    first = SegmentName.first("A")
    assert (first.schema, first.generation, SegmentName.parse(str(first))) == ("A", 1, first)
    assert SegmentName.first("A").lineage != first.lineage


def test_the_documents_say_what_a_file_is_called() -> None:
    documents = Path(__file__).parents[3] / "docs"
    assert f"`quorin_<schema>_<{len(LINE)} digits><8 digits>`" in (documents / "troubleshooting.md").read_text()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "quorin",
        "quorin_A_0123456789ab0000001",
        "quorin_A_0123456789ab000000011",
        "quorin_A_0123456789AB00000001",
        "quorin_1A_0123456789ab00000001",
        "other_A_0123456789ab00000001",
        "quorin_A_0123456789ab00000001.00-00.pending",
        "quorin_A_0123456789ab00000001\n",
        "../quorin_A_0123456789ab00000001",
    ],
)
def test_what_is_not_a_name_is_refused(text: str) -> None:
    assert SegmentName.match(text) is None
    with pytest.raises(CorruptSegmentError, match="is no segment name"):
        SegmentName.parse(text)
    assert not is_same_line(text, text)


def test_generations_of_a_line_are_ordered_by_age_as_numbers_and_as_texts() -> None:
    names = [SegmentName("A", LINE, generation) for generation in (1, 2, 9, 10, 16, 255, 256, 2**32 - 1)]
    assert sorted(names, reverse=True)[::-1] == names
    assert sorted(map(str, names)) == list(map(str, names))
    assert is_same_line(str(names[0]), str(names[-1]))
    assert not is_same_line(str(names[0]), str(SegmentName("B", LINE, 1)))
    assert not is_same_line(str(names[0]), str(SegmentName("A", LINE[::-1], 1)))


def test_siblings_are_the_whole_files_of_one_line(tmp_path: Path) -> None:
    name = SegmentName("A", LINE, 2)
    others = [
        str(SegmentName(f"A_{LINE}", "f" * 12, 3)),  # Begins like the line, and is another schema's.
        str(SegmentName("A", LINE[::-1], 1)),
        f"{name.at(4)}.0000000000000000-00000000.pending",
    ]
    for file in [str(name.at(16)), str(name.at(3)), str(name), *others]:
        (tmp_path / file).touch()
    assert name.siblings(tmp_path) == [name, name.at(3), name.at(16)]
