"""A run's curves, figures and settings for TensorBoard: logger=tensorboard, then `tensorboard --logdir outputs`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from arguments import ArgumentError
from training.run_folder import figure_path

__all__ = ["TensorBoard"]


class TensorBoard:
    """Writes to `tensorboard/` in the run folder.

    Raises:
        ArgumentError: TensorBoard, which is an extra, is not installed.
    """

    def __init__(self) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            accepts = "tensorboard where it is installed: pip install -r requirements-tensorboard.txt"
            raise ArgumentError("logger", accepts, f"'tensorboard': {error}") from error
        self._open = SummaryWriter
        self._writer: SummaryWriter | None = None

    def write_epoch(self, folder: Path, row: Mapping[str, float | None]) -> None:
        """Write a row of metrics.csv, and the epoch's figure where one was drawn."""
        step = int(row["step"])
        if self._writer is None:  # a resumed run takes back what an earlier process wrote of these steps and later ones
            self._writer = self._open(str(folder / "tensorboard"), purge_step=step)
        for key, value in row.items():
            if key not in ("epoch", "step") and value is not None:
                self._writer.add_scalar(key, value, step)
        figure = figure_path(folder, int(row["epoch"]))
        if figure.exists():
            with Image.open(figure) as image:
                self._writer.add_image("epoch", np.asarray(image), step, dataformats="HWC")
        self._writer.flush()

    def finish(self, folder: Path, config: DictConfig, summary: Mapping[str, Any]) -> None:
        """Write the settings beside the figures they led to, for the tab HPARAMS."""
        if self._writer is not None:
            self._writer.close()  # its thread too
            self._writer = None
        with self._open(str(folder / "tensorboard")) as writer:
            figures = {f"final/{key}": summary[key] for key in ("kl", "nll", "lipschitz", "inverse_error", "seconds")}
            known = {key: float(value) for key, value in figures.items() if value is not None}
            writer.add_hparams(_flat(config), known, run_name=".")


def _flat(config: DictConfig) -> dict[str, bool | int | float | str]:
    """All settings under their full names, the folder to resume from aside."""
    flat: dict[str, bool | int | float | str] = {}
    for key, node in OmegaConf.to_container(config, resolve=True).items():
        for name, value in node.items() if isinstance(node, dict) else [("", node)]:
            if not name.startswith("_") and not isinstance(value, dict) and key != "resume":
                plain = isinstance(value, (bool, int, float))
                flat[f"{key}.{name}".rstrip(".")] = value if plain else str(value)
    return flat
