"""The UAVDT layout: frames from above, and the ground truth files of the detection and tracking benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from flsl.config.data import ScenesSettings
from flsl.data.scenes.aerial import Seen, draw_frame
from flsl.data.scenes.files import Task, cut, rng_of, save_jpeg
from flsl.data.scenes.traffic import Traffic, draw_traffic

# name: weather and altitude as the benchmark lists them, all three weathers early, so that few sequences show them
TEST = {
    "M0208": ("day", "medium"), "M0203": ("night", "low"), "M0701": ("fog", "high"), "M0801": ("day", "low"),
    "M0205": ("night", "low"), "M0209": ("day", "low"), "M0403": ("day", "medium"), "M0601": ("day", "high"),
    "M0602": ("day", "medium"), "M0606": ("day", "medium"), "M0802": ("day", "low"), "M1001": ("night", "medium"),
    "M1004": ("fog", "medium"), "M1007": ("night", "medium"), "M1009": ("fog", "medium"), "M1101": ("night", "low"),
    "M1301": ("day", "medium"), "M1302": ("day", "medium"), "M1303": ("day", "low"), "M1401": ("day", "low"),
}  # fmt: skip
TRAIN = (
    "M0101", "M0201", "M0202", "M0204", "M0206", "M0207", "M0210", "M0301", "M0401", "M0402",
    "M0501", "M0603", "M0604", "M0605", "M0702", "M0703", "M0704", "M0901", "M0902", "M1002",
    "M1003", "M1005", "M1006", "M1008", "M1102", "M1201", "M1202", "M1304", "M1305", "M1306",
)  # fmt: skip
FRAMES = "UAV-benchmark-M"
TRUTH = "UAV-benchmark-MOTD_v1.0/GT"
# shares below this are a soft edge's rounding
_NOTHING = 0.01
_OUT_OF_SIGHT = 0.95


class Row(NamedTuple):
    """A vehicle's row of the ground truth; the box is left, top, width, height."""

    frame: int
    target: int
    box: tuple[int, int, int, int]
    out_of_view: int
    occlusion: int
    category: int


Result = tuple[int, list[Row], list[tuple[int, tuple[int, int, int, int]]]]


def sequences(settings: ScenesSettings) -> list[tuple[str, str, str]]:
    """Return name, weather and altitude of each sequence: half of them are in the official test list."""
    tests = _tests(settings)
    conditions = list(TEST.values())
    trains = [(name, *conditions[i % len(conditions)]) for i, name in enumerate(TRAIN)]
    return [(name, *TEST[name]) for name in list(TEST)[:tests]] + trains[: settings.uavdt_sequences - tests]


def _tests(settings: ScenesSettings) -> int:
    return min(settings.uavdt_sequences // 2, len(TEST))


def tasks(settings: ScenesSettings) -> list[Task]:
    """Return (sequence, first, last) pieces of the work; frames count from 1."""
    pieces = cut(settings.uavdt_frames, 10)
    return [(k, first + 1, last + 1) for k in range(settings.uavdt_sequences) for first, last in pieces]


def make(settings: ScenesSettings, folder: Path, task: Task) -> Result:
    """Write the frames of a piece; return its sequence, the vehicles' rows and the ignored boxes by frame."""
    sequence, first, last = task
    name = sequences(settings)[sequence][0]
    width, height = settings.uavdt_size, round(settings.uavdt_size * 540 / 1024)
    traffic = plan(settings, sequence)
    rows, ignored = [], []
    for frame in range(first, last):
        rng = rng_of(settings.seed, "uavdt", sequence, frame)
        image, seen, car_park = draw_frame(traffic, frame, height, width, rng)
        save_jpeg(folder / FRAMES / name / f"img{frame:06d}.jpg", image)
        rows += [row for one in seen if (row := _row(traffic, frame, one)) is not None]
        if car_park is not None:
            ignored.append((frame, _corner_and_size(car_park)))
    return sequence, rows, ignored


def finish(settings: ScenesSettings, folder: Path, results: list[Result]) -> dict[str, int]:
    """Write the three files of each sequence; return the counts of what was made."""
    (folder / TRUTH).mkdir(parents=True)
    boxes = 0
    for sequence, (name, *_) in enumerate(sequences(settings)):
        pieces = [result for result in results if result[0] == sequence]
        rows = _renumbered(row for _, found, _ in pieces for row in found)
        beyond = len({row.target for row in rows}) + 1
        ignored = [(frame, beyond, *box, 1, -1, -1) for *_, found in pieces for frame, box in found]
        whole = [(row.frame, row.target, *row.box, row.out_of_view, row.occlusion, row.category) for row in rows]
        # the tracking benchmark's file has no categories, and leaves out who is partly outside the frame
        tracked = [(row.frame, row.target, *row.box, 1, 1, -1) for row in rows if row.out_of_view == 1]
        for suffix, lines in (("_gt_whole", whole), ("_gt_ignore", ignored), ("_gt", tracked)):
            text = "".join(",".join(map(str, line)) + "\n" for line in lines)
            (folder / TRUTH / f"{name}{suffix}.txt").write_text(text, encoding="utf-8")
        boxes += len(rows)
    return {"sequences": settings.uavdt_sequences, "frames_each": settings.uavdt_frames, "boxes": boxes}


def plan(settings: ScenesSettings, sequence: int) -> Traffic:
    """Return all that is in a sequence, by its index."""
    _, weather, altitude = sequences(settings)[sequence]
    # the same two kinds of places take turns among the test and among the training sequences
    turn = sequence if sequence < _tests(settings) else sequence - _tests(settings)
    rng = rng_of(settings.seed, "traffic", sequence)
    return draw_traffic(rng, settings.uavdt_frames, weather, altitude, turn)


def _row(traffic: Traffic, frame: int, seen: Seen) -> Row | None:
    """Return the row of a vehicle, its target its index; None where the benchmark's rules leave it out.

    Left out are vehicles of which more than half is outside the frame, and those that nobody could see.
    """
    if seen.outside > 0.5 or seen.hidden > _OUT_OF_SIGHT:
        return None
    out_of_view = 1 if seen.outside < _NOTHING else 3 if seen.outside <= 0.3 else 2
    occlusion = 1 if seen.hidden < _NOTHING else 4 if seen.hidden <= 0.3 else 3 if seen.hidden <= 0.7 else 2
    category = traffic.driven[seen.index].vehicle.category + 1
    return Row(frame, seen.index, _corner_and_size(seen.box), out_of_view, occlusion, category)


def _renumbered(rows: Iterable[Row]) -> list[Row]:
    """Number the targets from 1 by their first frame, and sort by target and frame, as the benchmark's files are."""
    ordered = sorted(rows, key=lambda row: (row.frame, row.target))
    numbers = {old: new for new, old in enumerate(dict.fromkeys(row.target for row in ordered), 1)}
    renumbered = [row._replace(target=numbers[row.target]) for row in ordered]
    return sorted(renumbered, key=lambda row: (row.target, row.frame))


def _corner_and_size(box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    left, top, right, bottom = box
    return left, top, right - left, bottom - top
