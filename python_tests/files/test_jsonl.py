"""Files of JSON lines: a half-written last line is dropped, any other damage is named."""

import pytest

from vampo_core.files.jsonl import append_row, read_rows, write_rows


def number(value):
    if not isinstance(value, int):
        raise ValueError(value)
    return value


def read(path):
    return read_rows(path, number, expected="a number")


def test_rows_come_back(tmp_path):
    path = tmp_path / "rows.jsonl"
    assert read(path) == []
    write_rows(path, [1, 2])
    with path.open("a") as file:
        append_row(file, 3)
        assert read(path) == [1, 2, 3], "a row is on disk at once"
    write_rows(path, [4])
    assert path.read_text() == "4\n" and [p.name for p in tmp_path.iterdir()] == ["rows.jsonl"]


def test_a_half_written_last_line_is_left_out(tmp_path):
    path = tmp_path / "rows.jsonl"
    for cut in (b"", b"4", b"\xe2\x82"):
        path.write_bytes(b"1\n2\n" + cut)
        assert read(path) == [1, 2]


@pytest.mark.parametrize("damage", ["", '{"a', '"x"', "\udc80"])
def test_damage_is_named(tmp_path, damage):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(f"1\n{damage}\n3\n".encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=r"rows\.jsonl, line 2 is .*, expected a number"):
        read(path)


def test_numbers_that_are_not_finite_are_refused(tmp_path):
    with (tmp_path / "rows.jsonl").open("a") as file, pytest.raises(ValueError, match="not JSON compliant"):
        append_row(file, {"loss": float("nan")})
    assert (tmp_path / "rows.jsonl").read_text() == ""
