"""A picture's darkness as a density."""

from __future__ import annotations

import io
import math
import warnings
from typing import Annotated

import numpy as np
import PIL.Image
import torch
from torch import Tensor

from arguments import Range, checked
from datasets.data_file import DataFile
from datasets.target import TargetDensity, Window, in_float64

__all__ = ["Image"]

HALF = 4.0  # half the picture's longer side, in the plane


# Tags of TIFF and Exif: bits of a channel, what the number 0 means, and how the camera was held.
BITS, WHITE_IS_ZERO, ORIENTATION = 258, 262, 274

# What makes a picture upright, by its orientation.
TURNS = {
    2: PIL.Image.Transpose.FLIP_LEFT_RIGHT,
    3: PIL.Image.Transpose.ROTATE_180,
    4: PIL.Image.Transpose.FLIP_TOP_BOTTOM,
    5: PIL.Image.Transpose.TRANSPOSE,
    6: PIL.Image.Transpose.ROTATE_270,
    7: PIL.Image.Transpose.TRANSVERSE,
    8: PIL.Image.Transpose.ROTATE_90,
}


class Image(DataFile, TargetDensity):
    """Constant on each pixel, in proportion to its darkness, and zero outside: so all of it is known exactly.

    The picture is centred, its longer side from -4 to 4. Transparent parts are empty.

    Args:
        path: of the picture, in any format that Pillow reads.
        resolution: pixels along the longer side at most; a larger picture is reduced.
        invert: lightness instead of darkness.
        sha256: digest that the file must have; None for any.
    """

    cells = 200

    @checked
    def __init__(
        self,
        path: str | None = None,
        resolution: Annotated[int, Range(ge=2, le=1024)] = 256,
        invert: bool = False,
        sha256: str | None = None,
    ) -> None:
        super().__init__(path, sha256, "a picture, as .png or .jpg, that is not blank")
        light = self._lightness(resolution, "black" if invert else "white")
        del self.content
        mass = torch.from_numpy(light if invert else 1 - light).flip(0)  # the lowest row first
        if not float(mass.sum()) > 0:
            raise self.refused(f"it is {'black' if invert else 'white'} all over")
        self.rows, self.columns = mass.shape
        self.pixel = 2 * HALF / max(self.rows, self.columns)
        self.oversampling = math.ceil(max(5, 2 * (2 * HALF + 1) / (self.cells * self.pixel)))  # so none is missed
        self.corner = torch.tensor([self.columns, self.rows], dtype=torch.float64) * (-self.pixel / 2)
        self.mass = mass.flatten() / mass.sum()
        self.total = self.mass.cumsum(0)

    def _lightness(self, resolution: int, ground: str) -> np.ndarray:
        """The lightness of each pixel, 0 to 1, transparent ones on `ground`, shape (rows, columns), top row first."""
        try:
            picture, turn = _read(self.content)
        except PIL.UnidentifiedImageError as error:
            raise self.refused("it is not a picture") from error
        except Exception as error:  # whatever the damage leads to
            raise self.refused(str(error).partition("\n")[0] or type(error).__name__) from error
        if picture.mode.startswith("I;16") or (picture.mode == "I" and picture.format == "PPM"):
            tags = getattr(picture, "tag_v2", {})  # of a TIFF: on its deep greys, Pillow ignores both of these
            light = np.asarray(picture).astype(np.float32) / (2 ** tags.get(BITS, (16,))[0] - 1)
            light = 1 - light if tags.get(WHITE_IS_ZERO) == 0 else light
            if (transparent := picture.info.get("transparency")) is not None:  # a grey that a PNG names
                light[np.asarray(picture) == transparent] = ground == "white"
        elif picture.mode in ("I", "F"):
            raise self.refused("its range of brightness is unknown; 8 or 16 bits a channel are known")
        else:
            picture = picture.convert("RGBA")
            grey = PIL.Image.alpha_composite(PIL.Image.new("RGBA", picture.size, ground), picture).convert("L")
            light = np.asarray(grey).astype(np.float32) / 255
        picture = PIL.Image.fromarray(light)
        if turn is not None:
            picture = picture.transpose(turn)
        shrink = resolution / max(picture.size)
        if shrink < 1:
            size = [max(round(side * shrink), 1) for side in picture.size]
            picture = picture.resize(size, PIL.Image.Resampling.BOX)
        return np.asarray(picture, dtype=np.float64).clip(0, 1)

    def sample(self, n: int, generator: torch.Generator | None = None) -> Tensor:
        u = torch.rand(n, generator=generator, dtype=torch.float64) * self.total[-1]
        index = torch.searchsorted(self.total, u, right=True).clamp(max=len(self.mass) - 1)
        cell = torch.stack([index % self.columns, index // self.columns], dim=1)
        exact = cell + torch.rand(n, 2, generator=generator, dtype=torch.float64)
        x = (self.corner + self.pixel * exact).float()
        # Rounding must not carry a point into the next pixel, which may be white.
        middle = (self.corner + self.pixel * (cell + 0.5)).float()
        return torch.where(self._cell(x) == cell, x, torch.nextafter(x, middle))

    def log_prob(self, x: Tensor) -> Tensor:
        cell = self._cell(x)
        column, row = cell.unbind(-1)
        inside = (column >= 0) & (column < self.columns) & (row >= 0) & (row < self.rows)
        index = torch.where(inside, row * self.columns + column, 0)
        log_p = self.mass.to(x.device)[index].log() - 2 * math.log(self.pixel)
        return torch.where(inside, log_p, -math.inf).to(x.dtype)

    def _cell(self, x: Tensor) -> Tensor:
        """Column and row of the pixel of each point, shapes (..., 2) to (..., 2)."""
        y = in_float64(x)
        return ((y - self.corner.to(y)) / self.pixel).floor().clamp(-1, 2**20).long()

    @property
    def entropy(self) -> float:
        return float(torch.special.entr(self.mass).sum()) + 2 * math.log(self.pixel)

    @property
    def window(self) -> Window:
        return (-HALF - 0.5, HALF + 0.5), (-HALF - 0.5, HALF + 0.5)


def _read(content: bytes) -> tuple[PIL.Image.Image, PIL.Image.Transpose | None]:
    """The picture, and the turn that its orientation tag still asks for: none where the tag is damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        picture = PIL.Image.open(io.BytesIO(content))
        picture.load()  # this turns a TIFF, and removes its orientation tag
        try:
            orientation = picture.getexif().get(ORIENTATION)
        except Exception:  # whatever a damaged tag raises: the picture itself has been read
            orientation = None
    return picture, TURNS.get(orientation)
