"""The commands of video object segmentation: what they write, what their records tell, and mistakes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from davis_files import data_of, write_mask
from PIL import Image

from flsl.cli import main
from flsl.data.check import check_data
from flsl.runtime.code import code_now
from flsl.runtime.outputs import sha256_file

TINY = ["pretrain.encoder.patch_size=8", "pretrain.encoder.width=32", "pretrain.encoder.depth=1"]
TINY += ["pretrain.encoder.heads=2", "davis.size=48", "davis.multiple=8", "davis.radius=3", "compute.device=cpu"]


def run(*arguments):
    return main(["davis", *map(str, arguments)])


def test_the_commands_propagate_and_evaluate(davis, tmp_path, capsys):
    (davis / "ImageSets/2017/val.txt").write_text("one\ntwo\n")
    masks, out = tmp_path / "run" / "masks", tmp_path / "run" / "metrics.json"
    assert run("propagate", "--davis", davis, "--random-init", "--out", masks, *TINY) == 0
    assert run("evaluate", "--davis", davis, "--masks", masks, "--out", out, "--jobs", 1) == 0
    record = json.loads(out.read_text())
    assert record["stage"] == "davis"
    assert set(record["metrics"]) == {"davis/J&F-Mean"} | {
        f"davis/{measure}-{statistic}" for measure in "JF" for statistic in ("Mean", "Recall", "Decay")
    }
    assert [(row["sequence"], row["objects"]) for row in record["sequences"]] == [("one", 2), ("two", 1)]
    assert (record["params"]["radius"], record["params"]["split"]) == (3, "val")  # what propagate was told
    assert "davis/J&F-Mean\t" in capsys.readouterr().out


def test_the_figures_record_the_propagation_too(davis, tmp_path):
    (davis / "ImageSets/2017/val.txt").write_text("one\ntwo\n")
    masks, out, encoder = (tmp_path / name for name in ("run/masks", "run/metrics.json", "encoder.safetensors"))
    made = ["baseline", "--name", "x", "--out", str(tmp_path / "x"), 'baselines.x={"kind": "random"}', *TINY]
    assert main(made) == 0
    (tmp_path / "x/backbone.safetensors").rename(encoder)
    check_data(data_of(davis), tmp_path / "results/p/data/davis")
    chosen = ["--davis", davis, *TINY, "project=p", f"results={tmp_path / 'results'}"]
    assert run("propagate", *chosen, "--backbone", encoder, "--out", masks) == 0
    records = [masks.parent / "masks-previews" / f"{name}.json" for name in ("one", "two")]
    texts = [json.loads(path.read_text()) for path in records]
    texts[1]["provenance"]["code"]["flsl.video.affinity"] = "of another day"
    texts[1]["provenance"]["seconds"] = 1000.0
    for path, text in zip(records, texts, strict=True):
        text["provenance"]["code"]["flsl.runtime.outputs"] = "older than the evaluation's"
        path.write_text(json.dumps(text))
    assert run("evaluate", *chosen, "--masks", masks, "--out", out, "--jobs", 1) == 0
    facts = json.loads(out.read_text())["provenance"]
    manifest = tmp_path / "results/p/data/davis/manifest.json"
    files = {str(encoder), str(manifest), str(davis / "ImageSets/2017/val.txt")}
    assert facts["inputs"].keys() == facts["input_stamps"].keys() == files
    assert facts["code"]["flsl.video.propagate"] == code_now(["flsl.video.propagate"])["flsl.video.propagate"]
    assert facts["code"]["flsl.video.affinity"] == "mixed"
    assert facts["code"]["flsl.runtime.outputs"] == "older than the evaluation's"
    assert "flsl.video.davis_eval" in facts["code"]
    assert 1000 < facts["seconds"] < 1500
    assert facts["started"] == texts[0]["provenance"]["started"]

    # where one sequence's frames are others, the other one stays; the figures are of the data set as it is now
    Image.new("RGB", (60, 48)).save(davis / "JPEGImages/480p/two/00004.jpg")
    kept = records[0].read_text()
    kept = kept.replace("older than the evaluation's", str(code_now(["flsl.runtime.outputs"])["flsl.runtime.outputs"]))
    records[0].write_text(kept)
    check_data(data_of(davis), manifest.parent)
    assert run("propagate", *chosen, "--backbone", encoder, "--out", masks) == 0
    assert (records[0].read_text(), "mixed" in records[1].read_text()) == (kept, False)
    assert run("evaluate", *chosen, "--masks", masks, "--out", out, "--jobs", 1) == 0
    facts = json.loads(out.read_text())["provenance"]
    assert facts["inputs"] == {str(path): sha256_file(path) for path in files}
    assert facts["code"] == code_now(facts["code"])


def test_masks_are_kept_for_other_splits_and_figures_name_the_evaluated_one(davis, tmp_path, capsys):
    for split, names in {"train": "two", "val": "one", "all": "one\ntwo"}.items():
        (davis / f"ImageSets/2017/{split}.txt").write_text(names)
    masks, out = tmp_path / "masks", tmp_path / "metrics.json"
    for split in ("train", "val", "all"):
        assert run("propagate", "--davis", davis, *TINY, "--random-init", "--out", masks, "--split", split) == 0
    assert capsys.readouterr().err.count("kept") == 2
    for split, count in {"all": 2, "val": 1}.items():
        chosen = ["--davis", davis, "--split", split]
        assert run("evaluate", *chosen, "--masks", masks, "--out", out, "--jobs", 1) == 0
        record = json.loads(out.read_text())
        assert (record["params"]["split"], len(record["sequences"])) == (split, count)


def test_masks_from_elsewhere_are_not_taken_for_the_encoders(davis, tmp_path, capsys):
    (davis / "ImageSets/2017/val.txt").write_text("one\ntwo\n")
    masks, previews, out = (tmp_path / "run" / name for name in ("masks", "masks-previews", "metrics.json"))
    assert run("propagate", "--davis", davis, *TINY, "--random-init", "--out", masks) == 0
    shutil.copytree(davis / "Annotations/480p", tmp_path / "run/others")
    evaluate = ["evaluate", "--davis", davis, *TINY, "--out", out, "--jobs", 1, "--previews", previews, "--masks"]
    assert run(*evaluate, tmp_path / "run/others", "--sheets", tmp_path / "sheets") == 2
    assert "masks-previews holds no contact sheets of" in capsys.readouterr().err
    assert not (tmp_path / "sheets").exists()
    assert run(*evaluate, tmp_path / "run/others") == 0
    record = json.loads(out.read_text())
    assert record["metrics"]["davis/J-Mean"] == 100
    assert record["params"].keys() == {"split", "year", "resolution"}
    assert "run/others/one: not the masks that" in capsys.readouterr().err
    assert run(*evaluate, masks) == 0
    assert json.loads(out.read_text())["params"]["radius"] == 3


def test_splits_years_and_sequences_are_chosen_on_the_command_line(davis, tmp_path):
    (davis / "ImageSets/2016").mkdir()
    (davis / "ImageSets/2016/test-dev.txt").write_text("one\nsingle\n")
    for path in sorted((davis / "Annotations/480p/one").iterdir())[1:]:
        path.unlink()
    chosen = ["--davis", davis, "--split", "test-dev", "--year", 2016]
    assert run("propagate", *chosen, "--copy-first-mask", "--out", tmp_path / "a" / "masks") == 0
    assert [path.name for path in sorted((tmp_path / "a" / "masks").iterdir())] == ["one", "single"]
    assert (
        run("propagate", *chosen, "--copy-first-mask", "--out", tmp_path / "b" / "m", "--sequences", "one", *TINY) == 0
    )
    assert [path.name for path in (tmp_path / "b" / "m").iterdir()] == ["one"]


def test_the_resolution_is_a_setting_of_the_data(davis, tmp_path):
    for kind in ("JPEGImages", "Annotations"):
        (davis / kind / "480p").rename(davis / kind / "Full-Resolution")
    masks, out = tmp_path / "masks", tmp_path / "metrics.json"
    chosen = ["--davis", davis, "data.davis.resolution=Full-Resolution"]
    assert run("propagate", *chosen, "--copy-first-mask", "--out", masks) == 0
    assert run("evaluate", *chosen, "--masks", masks, "--out", out, "--jobs", 1, "--sequences", "one") == 0
    assert json.loads(out.read_text())["params"]["resolution"] == "Full-Resolution"


def test_a_split_without_annotations_gives_masks_and_a_record_without_figures(davis, tmp_path, capsys):
    (davis / "ImageSets/2017/test-dev.txt").write_text("one\n")
    for path in sorted((davis / "Annotations/480p/one").iterdir())[1:]:
        path.unlink()
    chosen = ["--davis", davis, "--split", "test-dev"]
    masks, out = tmp_path / "a" / "masks", tmp_path / "a" / "metrics.json"
    assert run("propagate", *chosen, "--copy-first-mask", "--out", masks) == 0
    assert run("evaluate", *chosen, "--masks", masks, "--out", out) == 2
    assert "only the first frame is annotated" in capsys.readouterr().err
    assert not out.exists()
    sheets = tmp_path / "a" / "sheets"
    assert run("evaluate", *chosen, "--masks", masks, "--out", out, "--where-annotated", "--sheets", sheets) == 0
    assert json.loads(out.read_text())["metrics"] == {}
    assert [path.name for path in sheets.iterdir()] == ["one.jpg"]


def test_masks_made_with_several_settings_are_not_evaluated_together(davis, tmp_path, capsys):
    masks = tmp_path / "masks"
    common = ["propagate", "--davis", davis, "--out", masks, "--random-init", *TINY]
    assert run(*common, "--sequences", "one") == 0
    assert run(*common, "--sequences", "two", "davis.radius=2") == 0
    out = tmp_path / "metrics.json"
    assert run("evaluate", "--davis", davis, "--masks", masks, "--out", out, "--sequences", "one", "two") == 2
    assert "made with radius 2, other sequences with 3" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["propagate", "--out", "m", "--copy-first-mask"], "--davis: name the folder"),
        (["propagate", "--davis", "nowhere", "--out", "m", "--copy-first-mask"], "nowhere: no such folder"),
        (["propagate", "--davis", "D", "--out", "m"], "--backbone: name the encoder"),
        (["propagate", "--davis", "D", "--out", "m", "--copy-first-mask", "--random-init"], "needs no encoder"),
        (["propagate", "--davis", "D", "--out", "m", "--copy-first-mask", "--sequences", "oen"], "did you mean 'one'"),
        (["propagate", "--davis", "D", "--out", "m", "--copy-first-mask", "--sequences", "../one"], "no plain name"),
        (["propagate", "--davis", "D", "--out", "m", "--copy-first-mask", "--split", "dev"], "there is val"),
        (["propagate", "--davis", "D", "--out", "m", "--backbone", "b.safetensors"], "b.safetensors: no such file"),
        (["evaluate", "--davis", "D", "--masks", "m", "--out", "o.json"], "m/one: no such folder"),
        (["evaluate", "--davis", "D", "--masks", "m", "--out", "o.json", "davis.radius=0"], "davis.radius"),
    ],
)
def test_the_users_mistakes_are_one_line_and_exit_code_2(davis, monkeypatch, capsys, arguments, message):
    monkeypatch.chdir(davis.parent)
    davis.rename(davis.parent / "D")
    assert main(["davis", *arguments]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert error[-1].startswith("flsl: error: ")
    assert message in error[-1]
    assert not (davis.parent / "m").exists()


@pytest.mark.parametrize("part", ["Annotations", "JPEGImages"])
def test_masks_do_not_take_the_place_of_the_data(davis, capsys, part):
    before = {path: path.read_bytes() for path in davis.rglob("*") if path.is_file()}
    assert run("propagate", "--davis", davis, "--copy-first-mask", "--out", davis / part / "480p") == 2
    assert "holds the data set's own files" in capsys.readouterr().err
    assert {path: path.read_bytes() for path in davis.rglob("*") if path.is_file()} == before


def test_an_empty_first_mask_is_named_by_the_command(davis, tmp_path, capsys):
    write_mask(davis / "Annotations/480p/one/00000.png", np.zeros((52, 90)))
    arguments = ["propagate", "--davis", davis, "--random-init", "--out", tmp_path / "m", "--sequences", "one", *TINY]
    assert run(*arguments) == 2
    assert "00000.png: the first mask is empty" in capsys.readouterr().err
