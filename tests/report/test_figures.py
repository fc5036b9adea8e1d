"""Figures: the right curves with names and units, whole files, and none when there is nothing."""

from __future__ import annotations

import json
import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from drawn import figure_of
from made_results import Results, demo, experiment
from PIL import Image

from flsl.cli import main
from flsl.report.figures import _curve, _style, plot_bars, plot_curves
from flsl.runtime.results import read_project


def texts(path: Path) -> set[str]:
    """Return the texts of an SVG figure."""
    return set(re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text()))


def draw(what: str, results: Results, *options: str) -> set[str]:
    path = results.folder / "figure.svg"
    assert main(["report", what, "--project-folder", str(results.folder), f"--out={path}", *options]) == 0
    return texts(path)


def test_curves_of_all_runs_are_named_and_have_units(tmp_path: Path) -> None:
    shown = draw("curves", demo(tmp_path))
    assert {"loss", "intra-view loss", "inter-view loss", "volume (VMR)", "learning rate", "online k-NN top-1"} <= shown
    assert {"base", "wide", "epochs", "nats", "%", "images / s"} <= shown
    assert "untrained" not in shown
    assert "prototypes used" not in shown  # the history has none


def test_one_run_may_be_drawn_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = demo(tmp_path)
    assert "FLSL pretraining: demo, run wide" in draw("curves", results, "--run=wide")
    assert main(["report", "curves", "--project-folder", str(results.folder), "--out=x.png", "--run=wid"]) == 2
    assert "has no run 'wid' (did you mean 'wide'?)" in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_bars_show_runs_and_baselines(tmp_path: Path) -> None:
    shown = draw("bars", demo(tmp_path))
    assert {
        "base",
        "wide",
        "untrained (baseline)",
        "k-NN top-1 (k = 20)",
        "linear top-1",
        "% (more is better)",
    } <= shown
    assert {"52.5", "55.5", "42.5", "61.2", "64.2", "62.2"} <= shown


def test_files_are_whole_and_equal_for_equal_results(tmp_path: Path) -> None:
    results = demo(tmp_path)
    arguments = ["report", "bars", "--project-folder", str(results.folder)]
    for name in ("a", "b"):
        assert main([*arguments, f"--out={tmp_path}/{name}.png", f"--out={tmp_path}/{name}.svg"]) == 0
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    with Image.open(tmp_path / "a.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    assert min(pixels.shape[:2]) > 200
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 10
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_unknown_kinds_of_files_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = demo(tmp_path)
    assert main(["report", "bars", "--project-folder", str(results.folder), f"--out={tmp_path}/a.jpeg"]) == 2
    assert "should end in .png, .svg or .pdf" in re.sub(r"\s+", " ", capsys.readouterr().err)


def test_a_project_without_figures_gets_a_figure_that_says_so(tmp_path: Path) -> None:
    results = Results(tmp_path)
    results.baseline()
    assert "no run of demo has a pretrain/history.jsonl yet" in draw("curves", results)
    assert "no run of demo is evaluated yet" in draw("bars", results)


def test_a_history_that_is_being_written_or_broken_is_drawn_as_far_as_it_goes(tmp_path: Path) -> None:
    results = demo(tmp_path)
    with (results.folder / "runs/base/pretrain/history.jsonl").open("a") as stream:
        stream.write('{"kind": "step", "step": 21, "lo')
    (results.folder / "runs/wide/pretrain/history.jsonl").write_bytes(b"\xff\xfe\n")
    assert "FLSL pretraining: demo, run base" in draw("curves", results)


def test_long_curves_are_averaged_evenly() -> None:
    rows = [{"kind": "step", "step": n, "epoch": n / 100, "loss": n % 2} for n in range(10_000)]
    curve = _curve(rows, "loss")
    assert curve is not None
    assert len(curve.x) == 100
    assert np.allclose(curve.y, 0.5)
    assert np.allclose(np.diff(curve.x), 1.0)
    short = _curve([{"step": n, "loss": float(n)} for n in range(7)], "loss")
    assert short is not None
    assert short.y.tolist() == list(range(7))
    assert _curve(rows, "perplexity") is None


def test_runs_are_told_apart_by_colour_and_line() -> None:
    styles = {json.dumps(_style(place, 28)) for place in range(28)}
    assert len(styles) == 28
    assert len({str(_style(place, 60)["color"]) for place in range(60)}) == 60


@pytest.mark.parametrize("name", ["r-{}", "epochs-100_prototypes-1024_seed-{}", "linear.learning_rates" * 4 + "-{}"])
def test_names_of_any_length_fit(tmp_path: Path, name: str) -> None:
    names = {name.format(n): {"seed": n} for n in range(8)}
    results = Results(tmp_path, experiment(runs=names))
    for run in names:
        results.pretrained(run, range(1, 21))
        results.stage(run, "knn", {"knn/top1@20": 40.0})
        results.stage(run, "linear", {"linear/top1": 50.0})
    project = read_project(results.folder)
    curves = figure_of(partial(plot_curves, project), tmp_path)
    (key,) = curves.legends
    assert {text.get_text() for text in key.get_texts()} == set(names)
    box, whole = key.get_window_extent(), curves.bbox
    assert whole.x0 <= box.x0 <= box.x1 <= whole.x1
    assert whole.y0 <= box.y0 <= box.y1 <= min(axis.get_tightbbox().y0 for axis in curves.axes if axis.lines)
    for axis in figure_of(partial(plot_bars, project), tmp_path).axes:
        longest = max(bar.get_window_extent().x1 for bar in axis.patches)
        assert longest < min(figure.get_window_extent().x0 for figure in axis.texts)


def test_many_runs_fit(tmp_path: Path) -> None:
    names = {f"r{n}": {"seed": n} for n in range(30)}
    results = Results(tmp_path, experiment(runs=names))
    for run in names:
        results.pretrained(run, range(1, 4))
        results.stage(run, "knn", {"knn/top1@20": 40.0})
    assert "30 runs, from dark (r0) to light (r29)" in draw("curves", results)
    assert set(names) <= draw("bars", results)
    assert len(read_project(results.folder).runs) == 30
