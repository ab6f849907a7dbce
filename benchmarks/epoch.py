"""Where the seconds of a run go, by default those of `python train.py`: `python -m benchmarks.epoch [overrides]`."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

from hydra.core.override_parser.types import Quote, QuotedString

from benchmarks.measurement import arguments, print_table, write_json
from training.defaults import CONFIGS

BEGAN = "BENCHMARK_BEGAN"  # environment: when the process was started


def run_timed(report: Path) -> None:
    """Run train.py in this process, with a clock around what it does, and write the seconds of each."""
    began = float(os.environ[BEGAN])
    import train
    from training import trainer
    from training.command_line import command
    from training.learner import Learner

    seconds: dict[str, float] = defaultdict(float)

    def clocked(owner: Any, name: str, what: str) -> None:
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            if what == "training" and "start-up" not in seconds:
                seconds["start-up"] = time.time() - began
            start = time.perf_counter()
            try:
                return original(*args, **kwargs)
            finally:
                seconds[what] += time.perf_counter() - start

        setattr(owner, name, wrapper)

    clocked(Learner, "backward", "training")
    clocked(Learner, "update", "training")
    clocked(Learner, "converge", "evaluation")
    clocked(trainer, "evaluate", "evaluation")
    clocked(trainer.Trainer, "_draw", "drawing")
    clocked(trainer.Trainer, "_save", "writing")
    clocked(trainer.Trainer, "_write_metrics", "writing")
    command(train.train, train.Settings, "train", train.RESUMABLE)
    seconds["all"] = time.time() - began
    report.write_text(json.dumps(seconds), encoding="utf-8")


def main() -> None:
    parser = arguments(__doc__, "epoch")
    parser.add_argument("overrides", nargs="*", help="settings of train.py")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "seconds.json"
        program = (
            f"import sys; sys.argv[0] = 'train.py'; from benchmarks.epoch import *; run_timed(Path({str(report)!r}))"
        )
        subprocess.run(
            [
                sys.executable,
                "-c",
                program,
                f"hydra.run.dir={QuotedString(f'{folder}/run', Quote.single).with_quotes()}",
                f"threads={options.threads}",
                *options.overrides,
            ],
            check=True,
            env={**os.environ, "PYTHONPATH": str(CONFIGS.parent), BEGAN: str(time.time())},
        )
        seconds = json.loads(report.read_text(encoding="utf-8"))
    total = seconds.pop("all")
    seconds["the rest"] = total - sum(seconds.values())
    order = ("start-up", "training", "evaluation", "drawing", "writing", "the rest")
    print_table(["", "seconds", "share"], [
        *([what, f"{seconds.get(what, 0.0):.1f}", f"{seconds.get(what, 0.0) / total:.1%}"] for what in order),
        ["all", f"{total:.1f}", ""],
    ])  # fmt: skip
    write_json(options.json, options.threads, {"overrides": options.overrides, "seconds": seconds, "all": total})


if __name__ == "__main__":
    main()
