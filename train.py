"""Train a flow on a 2D density: `python train.py flow=resflow data=moons`."""

from __future__ import annotations

if __name__ == "__main__":
    from training.interruption import exit_quietly

    exit_quietly()  # on a signal while all the rest is imported

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from omegaconf import DictConfig

from arguments import Range
from training.captured import require_capturable
from training.command_line import command
from training.configuration import build, build_flow, build_target, choose_device, save_config
from training.report import write_run_report
from training.run_folder import describe, load_summary, open_folder

RESUMABLE = ("trainer.epochs", "trainer.max_seconds", "trainer.cuda_graph", "device", "threads", "data.path")
"""Settings that may change with `resume=`; data.path is among them because the same file may have moved."""


@dataclass(frozen=True)
class Settings:
    """The settings at the top level."""

    seed: Annotated[int, Range(ge=0)]
    device: str
    threads: Annotated[int, Range(ge=1, le=4096)] | None
    compile: bool
    resume: str | None


def train(config: DictConfig, settings: Settings, folder: Path) -> float:
    """Train as `config` says, in `folder`; return KL(target || model) in nats; of one's own points, the NLL."""
    device = choose_device(settings.device)
    if settings.threads is None:  # a launcher may give the run fewer than a later sitting has
        config.threads = torch.get_num_threads()
    torch.set_num_threads(config.threads)
    if device.type == "cuda":
        torch.cuda.set_device(device.index or 0)  # its streams are what CUDA graphs are captured on
    torch.manual_seed(settings.seed)

    target = build_target(config)
    config.data.update(target.origin)
    flow = build_flow(config, stored=settings.resume is not None)
    if target.in_own_units:
        flow.bijections[0].load_state_dict({"mean": target.mean, "std": target.std})
    flow = flow.to(device)
    if config.trainer.get("cuda_graph"):
        require_capturable(flow)
    why_not_compiled = flow.compile_for(device) if settings.compile else None
    optimizer = build(config.optimizer)(flow)
    logger = build(config.logger)() if "logger" in config else None
    with open_folder(folder, resume=settings.resume is not None):
        trainer = build(config.trainer)(
            flow=flow,
            target=target,
            optimizer=optimizer,
            folder=folder,
            seed=settings.seed,
            title=f"{config.choices.flow} on {config.choices.data}",
            about=describe(config, device, flow),
            logger=logger,
        )
        if settings.resume is not None:
            trainer.restore()
        if (evaluation := trainer.finished()) is not None:
            print(f"this run is finished and stays as it is: to train longer, raise {trainer.limit}")
        else:
            config.resume = None  # it concerns this sitting only, so config.yaml does not keep it
            for name in ("report.html", "summary.json"):  # from an earlier end, after which the run now goes on
                (folder / name).unlink(missing_ok=True)
            save_config(config, folder)
            if why_not_compiled:
                message = "compile=true: going on without, because nothing can be compiled here: "
                print(message + why_not_compiled, file=sys.stderr)
            evaluation = trainer.fit()
        if not (folder / "report.html").exists():  # a run that is finished may have been killed before it
            if logger is not None:
                logger.finish(folder, config, load_summary(folder))
            write_run_report(folder)
    print(f"{evaluation.headline}; all files in {folder}")
    return evaluation.merit


# Hydra's shell completion asks only scripts that hold the text @hydra.main: this comment is for it to find.
if __name__ == "__main__":
    import train as this  # the module by its name, under which a sweep's other processes find it too

    command(this.train, this.Settings, "train", this.RESUMABLE)
