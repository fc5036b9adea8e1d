"""Mistakes of the user: each is one line that names the setting or the file, and exit code 2; nothing half-written."""

import argparse
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
import yaml
from PIL import Image

from flsl.cli import build_parser, main
from flsl.runtime.errors import UserError
from flsl.runtime.outputs import write_json

Make = Callable[[Path], list[str]]
TINY = [
    *("pretrain.encoder.name=vit_tiny_patch16_224", "pretrain.encoder.patch_size=8", "pretrain.encoder.width=16"),
    *("pretrain.encoder.depth=2", "pretrain.encoder.heads=2", "pretrain.views.teacher_size=16"),
    *("pretrain.views.global_size=16", "pretrain.views.local_crops=0", "pretrain.head.hidden=8"),
    *("pretrain.head.bottleneck=4", "pretrain.prototypes=4", "pretrain.epochs=1", "pretrain.batch_size=2"),
    *("pretrain.precision=float32", "pretrain.online_knn_every=0", "tracking.live=false", "compute.workers=0"),
    *("features.resize=16", "features.crop=16", "compute.device=cpu"),
]

# of one image a step: a single window in its only view
ONE_TOKEN = (
    *("pretrain.batch_size=1", "pretrain.views.local_crops=0"),
    *("pretrain.views.global_size=32", "pretrain.query_window=2"),
)


def config(text: str, *overrides: str) -> Make:
    def make(place: Path) -> list[str]:
        (place / "a.yaml").write_text(text, encoding="utf-8")
        return ["config", "--config", str(place / "a.yaml"), *overrides]

    return make


def image_folder(place: Path, splits: tuple[str, ...] = ("train", "val"), count: int = 4) -> Path:
    for split in splits:
        for index in range(count):
            path = place / "set" / split / "ab"[index % 2] / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (20, 20), (index * 40, 0, 0)).save(path)
    return place / "set"


def check(place: Path, root: Path, *overrides: str) -> list[str]:
    return ["data", "check", "images", "--root", str(root), "--out", str(place / "manifest"), *overrides]


def manifest(place: Path) -> Path:
    assert main(check(place, image_folder(place))) == 0
    return place / "manifest"


def pretrain(place: Path, *overrides: str) -> list[str]:
    return ["pretrain", "--images", str(manifest(place)), "--out", str(place / "out"), *TINY, *overrides]


def removed_image(place: Path) -> list[str]:
    arguments = pretrain(place)
    (place / "set" / "train" / "a" / "0.png").unlink()
    return arguments


def emptied_images(place: Path) -> list[str]:
    root = image_folder(place)
    for path in root.rglob("*.png"):
        path.write_bytes(b"")
    return check(place, root)


def file_as_out(place: Path) -> list[str]:
    (place / "out").write_text("a file")
    return pretrain(place)


def damaged_only_checkpoint(place: Path) -> list[str]:
    arguments = pretrain(place)
    (place / "out" / "checkpoints").mkdir(parents=True)
    (place / "out" / "checkpoints" / "step-000000001.pth").write_bytes(b"PK\x03\x04 cut off")
    return arguments


def knn_with(name: str, write: Callable[[Path], object]) -> Make:
    def make(place: Path) -> list[str]:
        write(place / name)
        images = str(manifest(place))
        return [
            "knn",
            "--backbone",
            str(place / name),
            "--images",
            images,
            "--out",
            str(place / "knn"),
            "knn.k=[1]",
            *TINY,
        ]

    return make


def export_of(name: str, write: Callable[[Path], object]) -> Make:
    def make(place: Path) -> list[str]:
        write(place / name)
        return ["export", "--checkpoint", str(place / name), "--out", str(place / "out.safetensors")]

    return make


def odd_positions(path: Path) -> None:
    state = {"patch_embed.proj.weight": torch.zeros(64, 3, 8, 8), "blocks.0.norm1.weight": torch.zeros(64)}
    torch.save({**state, "pos_embed": torch.zeros(1, 7, 64)}, path)


def missing_weights(path: Path) -> None:
    torch.save({"patch_embed.proj.weight": torch.zeros(64, 3, 8, 8), "blocks.0.norm1.weight": torch.zeros(64)}, path)


class Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.system, ("touch harmed",))


