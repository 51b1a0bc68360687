"""How long the rows of a large evaluation take to read and to report. Not a test.

The rows are made up, without a model: 50,000 images x 15 methods by eight processes, as
an evaluation of ILSVRC's validation images writes them.
"""

import random
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from captum_unioncam._files import strict_json
from captum_unioncam.evaluation.measuring import CURVE_DIGITS
from captum_unioncam.evaluation.report import write_report
from captum_unioncam.evaluation.row import Row
from captum_unioncam.evaluation.storage import finished_rows, read_maps, read_rows

PROCESSES = 8
METRICS = ("drop", "complexity", "increase", "insertion", "deletion", "energy")
SIDE = 7  # of a map


def head(index: int, method: str) -> Row:
    """Returns what a row of the runner says first."""
    return {
        "index": index,
        "id": f"val/n{index // 50:08}/ILSVRC2012_val_{index + 1:08}.JPEG",
        "file": f"{index:032x}",
        "target": index // 50,
        "target_name": f"class {index // 50}",
        "method": method,
    }


def tail(steps: int, draw: random.Random) -> Row:
    """Returns what a row says then, in random numbers."""
    curves = [
        [round(draw.random(), CURVE_DIGITS) for _ in range(steps + 1)] for _ in range(2)
    ]
    return {
        "metrics": {name: draw.random() for name in METRICS},
        "curves": dict(zip(("insertion", "deletion"), curves, strict=True)),
        "constant_map": False,
        "broken_map": False,
        "map": [[round(draw.random(), 5) for _ in range(SIDE)] for _ in range(SIDE)],
        "seconds": draw.random(),
        "forwards": 37.0,
    }


def write_rows(folder: Path, images: int, methods: list[str], steps: int) -> None:
    """Writes the files of rows of several processes.

    The numbers repeat after some rows, which saves most of the time.
    """
    draw = random.Random(0)
    tails = [strict_json(tail(steps, draw))[1:] for _ in range(997)]
    for process in range(PROCESSES):
        with (folder / f"rows-{process:05d}.jsonl").open("w") as file:
            for index in range(process, images, PROCESSES):
                for number, method in enumerate(methods):
                    start = strict_json(head(index, method))[:-1]
                    rest = tails[(index * len(methods) + number) % len(tails)]
                    file.write(f"{start}, {rest}\n")


def stages(folder: Path, images: int, methods: list[str]) -> Iterator[tuple[str, Any]]:
    """Yields what happens to the rows, in the order of an evaluation's end."""
    names = [head(index, "")["id"] for index in range(images)]
    places = {name: place for place, name in enumerate(names)}
    context = {"command": "", "config": {}, "hardware": "", "images": images, "seed": 0}
    context |= {"methods": methods, "metrics": list(METRICS), "versions": {}}
    rows: list[Row] = []
    yield "resume: which rows are there", lambda: finished_rows(folder)
    yield "merge: all rows", lambda: rows.extend(read_rows(folder, places, methods))
    yield "report", lambda: write_report(folder / "report", rows, context)
    wanted = {(name, method) for name in names[:6] for method in methods}
    yield "maps of the gallery", lambda: read_maps(folder, wanted)


def storage(folder: Path, images: int, count: int, steps: int) -> str:
    """Returns the seconds and the peak memory of each stage, as a table in Markdown.

    Every stage is one thread, so that its seconds are the processor's."""
    methods = [f"method{i}" for i in range(count)]
    write_rows(folder, images, methods, steps)
    size = sum(path.stat().st_size for path in folder.glob("*.jsonl")) / 2**30
    lines = [f"{images} images x {count} methods, {steps} steps, {size:.2f} GiB", ""]
    lines += ["| stage | seconds | peak memory, GiB |", "| --- | ---: | ---: |"]
    lines.append(f"| before: torch and the package | | {peak_gib():.2f} |")
    total = 0.0
    for name, run in stages(folder, images, methods):
        seconds = timed(run)
        total += seconds
        lines.append(f"| {name} | {seconds:.1f} | {peak_gib():.2f} |")
    return "\n".join([*lines, f"| all | {total:.1f} | {peak_gib():.2f} |"])


def timed(run: Callable[[], object]) -> float:
    """Returns the processor's seconds of a run, whose result is dropped."""
    start = time.process_time()
    run()
    return time.process_time() - start


def peak_gib() -> float:
    """Returns the most memory that this process has had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
