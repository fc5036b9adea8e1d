"""Pages that are read in the browser: whole in one file, safe, and with everything on them."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from made_results import KNN, Results, ablated, demo, experiment

from flsl.cli import main
from flsl.report.page import page
from flsl.report.published import COCO
from flsl.report.summary import summary
from flsl.runtime.results import read_project

BOXES = {"coco/bbox/AP": 20.0, "coco/segm/AP": 18.0}


class Links(HTMLParser):
    """Collects what a page loads or links to, and the ids that it has."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("src", "srcset", "data") or (tag == "link" and name == "href"):
                self.loads.append(value or "")
            if tag == "a" and name == "href":
                self.links.append(value or "")
            if name == "id":
                self.ids.append(value or "")


def test_the_summary_is_one_page_that_needs_no_network(tmp_path: Path) -> None:
    results = demo(tmp_path)
    out = tmp_path / "summary.html"
    assert main(["report", "summary", "--project-folder", str(results.folder), "--out-html", str(out)]) == 0
    text = out.read_text()
    found = Links(text)
    assert found.loads == []
    assert "@import" not in text
    assert "url(" not in text
    assert {link.removeprefix("#") for link in found.links if link.startswith("#")} <= set(found.ids)
    assert text.count("<table>") >= 4
    assert "<strong>55.50</strong>" in text


def test_the_summarys_page_links_to_no_other_file_and_names_the_ablations_tables(tmp_path: Path) -> None:
    two = {"grid": {"pretrain.prototypes": [16, 4096]}, "caption": "How many."}
    results = ablated(tmp_path, {"a": two, "b": {"seeds": [0, 1]}})
    results.manifest()
    folder = str(results.folder)
    assert main(["ablation", "table", "--project-folder", folder]) == 0
    out = {kind: results.folder / f"summary.{kind}" for kind in ("html", "md")}
    command = ["report", "summary", "--project-folder", folder, "--out-html", str(out["html"])]
    assert main([*command, "--out-md", str(out["md"])]) == 0
    text = out["html"].read_text()
    # the report shows it in a frame that has no folder
    assert all(link.startswith("#") for link in Links(text).links)
    assert "a (<code>ablations/a/table.html</code>): How many. (2 runs)" in text
    assert (results.folder / "ablations/a/table.html").is_file()
    for line in ("[a](ablations/a/table.md): How many.", "[b](ablations/b/table.md): seeds"):
        assert f"- {line} (2 runs)\n" in out["md"].read_text()


def test_text_from_files_stays_text() -> None:
    text = page("# <script>alert(1)</script>\n\n| a |\n|---|\n| <img src=x onerror=y> |\n\n[x](javascript:y)", "<b>")
    assert not re.search(r"<(script|img|b)[ >]", text)
    assert Links(text).links == []


def test_a_runs_page_says_what_it_came_from(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = demo(tmp_path)
    out = tmp_path / "about.html"
    command = ["report", "run", "--project-folder", str(results.folder)]
    assert main([*command, "--run", "wide", "--out", str(out)]) == 0
    text = out.read_text()
    for expected in ("node7", "cuda: NVIDIA H100", "0123abcd0123", "2.6.0", "prototypes: 8192", "55.5", "12 s"):
        assert expected in text
    assert Links(text).loads == []
    pages = tmp_path / "pages"
    assert main(["report", "summary", "--project-folder", str(results.folder), "--out-pages", str(pages)]) == 0
    assert sorted(path.name for path in pages.iterdir()) == ["base.html", "untrained.html", "wide.html"]
    assert (pages / "wide.html").read_text() == text
    assert main([*command, "--run", "wild"]) == 2
    assert "has no run 'wild' (did you mean 'wide'?)" in " ".join(capsys.readouterr().err.split())


def test_the_papers_stand_beside_coco_figures_only_and_are_called_so(tmp_path: Path) -> None:
    results = demo(tmp_path)
    csv = tmp_path / "summary.csv"
    command = ["report", "summary", "--project-folder", str(results.folder), "--out-csv", str(csv)]
    assert "2306.13337" not in summary(read_project(results.folder))
    assert main(command) == 0
    assert "paper" not in csv.read_text()
    results.stage("base", "coco", BOXES)
    text = summary(read_project(results.folder))
    section = text.split("### From the papers, not measured here")[1].split("\n## ")[0]
    for row in (("SelfPatch", "42.1", "38.5"), ("ADCLR", "44.3", "39.7"), ("FLSL", "44.9", "40.8")):
        assert any(all(cell in line for cell in row) for line in section.splitlines())
    assert main(command) == 0
    table = pd.read_csv(csv)
    papers = table[table["kind"] == "paper"].set_index("run")
    assert papers.loc["FLSL, ViT-S/8", "coco/bbox/AP"] == 46.5
    assert papers["source"].notna().all()
    assert papers["knn/top1@20"].isna().all()
    assert len(papers) == len(COCO) == 4
    # they are no runs: neither best, nor counted
    assert "2 pretraining runs and 1 baseline" in text
    assert list(table["run"])[:3] == ["base", "wide", "untrained"]


def test_gains_of_detection_are_told_and_weighed_by_seeds(tmp_path: Path) -> None:
    results = Results(tmp_path, experiment(runs={"base": {}, "again": {"seed": 1}, "few": {"pretrain.prototypes": 8}}))
    box = {"base": 24.0, "again": 20.0, "few": 23.0, "untrained": 22.0}
    for run, value in box.items():
        results.baseline() if run == "untrained" else results.pretrained(run)
        results.stage(run, "coco", {"coco/bbox/AP": value, "coco/segm/AP": value})
        results.stage(run, "uavdt", {"uavdt/AP@0.7": 30.0 if run == "untrained" else 29.0})
    text = summary(read_project(results.folder))
    line = next(line for line in text.splitlines() if line.startswith("- COCO box AP"))
    # sqrt((2² + 2²) / 1)
    assert "Seeds alone make a standard deviation of 2.83 (from 2 runs)." in line
    assert "no clear gain: `base`, `few`." in line
    assert "**Pretraining does not beat the untrained encoder in `again`.**" in line
    line = next(line for line in text.splitlines() if line.startswith("- UAVDT AP@0.7"))
    assert "0 of 3 runs better" in line
    assert "does not beat the untrained encoder in `again`, `base`, `few`" in line


def test_many_runs_do_not_make_the_page_long(tmp_path: Path) -> None:
    names = {f"r{n}": {"seed": n} for n in range(60)}
    results = Results(tmp_path, experiment(runs=names, stages=["knn"]))
    results.baseline()
    results.stage("untrained", "knn", KNN)
    for n, run in enumerate(names):
        results.pretrained(run)
        results.stage(run, "knn", {name: value + n / 10 for name, value in KNN.items()})
    text = summary(read_project(results.folder))
    headline = text.split("## Headline figures")[1].split("\n## ")[0]
    assert "all 61 are in `summary.csv`" in headline
    assert "`r59`" in headline
    assert "`untrained`" in headline
    assert "`r3` " not in headline
    assert len(headline.splitlines()) < 40
    assert "59 of 60 runs better" in text
