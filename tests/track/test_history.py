"""A history file is read once, in whole lines, however it grows."""

from __future__ import annotations

import json
from pathlib import Path

from made_results import Results

from flsl.track.history import Mark, new_points


def test_a_growing_history_is_read_once_and_whole_lines_only(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    lines = [json.dumps({"kind": "step", "step": n, "loss": n / 7, "time": 1.7e9 + n}) + "\n" for n in range(40)]
    text = "".join(lines).encode()
    mark, found = Mark(), []
    for end in range(0, len(text) + 1, 97):
        path.write_bytes(text[:end])
        assert mark.holds(path)
        batches = list(new_points(path, mark, 0))
        found += [point for points, _ in batches for point in points]
        mark = batches[-1][1] if batches else mark
    path.write_bytes(text)
    found += [point for points, mark in new_points(path, mark, 0) for point in points]
    assert [(point.step, point.value, point.timestamp) for point in found] == [
        (n, n / 7, (1_700_000_000 + n) * 1000) for n in range(40)
    ]


def test_a_history_that_was_cut_back_and_grew_again_is_another(results: Results) -> None:
    path = results.history("base", range(21, 41))
    *_, (_, mark) = new_points(path, Mark(), 0)
    assert Mark.parse(str(mark)) == mark
    assert mark.holds(path)
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:30]))
    assert not mark.holds(path)
    results.history("base", range(28, 60), again=1)
    assert path.stat().st_size > mark.offset
    assert not mark.holds(path)


def test_odd_lines_do_not_hide_the_others(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text(
        '{"step": 1, "loss": 2, "note": "x", "ok": true}\nnonsense\n[1]\n{"loss": 1}\n{"step": 2, "loss": NaN}\n'
        '{"step": 1e400, "loss": 1}\n{"step": NaN, "loss": 1}\n'
    )
    points = [point for batch, _ in new_points(path, Mark(), 5000) for point in batch]
    assert [(point.name, point.step, point.timestamp) for point in points] == [
        ("train/loss", 1, 5001),
        ("train/loss", 2, 5002),
    ]


def test_batches_are_bounded_and_cover_all(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text("".join(json.dumps({"step": n, **{f"k{k}": n for k in range(7)}}) + "\n" for n in range(6000)))
    batches = [points for points, _ in new_points(path, Mark(), 0)]
    assert max(map(len, batches)) <= 20_000
    assert len({(point.name, point.step) for batch in batches for point in batch}) == 42_000
