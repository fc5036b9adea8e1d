"""``flsl detect …``, ``flsl coco evaluate`` and ``flsl uavdt evaluate``."""

from __future__ import annotations

import argparse
from pathlib import Path

from flsl.cli.common import (
    Commands,
    command,
    config_arguments,
    encoder,
    encoder_arguments,
    experiment,
)


def add(commands: Commands) -> None:
    """Add the commands of this group."""
    detect = commands.add_parser("detect", help="Fine-tune a detector on an encoder; predict with it.")
    sub = detect.add_subparsers(metavar="COMMAND", required=True, title="commands")
    _add_train(sub)
    _add_predict(sub)
    coco = commands.add_parser("coco", help="Evaluate COCO results.")
    _add_coco_evaluate(coco.add_subparsers(metavar="COMMAND", required=True, title="commands"))
    uavdt = commands.add_parser("uavdt", help="Convert UAVDT to COCO's form; evaluate UAVDT detections.")
    sub = uavdt.add_subparsers(metavar="COMMAND", required=True, title="commands")
    _add_uavdt_convert(sub)
    _add_uavdt_evaluate(sub)


def _add_train(sub: Commands) -> None:
    """Add ``flsl detect train``."""
    parser = command(
        sub,
        "train",
        _train,
        "Fine-tune Mask R-CNN on COCO, or Faster R-CNN on UAVDT, from an encoder; then predict and evaluate.",
        "A training that was killed goes on from its last checkpoint when started again.",
    )
    train_arguments(parser)