CASES: dict[str, tuple[Make, str]] = {
    "missing config": (lambda place: ["config", "--config", str(place / "a.yaml")], "a.yaml: no such config file"),
    "config is a list": (config("[1, 2]"), "a.yaml: a config is a mapping of settings, not a list"),
    "config is no YAML": (config("a: [1"), "a.yaml: not valid YAML in line"),
    "config is binary": (config("\x00\x01"), "a.yaml"),
    "config extends itself": (config("extends: a.yaml"), "extends itself"),
    "extended file is missing": (config("extends: b.yaml"), "b.yaml: no such config file"),
    "project is missing": (config("seed: 1"), "project: this setting is needed"),
    "unknown setting": (config("{project: a, pretrian: {}}"), "pretrian: unknown setting (did you mean 'pretrain'?)"),
    "unknown nested": (config("{project: a, knn: {temprature: 1}}"), "(did you mean 'temperature'?)"),
    "wrong type": (config("{project: a, seed: x}"), 'seed: input should be a valid integer, not "x"'),
    "bool for number": (config("{project: a, seed: true}"), "seed: input should be a valid integer, not true"),
    "out of range": (config("{project: a, pretrain: {views: {jitter: 1.5}}}"), "less than or equal to 1, not 1.5"),
    "not finite": (config("project: a", "pretrain.learning_rate=.inf"), "input should be a finite number"),
    "unknown section": (
        config("project: a", "pretrian.epochs=3"),
        "the command line: pretrian: unknown setting (did you mean 'pretrain'?)",
    ),
    "empty list": (config("project: a", "knn.k=[]"), "the command line: knn.k: list should have at least 1 item"),
    "range upside down": (config("project: a", "pretrain.views.local_scale=[0.4,0.1]"), "write [0.1, 0.4]"),
    "size and patch": (
        config("project: a", "pretrain.views.local_size=100"),
        "100 is not a multiple of encoder.patch_size",
    ),
    "window too large": (
        config("project: a", "pretrain.query_window=7"),
        "query_window: 7 is larger than the 6 tokens",
    ),
    "micro-batches": (config("project: a", "pretrain.accumulate=3"), "accumulate: 3 does not divide batch_size"),
    "one token": (
        config("project: a", *ONE_TOKEN, "pretrain.head.batch_norm=true"),
        "head.batch_norm: a step has a single query",
    ),
    "override without value": (config("project: a", "pretrain.epochs"), "an override is written as setting=value"),
    "below a value": (config("{project: a, seed: 1}", "seed.x=2"), "'seed' is a single value"),
    "unsafe project name": (config("project: ../up"), "a name takes letters, digits"),
    "unknown stage": (config("{project: a, stages: [knn, linaer]}"), "stages.1: input should be 'knn'"),
    "unknown run": (
        lambda place: [*config("project: a")(place), "--run", "bse"],
        "runs.bse: no such run (did you mean 'base'?)",
    ),
    "no data set": (lambda place: check(place, place / "nowhere"), "nowhere"),
    "no images": (lambda place: check(place, place), "train: no such folder; data.images.train needs it"),
    "only empty files": (emptied_images, "none of its 4 file(s) is a readable image"),
    "missing validation split": (lambda place: check(place, image_folder(place, ("train",))), "val"),
    "path out of the data set": (lambda place: check(place, image_folder(place), "data.images.val=../x"), ".."),
    "no manifest": (
        lambda place: ["pretrain", "--images", str(place), "--out", str(place / "out"), *TINY],
        "manifest.json: no such file",
    ),
    "batch larger than data": (
        lambda place: pretrain(place, "pretrain.batch_size=64"),
        "more than the 4 training images",
    ),
    "image gone since the check": (removed_image, "0.png"),
    "out is a file": (file_as_out, "out"),
    "unknown timm model": (
        lambda place: pretrain(place, "pretrain.encoder.name=vit_smal"),
        "timm has no model 'vit_smal'",
    ),
    "heads do not divide width": (
        lambda place: pretrain(place, "pretrain.encoder.heads=3"),
        "width must be a multiple",
    ),
    "no CUDA": (lambda place: pretrain(place, "compute.device=cuda"), "finds no working CUDA"),
    "only checkpoint damaged": (damaged_only_checkpoint, "none of its 1 checkpoints can be read"),
    "backbone missing": (
        lambda place: [
            "knn",
            "--backbone",
            str(place / "b"),
            "--images",
            str(manifest(place)),
            "--out",
            str(place / "k"),
        ],
        "no such file; an encoder's weights",
    ),
    "backbone is text": (
        knn_with("b.safetensors", lambda p: p.write_text("hello")),
        "b.safetensors: cannot be read as a",
    ),
    "backbone truncated": (
        knn_with("b.pth", lambda p: p.write_bytes(b"PK\x03\x04")),
        "b.pth: cannot be read as a checkpoint",
    ),
    "checkpoint with code in it": (
        export_of("c.pth", lambda p: torch.save({"a": Harmful()}, p)),
        "tensors and plain data",
    ),
    "checkpoint of something else": (
        export_of("c.pth", lambda p: torch.save({"layer1.weight": torch.zeros(2)}, p)),
        "holds no vision transformer",
    ),
    "checkpoint is a list": (
        export_of("c.pth", lambda p: torch.save([1], p)),
        "where a dictionary of tensors is expected",
    ),
    "positions make no square": (export_of("c.pth", odd_positions), "7 positions make no square grid"),
    "weights missing": (export_of("c.pth", missing_weights), "its weights do not fit the model"),
    "safetensors of something else": (
        export_of("c.safetensors", lambda p: safetensors.torch.save_file({"x": torch.zeros(1)}, p)),
        "c.safetensors: holds no vision transformer",
    ),
    "unknown baseline": (
        lambda place: ["baseline", "--name", "untraind", "--out", str(place / "out")],
        "baselines.untraind: no such baseline (did you mean 'untrained'?)",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_one_line_and_exit_code_2(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "no CUDA" and torch.cuda.is_available():
        pytest.skip("CUDA works here")
    monkeypatch.chdir(tmp_path)
    make, words = CASES[name]
    arguments = make(tmp_path)
    capsys.readouterr()
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    code = main(arguments)
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert code == 2
    assert last.startswith("flsl: error: ")
    assert words in last
    # nothing that was there is changed, nothing that looks like a result is left
    assert all(path.read_bytes() == content for path, content in before.items())
    new = {path.name for path in tmp_path.rglob("*") if path.is_file()} - {path.name for path in before}
    assert not new & {"metrics.json", "backbone.safetensors", "checkpoint.pth", "out.safetensors", "harmed"}
    assert not [name for name in new if name.endswith(".tmp")]


def test_usage_errors_have_exit_code_2_too(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(["pretrian"])
    assert stop.value.code == 2
    assert "invalid choice: 'pretrian'" in capsys.readouterr().err


def test_all_help_fits_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "122")
    parsers = [build_parser()]
    for parser in parsers:
        for action in parser._actions:
            if isinstance(action, argparse._SubParsersAction):
                parsers += action.choices.values()
    assert len(parsers) > 30
    assert [line for parser in parsers for line in parser.format_help().splitlines() if len(line) > 120] == []


def test_settings_may_stand_on_both_sides_of_an_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "a.yaml").write_text("{project: a, data: {images: {root: images}}, stages: []}")
    assert main(["config", "seed=1", "--config", str(tmp_path / "a.yaml"), "seed=2", "pretrain.epochs=7"]) == 0
    written = yaml.safe_load(capsys.readouterr().out)
    assert (written["seed"], written["pretrain"]["epochs"]) == (2, 7)
    for wrong in ("--sed=3", "epochs"):
        with pytest.raises(SystemExit) as caught:
            main(["config", "seed=1", "--config", str(tmp_path / "a.yaml"), "seed=2", wrong])
        assert caught.value.code == 2
        assert "unrecognized arguments" in capsys.readouterr().err


def test_folder_without_permission_is_one_line(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    mine = os.geteuid()
    if mine == 0:
        # root may write anywhere: be nobody for a moment
        os.seteuid(65534)
    try:
        with pytest.raises(UserError, match=r"metrics.json: cannot be written: no permission to write there"):
            write_json(locked / "metrics.json", {})
    finally:
        os.seteuid(mine)
    assert not list(locked.iterdir())


def test_authors_checkpoint_with_their_arguments_is_read(tmp_path: Path) -> None:
    """The released code and DINO save their parsed arguments beside the weights."""
    from flsl.config.pretrain import EncoderSettings
    from flsl.model.backbone import load_backbone
    from flsl.model.vit import build_encoder

    settings = EncoderSettings(name="vit_tiny_patch16_224", patch_size=8, width=128, depth=2, heads=2)
    encoder = build_encoder(settings, 32).eval()
    weights = {f"module.backbone.{key}": value for key, value in encoder.state_dict().items()}
    head = {"module.head.mlp.0.weight": torch.zeros(3, 128)}
    state = {"student": {}, "teacher": weights | head, "args": argparse.Namespace(arch="vit_small"), "epoch": 3}
    torch.save(state, tmp_path / "c.pth")
    images = torch.rand(2, 3, 32, 32)
    assert main(["export", "--checkpoint", str(tmp_path / "c.pth"), "--out", str(tmp_path / "b.safetensors")]) == 0
    torch.testing.assert_close(
        load_backbone(tmp_path / "b.safetensors").tokens(images), encoder.forward_features(images)
    )


def test_manifest_of_damaged_json_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = pretrain(tmp_path)
    path = tmp_path / "manifest" / "manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()))[:40])
    capsys.readouterr()
    assert main(arguments) == 2
    assert "manifest.json" in capsys.readouterr().err.splitlines()[-1]
