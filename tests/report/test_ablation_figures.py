"""Figures of ablations: the kind that suits what is varied, and that all words are on them and none on another."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from drawn import figure_of
from made_results import Results, ablated, table_of
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox
from PIL import Image

from flsl.report.ablation_figures import kind_of, plot_ablation


@pytest.mark.parametrize(
    ("ablation", "kind"),
    [
        ({"grid": {"pretrain.prototypes": [16, 4096, 8192]}}, "lines"),
        ({"grid": {"pretrain.prototypes": [16, 4096, 8192]}, "categorical": True}, "bars"),
        ({"grid": {"pretrain.tau_sa": [0.05, 0.1], "pretrain.tau_ca": [0.1, 0.2, 0.4]}, "seeds": [0, 1]}, "map"),
        ({"grid": {"pretrain.query_window": [1, 2], "pretrain.query_sampling": ["random", "first"]}}, "bars"),
        ({"points": [{"pretrain.tau_sa": 0.05}, {"pretrain.tau_ca": 0.4}, {}]}, "bars"),
        ({"points": {"one": {}, "two": {"pretrain.prototypes": 16}}}, "bars"),
        ({"grid": {"pretrain.tau_ca": [0.2, {"start": 0.1, "end": 0.4}]}}, "bars"),
        ({"seeds": [0, 1, 2]}, "bars"),
    ],
)
def test_figures_suit_what_is_varied(tmp_path: Path, ablation: dict[str, Any], kind: str) -> None:
    results = ablated(tmp_path, {"a": ablation}, lacking=("prototypes-16", "tau_sa-0.05", "tau_ca-0.4_seed-1"))
    results.baseline()
    results.stage("untrained", "knn", {"knn/top1@20": 26.0})
    found = table_of(results)
    assert kind_of(found) == kind
    path = tmp_path / "figure.svg"
    plot_ablation(found, [path, tmp_path / "figure.png"])
    with Image.open(tmp_path / "figure.png") as image:
        assert min(image.size) > 200
    shown = re.findall(r"<text[^>]*>([^<]*)</text>", path.read_text())
    text = " ".join(shown)
    assert "ablation a" in text
    assert "k-NN top-1 (k = 20)" in text
    assert ("missing" in text or " of " in text) == bool(found.missing)
    axes = [name.removeprefix("pretrain.") for name in found.ablation.axes]
    if not isinstance(ablation.get("points"), dict):
        assert all(axis in text for axis in axes)
    if kind == "map":
        means = found.means("knn/top1@20")
        assert all(any(f"{mean:.1f}" in one for one in shown) for mean in means if mean is not None)


def drawn(results: Results, folder: Path) -> Figure:
    """Return the figure of the ablation ``a``."""
    return figure_of(partial(plot_ablation, table_of(results)), folder)


def boxes(texts: Iterable[Text]) -> list[Bbox]:
    return [text.get_window_extent() for text in texts if text.get_text()]


@pytest.mark.parametrize("stages", [["knn"], ["knn", "linear"]])
@pytest.mark.parametrize(
    "grid",
    [
        {"pretrain.prototypes": [1024, 4096, 8192]},
        {"pretrain.tau_ca": [0.2, {"start": 0.1, "end": 0.4}]},
        {"pretrain.tau_sa": [0.05, 0.1], "pretrain.tau_ca": [0.1, 0.2]},
    ],
)
def test_all_words_of_a_figure_are_on_it(tmp_path: Path, grid: dict[str, Any], stages: list[str]) -> None:
    results = ablated(tmp_path, {"a": {"grid": grid, "seeds": [0, 1], "stages": stages}})
    results.baseline()
    results.stage("untrained", "knn", {"knn/top1@20": 26.0})
    figure = drawn(results, tmp_path)
    (key,) = (text for text in figure.findobj(Text) if "best" in text.get_text())
    assert "sample deviation" in key.get_text()
    # ticks beyond the scale's ends are there as well, and not drawn
    ticks = {text for axis in figure.axes for text in (*axis.get_xticklabels(), *axis.get_yticklabels())}
    whole = figure.bbox
    for box in boxes(set(figure.findobj(Text)) - ticks):
        assert whole.x0 <= box.x0 <= box.x1 <= whole.x1
        assert whole.y0 <= box.y0 <= box.y1 <= whole.y1


@pytest.mark.parametrize(
    ("setting", "values", "scale"),
    [
        ("inter_weight", [0, 0.03, 0.1, 1, 10], "even"),
        ("prototypes", [250, 255, 256, 257, 1000], "even"),
        ("prototypes", [250, 255, 256, 257, 8192], "even"),
        ("prototypes", [*range(1000, 1020)], "even"),
        ("prototypes", [512, 2048, 8192], "log"),
        ("inter_weight", [0, 0.5, 1, 2], "linear"),
    ],
)
def test_the_values_below_a_line_do_not_overlap(tmp_path: Path, setting: str, values: list[float], scale: str) -> None:
    (axis, *_) = drawn(ablated(tmp_path, {"a": {"grid": {f"pretrain.{setting}": values}}}), tmp_path).axes
    assert ("evenly spaced" in axis.get_xlabel()) == (scale == "even")
    assert axis.get_xscale() == ("log" if scale == "log" else "linear")
    labels = axis.get_xticklabels()
    assert [float(label.get_text()) for label in labels] == values
    assert all(left.x1 < right.x0 for left, right in pairwise(boxes(labels)))


def test_the_figures_beside_bars_lie_clear_of_whiskers_and_dots(tmp_path: Path) -> None:
    ablation = {"categorical": True, "grid": {"pretrain.prototypes": [16, 32]}, "seeds": list(range(16))}
    results = ablated(tmp_path, {"a": ablation}, lacking=("prototypes-16_seed-3", "prototypes-16_seed-5"))
    for axis in drawn(results, tmp_path).axes:
        assert any("(14 of 16)" in text.get_text() for text in axis.texts)
        ends = [drawing.get_window_extent().x1 for drawing in (*axis.lines, *axis.collections)]
        assert max(ends) <= axis.bbox.x1 < min(box.x0 for box in boxes(axis.texts))


@pytest.mark.parametrize(
    "ablation",
    [
        {"points": {f"{'long' * 20}-{n}": {"pretrain.epochs": n} for n in (1, 2, 3)}},
        {"grid": {"linear.learning_rates": [[0.1, 0.2, 0.01, 0.001, 0.0001, 1e-5, end] for end in (1.0, 2.0, 3.0)]}},
    ],
)
def test_bars_are_told_apart_by_names_that_are_cut(tmp_path: Path, ablation: dict[str, Any]) -> None:
    axis = drawn(ablated(tmp_path, {"a": ablation}), tmp_path).axes[0]
    names = [label.get_text() for label in axis.get_yticklabels()]
    assert len(set(names)) == 3
    assert all("…" in name and len(name) == 40 for name in names)