def train_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``flsl detect train`` and ``flsl submit detect`` have in common."""
    config_arguments(parser)
    parser.add_argument("--stage", choices=["coco", "uavdt"], required=True, help="data set and protocol")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to write to")
    parser.add_argument("--name", metavar="NAME", help="the run's name in the record (default: --run, or base)")
    encoder_arguments(parser)


def _train(args: argparse.Namespace) -> None:
    from flsl.detect.stage import run

    record = run(args.stage, experiment(args), encoder(args), args.out, args.name or args.run_name or "base")
    for name, value in (record["metrics"] if record else {}).items():
        print(f"{name:44} {value:6.2f}")


def _add_predict(sub: Commands) -> None:
    """Add ``flsl detect predict``."""
    parser = command(sub, "predict", _predict, "Write a trained detector's COCO results on a set of images.")
    parser.add_argument("--model", type=Path, required=True, metavar="FILE", help="model.pth of `flsl detect train`")
    parser.add_argument(
        "--annotations", type=Path, required=True, metavar="JSON", help="COCO file of images and categories"
    )
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the image files")
    parser.add_argument("--out", type=Path, required=True, metavar="JSON", help="COCO result file to write")
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto", help="default: CUDA if it works")
    parser.add_argument("--workers", type=int, default=4, metavar="N", help="loading processes (default: 4)")
    parser.add_argument("--short-side", type=int, metavar="N", help="pixels (default: as in training)")
    parser.add_argument("--batch-size", type=int, metavar="N", help="images a batch (default: as in training)")


def _predict(args: argparse.Namespace) -> None:
    from flsl.config.compute import ComputeSettings
    from flsl.detect.coco_files import read_annotations
    from flsl.detect.engines import predict_files
    from flsl.detect.predict import write_results
    from flsl.runtime.errors import UserError
    from flsl.runtime.outputs import require_place

    for name, value in (("--short-side", args.short_side), ("--batch-size", args.batch_size)):
        if value is not None and value < 1:
            raise UserError(f"{name}: {value} is not a number from 1 on")
    if args.workers < 0:
        raise UserError(f"--workers: {args.workers} is not a number from 0 on")
    changes = {"test_short_side": args.short_side, "test_batch_size": args.batch_size}
    truth = read_annotations(args.annotations, images_only=True)
    compute = ComputeSettings(device=args.device, workers=args.workers)
    require_place(args.out, (args.model, args.annotations))
    results = predict_files(
        args.model, truth, args.images, compute, {name: value for name, value in changes.items() if value is not None}
    )
    write_results(args.out, results)
    print(f"{args.out}: {len(results)} detections on {len(truth.images)} images")


def _add_coco_evaluate(sub: Commands) -> None:
    """Add ``flsl coco evaluate``."""
    parser = command(
        sub,
        "evaluate",
        _coco_evaluate,
        "Evaluate boxes and masks as pycocotools does: 12 figures each and a table of the classes.",
    )
    parser.add_argument("--annotations", type=Path, required=True, metavar="JSON", help="COCO instances_*.json")
    parser.add_argument("--detections", type=Path, required=True, metavar="JSON", help="COCO result file")
    parser.add_argument("--out", type=Path, required=True, metavar="JSON", help="metrics.json to write")
    parser.add_argument(
        "--types",
        nargs="+",
        choices=["bbox", "segm"],
        metavar="TYPE",
        help="bbox and/or segm (default: bbox, and segm where the detections have masks)",
    )
    parser.add_argument("--run", dest="run_name", default="files", metavar="NAME", help="the run's name in the output")


def _coco_evaluate(args: argparse.Namespace) -> None:
    from flsl.detect.coco_eval import FIGURES, evaluate_files

    record = evaluate_files(args.annotations, args.detections, args.out, args.types, args.run_name)
    print("      " + " ".join(f"{name:>6}" for name in FIGURES))
    for kind, stats in record["stats"].items():
        print(f"{kind:6}" + " ".join(f"{100 * value:6.2f}" if value >= 0 else "     -" for value in stats))


def _add_uavdt_evaluate(sub: Commands) -> None:
    """Add ``flsl uavdt evaluate``."""
    parser = command(
        sub,
        "evaluate",
        _uavdt_evaluate,
        "Evaluate UAVDT detections: the official AP@0.7, its attribute tables, and COCO-style AP.",
    )
    parser.add_argument("--gt", type=Path, required=True, metavar="DIR", help="folder of <sequence>_gt_whole.txt")
    parser.add_argument(
        "--detections", type=Path, required=True, metavar="DIR|JSON", help="folder of <sequence>.txt, or COCO results"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="JSON", help="metrics.json to write")
    parser.add_argument(
        "--sequences", nargs="+", metavar="NAME", help="sequences (default: the official test sequences in --gt)"
    )
    parser.add_argument(
        "--annotations", type=Path, metavar="JSON", help="COCO file of the results' image ids, if not our conversion's"
    )
    parser.add_argument("--run", dest="run_name", default="files", metavar="NAME", help="the run's name in the output")


def _uavdt_evaluate(args: argparse.Namespace) -> None:
    from flsl.detect.uavdt_eval import evaluate_files

    record = evaluate_files(args.gt, args.detections, args.out, args.sequences, args.annotations, args.run_name)
    for name, value in record["metrics"].items():
        print(f"{name:44} {value:6.2f}")


def _add_uavdt_convert(sub: Commands) -> None:
    """Add ``flsl uavdt convert``."""
    parser = command(sub, "convert", _uavdt_convert, "Write UAVDT sequences as a COCO annotation file.")
    parser.add_argument("--frames", type=Path, required=True, metavar="DIR", help="folder of <sequence>/img000001.jpg")
    parser.add_argument("--gt", type=Path, required=True, metavar="DIR", help="folder of <sequence>_gt_whole.txt")
    parser.add_argument(
        "--split", choices=["train", "test"], default="train", help="official split (30 / 20 sequences)"
    )
    parser.add_argument("--sequences", nargs="+", metavar="NAME", help="these sequences instead of a split")
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="keep every N-th frame (default: 1)")
    parser.add_argument(
        "--classes", choices=["vehicle", "each"], default="vehicle", help="one class, or car, truck and bus"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="JSON", help="COCO file to write")


def _uavdt_convert(args: argparse.Namespace) -> None:
    from flsl.detect.uavdt_convert import convert_files
    from flsl.runtime.errors import UserError

    if args.stride < 1:
        raise UserError(f"--stride: {args.stride} is not a number of frames from 1 on")
    data = convert_files(args.frames, args.gt, args.out, args.split, args.stride, args.classes, args.sequences)
    print(f"{args.out}: {len(data['images'])} images, {len(data['annotations'])} annotations")
