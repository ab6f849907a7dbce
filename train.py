"""Train a flow on a 2D density: `python train.py flow=resflow data=moons`."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
from omegaconf import DictConfig

from arguments import ArgumentError, Range
from datasets import Points, TargetDensity
from datasets.data_file import DataFile
from flows.fused import compile_passes
from training.command_line import command
from training.configuration import build, build_flow, choose_device
from training.run_folder import describe, open_folder

RESUMABLE = ("trainer.epochs", "trainer.max_seconds", "device")
"""What may change with `resume=`."""


@dataclass(frozen=True)
class Settings:
    """The settings at the top level."""

    seed: Annotated[int, Range(ge=0)]
    device: str
    threads: Annotated[int, Range(ge=1)] | None
    compile: bool
    resume: str | None


def train(config: DictConfig, settings: Settings, folder: Path) -> float:
    """Train as `config` says, in `folder`; return KL(target || model) in nats; of one's own points, the NLL."""
    device = choose_device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    if reason := compile_passes(settings.compile, device):
        print(f"compile=true: going on without, because nothing can be compiled here: {reason}", file=sys.stderr)
    torch.manual_seed(settings.seed)

    try:
        target = build(config.data)
        if isinstance(target, TargetDensity):
            target.entropy  # noqa: B018  computed here and kept, because a density may be too thin for it
    except ArgumentError as error:
        raise ArgumentError(f"data.{error.name}", error.accepts, error.got) from None
    if isinstance(target, DataFile):
        config.data.update(target.origin)
    flow = build_flow(config)
    if isinstance(target, Points):
        flow.bijections[0].load_state_dict({"mean": target.mean, "std": target.std})
    flow = flow.to(device)
    optimizer = build(config.optimizer)(flow)
    with open_folder(folder, config, resume=settings.resume is not None):
        trainer = build(
            config.trainer,
            flow=flow,
            target=target,
            optimizer=optimizer,
            folder=folder,
            seed=settings.seed,
            title=f"{config.choices.flow} on {config.choices.data}",
            about=describe(config, device),
        )()
        evaluation = trainer.fit(resume=settings.resume is not None)
    print(f"{evaluation.headline}; pictures, metrics and checkpoint in {folder}", file=sys.stdout)
    return evaluation.merit


if __name__ == "__main__":
    command(train, Settings, "train", RESUMABLE)
