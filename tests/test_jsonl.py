"""Files with everything that real files have wrong with them."""

import gzip
import io
import json
import sys
from pathlib import Path

from starsearch import jsonl as jsonl_module
from starsearch.jsonl import ITEMS_PER_CHUNK, read_chunks, read_items


def read(path: Path):
    chunks = list(read_chunks(path))
    return [item for chunk in chunks for item in chunk.items], [r for chunk in chunks for r in chunk.rejections]


def test_bad_lines_cost_only_themselves(row, jsonl):
    items, rejections = read(jsonl(row(1), "{not json", row(2, type="poll"), "", row(3)))
    assert [item.number for item in items] == [1, 3]
    assert [rejection.line for rejection in rejections] == [2, 3]
    assert "not JSON" in rejections[0].reason


def test_lone_surrogates_and_broken_utf8_are_cleaned(row, tmp_path):
    path = tmp_path / "items.jsonl"
    text = json.dumps(row(1, body="A")).replace('"A"', '"\\ud800"')
    path.write_bytes(text.encode() + b"\n" + json.dumps(row(2, body="B")).encode().replace(b'"B"', b'"\xff"') + b"\n")
    items, rejections = read(path)
    assert [item.body for item in items] == ["\ufffd", "\ufffd"]
    assert not rejections


def test_file_that_ends_in_the_middle_of_a_line_gives_the_rest(row, tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text(json.dumps(row(1)) + "\n" + json.dumps(row(2))[:40])
    items, rejections = read(path)
    assert len(items) == 1
    assert rejections[0].line == 2
    assert "ends in the middle" in rejections[0].reason


def test_gzip_that_breaks_off_gives_the_rest(row, tmp_path):
    path = tmp_path / "items.jsonl.gz"
    whole = gzip.compress("".join(json.dumps(row(n, body=f"{n} " * 500)) + "\n" for n in range(1, 400)).encode())
    path.write_bytes(whole[: len(whole) // 2])
    items, rejections = read(path)
    assert 0 < len(items) < 399
    assert "ends early" in rejections[-1].reason


def test_nested_too_deep_is_rejected(row, jsonl):
    items, rejections = read(jsonl("[" * 100_000, row(1)))
    assert len(items) == len(rejections) == 1


def test_a_line_or_a_chunk_is_never_longer_than_postgresql_takes(row, jsonl, monkeypatch):
    monkeypatch.setattr(jsonl_module, "BYTES_PER_CHUNK", 1_000)
    path = jsonl(*(row(n) for n in range(1, 8)), row(8, body="x" * 1_000), row(9))
    chunks = list(read_chunks(path))
    assert [len(chunk.items) for chunk in chunks] == [3, 3, 1, 1]
    assert [(each.line, each.reason) for chunk in chunks for each in chunk.rejections] == [(8, "a line of more than 1,000 bytes")]


def test_a_file_name_that_is_no_text_is_cleaned(row, tmp_path):
    path = tmp_path / "items-\udcff.jsonl"
    path.write_text(json.dumps(row(1)))
    (chunk,) = read_chunks(path)
    assert chunk.name == "items-\ufffd.jsonl"


def test_standard_input(row, monkeypatch):
    stdin = io.TextIOWrapper(io.BytesIO(json.dumps(row(1)).encode() + b"\n"))
    monkeypatch.setattr(sys, "stdin", stdin)
    items, _ = read(Path("-"))
    assert items[0].number == 1


async def test_large_files_come_in_chunks_and_in_order(row, jsonl):
    path = jsonl(*(row(n) for n in range(1, 2 * ITEMS_PER_CHUNK + 2)))
    chunks = [chunk async for chunk in read_items(path)]
    assert [len(chunk.items) for chunk in chunks] == [ITEMS_PER_CHUNK, ITEMS_PER_CHUNK, 1]
    assert sum(chunk.bytes_read for chunk in chunks) == path.stat().st_size
