"""Pictures: what they show, that they always open, and what they cost."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from plots import gif
from plots.density_gif import DensityGif
from plots.epoch_figure import EpochFigure
from plots.figure import Window, box, pixels
from plots.gif import GifFile, write_gif
from plots.palette import DENSITY_LEVELS, GREYS, color_of_angle, density_palette, point_palette
from plots.samples import draw_samples
from plots.sheet import EPOCHS, RIGHT, Panel, Sheet, Strip
from plots.sheet import LAST_MILLISECONDS as SHEET_LAST_MILLISECONDS
from plots.transport import FIRST_MILLISECONDS, LAST_MILLISECONDS, TransportGif

WINDOW = ((-4.0, 4.0), (-4.0, 4.0))


def density(shift: float, n: int = 96) -> np.ndarray:
    axis = np.linspace(-4, 4, n)
    x, y = np.meshgrid(axis, axis)
    return np.exp(-((np.hypot(x - shift, y) - 2) ** 2) / 0.18) / 8


def random_frames(n: int, size: int = 60) -> list[np.ndarray]:
    return list(np.random.default_rng(0).integers(0, 80, (n, size, size), dtype=np.uint8))


def decode(path: Path) -> list[np.ndarray]:
    with Image.open(path) as image:
        return [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(image)]


class TestGifFile:
    def test_frames_come_back_as_drawn(self, tmp_path: Path) -> None:
        palette, frames = density_palette(), random_frames(3)
        file = GifFile(tmp_path / "a.gif", palette, 100, 900)
        file.start(frames[0])
        file.append(frames[1], (0, 0))
        file.append(frames[2][10:30, 5:50], (5, 10))
        patched = frames[1].copy()
        patched[10:30, 5:50] = frames[2][10:30, 5:50]
        for found, expected in zip(decode(file.path), [frames[0], frames[1], patched], strict=True):
            np.testing.assert_array_equal(found, palette[expected])

    def test_loops_for_ever_and_keeps_time(self, tmp_path: Path) -> None:
        frames = zip(random_frames(3), (30, 60, 90))
        write_gif(tmp_path / "a.gif", density_palette(), frames)
        with Image.open(tmp_path / "a.gif") as image:
            assert image.info["loop"] == 0
            assert [frame.info["duration"] for frame in ImageSequence.Iterator(image)] == [30, 60, 90]

    def test_a_frame_costs_the_same_however_many_came_before(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Counted in bytes that are written: nothing old is touched but the trailer and how long a frame stands."""
        file = GifFile(tmp_path / "a.gif", density_palette(), 100, 900)
        frame = random_frames(1)[0]
        file.start(frame)
        written: list[int] = []
        plain = gif._write_at
        monkeypatch.setattr(gif, "_write_at", lambda f, p, data: (written.append(len(data)), plain(f, p, data)))
        monkeypatch.setattr(gif, "write_atomically", None)
        for _ in range(50):
            file.append(frame, (0, 0))
        assert written == written[:3] * 50
        assert written[1:3] == [1, 2]
        assert len(decode(file.path)) == 51

    @pytest.mark.parametrize("continued", [False, True])
    def test_the_newest_frame_rests(self, tmp_path: Path, continued: bool) -> None:
        """Also where another process goes on, from an earlier moment."""
        file = GifFile(tmp_path / "a.gif", density_palette(), 100, 900)
        for frame in random_frames(4):
            if file.length == 0:
                file.start(frame)
                continue
            length = file.length
            file.append(frame, (0, 0))
            if continued:
                file = GifFile(file.path, density_palette(), 100, 900)
                file.truncate(length)
                file.append(frame, (0, 0))
            with Image.open(file.path) as image:
                durations = [shown.info["duration"] for shown in ImageSequence.Iterator(image)]
            assert durations == [*[100] * (len(durations) - 1), 900]

    @pytest.mark.parametrize("calls", [0, 1])
    def test_a_kill_in_the_middle_leaves_a_file_that_opens(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int
    ) -> None:
        file, frames = GifFile(tmp_path / "a.gif", density_palette(), 100, 900), random_frames(3)
        file.start(frames[0])
        length = file.length
        plain, made = gif._write_at, []

        def dying(f: object, position: int, data: bytes) -> None:
            if len(made) == calls:
                plain(f, position, data[: len(data) // 2])
                raise KeyboardInterrupt
            made.append(plain(f, position, data))

        monkeypatch.setattr(gif, "_write_at", dying)
        with pytest.raises(KeyboardInterrupt):
            file.append(frames[1], (0, 0))
        assert len(decode(file.path)) == 1
        monkeypatch.undo()
        file.truncate(length)
        file.append(frames[2], (0, 0))
        np.testing.assert_array_equal(decode(file.path)[1], density_palette()[frames[2]])

    def test_a_length_that_never_was_is_refused(self, tmp_path: Path) -> None:
        file = GifFile(tmp_path / "a.gif", density_palette(), 100, 900)
        file.start(random_frames(1)[0])
        with pytest.raises(ValueError, match="checkpoint speaks of"):
            file.truncate(file.length + 1)

    def test_what_holds_no_frame_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "a.gif").write_bytes(bytes(1000))
        with pytest.raises(ValueError, match=r"a\.gif holds no frame"):
            GifFile(tmp_path / "a.gif", density_palette(), 100, 900).truncate(500)
        assert (tmp_path / "a.gif").read_bytes() == bytes(1000)

    def test_truncated_and_continued_is_as_never_interrupted(self, tmp_path: Path) -> None:
        frames = random_frames(4)
        whole, other = (GifFile(tmp_path / name, density_palette(), 100, 900) for name in ("whole.gif", "other.gif"))
        for file in (whole, other):
            file.start(frames[0])
            file.append(frames[1], (0, 0))
        length = other.length
        other.append(frames[3], (0, 0))  # of an epoch whose checkpoint was never written
        other.truncate(length)
        for file in (whole, other):
            file.append(frames[2], (0, 0))
        assert whole.path.read_bytes() == other.path.read_bytes()
        other.truncate(0)
        assert not other.path.exists()

    def test_only_what_changes_is_written(self, tmp_path: Path) -> None:
        frame = random_frames(1, 300)[0]
        changed = frame.copy()
        changed[100:110, 50:60] = 0
        write_gif(tmp_path / "a.gif", density_palette(), [(frame, 50), (changed, 50), (changed, 50)])
        one = GifFile(tmp_path / "one.gif", density_palette(), 100, 900)
        one.start(frame)
        assert (tmp_path / "a.gif").stat().st_size < one.length + 1000
        np.testing.assert_array_equal(decode(tmp_path / "a.gif")[1], density_palette()[changed])


class TestDensityGif:
    def test_one_colour_scale_for_target_and_learned(self, tmp_path: Path) -> None:
        gif = DensityGif(tmp_path / "d.gif", density(0.0), WINDOW, "a title")
        gif.append(density(0.0), "epoch 1")
        (frame,) = decode(tmp_path / "d.gif")
        left, top, width, height = gif._learned
        learned = frame[top : top + height, left : left + width]
        # The same density on both sides is the same picture on both sides.
        panels = [frame[top : top + height, x : x + width].astype(int) for x in range(10, left - width)]
        assert min(np.abs(panel - learned).mean() for panel in panels) == 0

    def test_sixty_epochs_stay_small_and_early_frames_stay(self, tmp_path: Path) -> None:
        gif = DensityGif(tmp_path / "d.gif", density(0.0), WINDOW, "a title")
        gif.append(density(-1.0), "epoch 1")
        first = decode(tmp_path / "d.gif")[0]
        for epoch in range(2, 61):
            gif.append(density(-1 + epoch / 60), f"epoch {epoch}")
        frames = decode(tmp_path / "d.gif")
        assert len(frames) == 60
        np.testing.assert_array_equal(frames[0], first)
        assert (frames[0] != frames[-1]).any()
        assert gif.file.length < 3_000_000

    def test_a_density_that_is_not_finite_is_drawn_all_the_same(self, tmp_path: Path) -> None:
        gif = DensityGif(tmp_path / "d.gif", density(0.0), WINDOW, "a title")
        broken = density(0.0)
        broken[:10], broken[10:20] = np.nan, np.inf
        gif.append(broken, "epoch 1")
        assert len(decode(tmp_path / "d.gif")) == 1

    def test_a_higher_learned_density_is_shown_as_the_top_of_the_scale(self, tmp_path: Path) -> None:
        gif = DensityGif(tmp_path / "d.gif", density(0.0), WINDOW, "a title")
        gif.append(100 * density(0.0), "epoch 1")
        left, top, width, height = gif._learned
        assert gif._canvas[top : top + height, left : left + width].max() == GREYS + DENSITY_LEVELS - 1


class TestEpochFigure:
    def figure(self) -> tuple[EpochFigure, np.ndarray]:
        points = np.random.default_rng(1).normal(size=(200, 2))
        return EpochFigure(density(0.0), WINDOW, "a title", points), points

    def test_axes_are_equal_and_the_colour_scale_is_shared(self) -> None:
        figure, _ = self.figure()
        for axes in figure.axes:
            assert axes.get_aspect() == 1
            box = axes.get_window_extent()
            assert box.width == pytest.approx(box.height, abs=1)
        target, learned = (axes.images[0] for axes in figure.axes[:2])
        assert target.get_clim() == learned.get_clim() == (0, pytest.approx(density(0.0).max() * 1.05))

    def test_panels_are_square_whatever_the_units(self) -> None:
        figure = EpochFigure(density(0.0), ((0.0, 1.0), (4e4, 8e4)), "a title", np.zeros((5, 2)), "histogram")
        for axes in figure.axes:
            axes.apply_aspect()
            box = axes.get_window_extent()
            assert box.width == pytest.approx(box.height, abs=1)
            assert box.width > 200

    @pytest.mark.parametrize(
        "window",
        [
            WINDOW,
            ((-122.45, -122.35), (33.8, 33.9)),
            ((33.795, 33.905), (-122.45, -122.35)),
            ((-0.507, 0.507), (-2500, 2500)),
            ((0, 3e6), (-3e3, 3e3)),
        ],
    )
    def test_numbers_are_whole_and_apart(self, window: Window) -> None:
        figure = EpochFigure(density(0.0), window, "a title", np.zeros((5, 2)))
        assert all(label.get_window_extent().x0 >= 0 for label in figure.axes[0].get_yticklabels())
        labels = [label for axes in figure.axes for label in axes.get_xticklabels() if label.get_text()]
        ends = [label.get_window_extent() for label in labels]
        assert len(ends) >= 8
        assert all(left.x1 + 2 < right.x0 for left, right in itertools.pairwise(ends))

    def test_updating_is_drawing_afresh(self) -> None:
        used, points = self.figure()
        used.update(density(1.0), points * 2, points * 3, "epoch 1")
        used.picture()
        fresh, _ = self.figure()
        for figure in (used, fresh):
            figure.update(density(0.5), points, points / 2, "epoch 2")
        np.testing.assert_array_equal(used.picture(), fresh.picture())

    def test_png_opens(self, tmp_path: Path) -> None:
        figure, points = self.figure()
        figure.update(density(0.5), points, points / 2, "epoch 2")
        figure.save(tmp_path / "e.png")
        with Image.open(tmp_path / "e.png") as image:
            np.testing.assert_array_equal(np.asarray(image), figure.picture())


class TestTransportGif:
    def test_goes_from_base_to_data_and_pauses_there(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(2)
        base = rng.normal(size=(500, 2)) * 0.7
        path = np.stack([base * (1 - s) + s * (base * 0.1 + [2.0, 2.0]) for s in np.linspace(0, 1, 9)])
        lines = np.zeros((9, 3, 10, 2))
        gif = TransportGif(tmp_path / "t.gif", WINDOW, "a title")
        gif.write(path, lines)
        with Image.open(tmp_path / "t.gif") as image:
            durations = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
        assert durations[0] == FIRST_MILLISECONDS
        assert durations[-1] == LAST_MILLISECONDS
        frames = decode(tmp_path / "t.gif")
        assert len(frames) >= 40
        colors = {tuple(color) for color in point_palette()[GREYS:].tolist()}

        def middle(frame: np.ndarray) -> np.ndarray:
            """Mean position of the coloured pixels, in the window's units."""
            mask = np.array([[tuple(pixel) in colors for pixel in row] for row in frame.tolist()])
            rows, columns = np.nonzero(mask)
            left, top, width, height = gif._box
            return np.array([(columns.mean() - left) / width * 8 - 4, 4 - (rows.mean() - top) / height * 8])

        np.testing.assert_allclose(middle(frames[0]), [0, 0], atol=0.1)
        np.testing.assert_allclose(middle(frames[-1]), [2, 2], atol=0.1)

    def test_colours_follow_the_angle_in_the_base(self) -> None:
        east, north, east_further = color_of_angle(np.array([[0.5, 0.01], [0.0, 0.5], [2.5, 0.05]]))
        assert (east - GREYS) // 4 == (east_further - GREYS) // 4 != (north - GREYS) // 4


class TestSheet:
    """One target of twice the other's height, and runs that have learned it, a half of it, or nothing yet."""

    def sheet(self) -> Sheet:
        target = density(0.0)
        learned = Panel(["a"], "KL 0", [0 * target, 0.5 * target, target])
        higher = Panel(["b"], "KL 0", [2 * target])
        none = Panel(["c"], "failed", [])
        strips = [Strip(["x"], target, WINDOW, [learned, none]), Strip(["y"], 2 * target, WINDOW, [higher] * 7)]
        return Sheet(strips, "title")

    def test_one_scale_serves_every_target(self, tmp_path: Path) -> None:
        sheet = self.sheet()
        sheet.save_gif(tmp_path / "s.gif")
        frames = decode(tmp_path / "s.gif")
        assert len(frames) == 3

        def panel(frame: np.ndarray, axes: object) -> np.ndarray:
            left, top, width, height = box(axes)
            return frame[top : top + height, left : left + width].astype(int)

        shown = [panel(frames[-1], axes) for axes, *_ in [*sheet.targets, *sheet.images]]
        for other in shown[1:]:
            np.testing.assert_array_equal(other, shown[0])  # each is its target, so all look the same
        first = panel(frames[0], sheet.images[0][0])
        assert (first == density_palette()[GREYS]).all()  # nothing learned yet
        np.testing.assert_array_equal(panel(frames[0], sheet.images[1][0]), shown[0])  # its only epoch stays

    def test_no_text_is_over_another(self) -> None:
        panel = Panel(["a" * 40], "KL 0", [density(0.0)])
        words = ["histogram", "of", "the", "data:", "points", "path=a/long/way/to/the/first/file.csv"]
        sheet = Sheet([Strip(words, density(0.0), WINDOW, [panel])], "2026-01-01_12-00-00: 30 runs, KL or NLL in nats")
        pixels(sheet.figure)
        (target, _), (image, *_) = *sheet.targets, *sheet.images
        ends = [axes.title.get_window_extent() for axes in (target, image)]
        assert ends[0].x0 >= 0
        assert ends[0].x1 < ends[1].x0
        assert ends[1].x1 <= sheet.width
        heading = sheet.figure.texts[-1].get_window_extent()
        assert heading.x1 < sheet.width - RIGHT - EPOCHS  # where the GIF writes the epoch
        assert max(end.y1 for end in ends) < heading.y0

    def test_titles_stay_where_they_are_beside_large_numbers(self) -> None:
        words = ["histogram of the data points"]  # as wide as the panel
        panel = Panel(words, "KL 0", [density(0.0)])
        sheet = Sheet([Strip(words, density(0.0), ((0, 3e6), (-1e6, 2e6)), [panel])] * 2, "title")
        pixels(sheet.figure)
        for axes, *_ in [*sheet.targets, *sheet.images]:
            assert 0 < axes.title.get_window_extent().y0 - axes.get_window_extent().y1 < 8
        for axes, _ in sheet.targets:
            exponent = axes.yaxis.get_offset_text()
            assert exponent.get_text()
            assert 0 <= exponent.get_window_extent().x0 < exponent.get_window_extent().x1 <= axes.get_window_extent().x0

    def test_words_are_taken_as_they_are_typed(self) -> None:
        strip = Strip(["path=$1_$2.csv"], density(0.0), WINDOW, [Panel(["path=$a$_$b"], "KL 0", [density(0.0)])])
        assert pixels(Sheet([strip], "sweeps of $1_$2").figure).size > 0  # as mathematics they would be an error

    def test_the_png_shows_the_last_epoch_and_lines_are_even(self, tmp_path: Path) -> None:
        sheet = self.sheet()
        sheet.save_png(tmp_path / "s.png")
        with Image.open(tmp_path / "s.png") as image:
            assert image.size == (sheet.width, sheet.height)
            picture = np.asarray(image).astype(int)
        (left, top, width, height), (x, y, *_) = box(sheet.targets[0][0]), box(sheet.images[0][0])
        inside = (slice(top + 2, top + height - 2), slice(left + 2, left + width - 2))
        other = (slice(y + 2, y + height - 2), slice(x + 2, x + width - 2))
        np.testing.assert_array_equal(picture[inside], picture[other])
        rows = [box(axes)[1] for axes, *_ in sheet.images[1:]]
        assert sorted(map(rows.count, set(rows))) == [3, 4]

    @pytest.mark.parametrize(("runs", "lines"), [(1, [2, 3]), (2, [1, 2, 2]), (3, [1] * 5), (6, [1] * 5)])
    def test_short_strips_stand_side_by_side(self, runs: int, lines: list[int]) -> None:
        panels = [Panel(["a"], "KL 0", [density(0.0)])] * runs
        sheet = Sheet([Strip([str(n)], density(0.0), WINDOW, panels) for n in range(5)], "title")
        targets, images = ([box(axes) for axes, *_ in part] for part in (sheet.targets, sheet.images))
        tops = [top for _, top, *_ in targets]
        assert sorted(map(tops.count, set(tops))) == lines
        assert len({(left, top) for left, top, *_ in [*targets, *images]}) == 5 + 5 * runs
        for strip, (left, top, *_) in enumerate(targets):
            beside = images[strip * runs]
            assert beside[1] == top
            assert 0 < beside[0] - left < 200
        assert max(left + width for left, _, width, _ in [*targets, *images]) < sheet.width - RIGHT

    def test_the_end_stays_for_a_while(self, tmp_path: Path) -> None:
        self.sheet().save_gif(tmp_path / "s.gif")
        with Image.open(tmp_path / "s.gif") as image:
            durations = [frame.info["duration"] for frame in ImageSequence.Iterator(image)]
        assert durations[-1] == SHEET_LAST_MILLISECONDS > durations[0]


def test_samples_picture_opens(tmp_path: Path) -> None:
    samples = np.random.default_rng(3).normal(size=(5000, 2))
    draw_samples(tmp_path / "s.png", samples, -(samples**2).sum(1) / 2, WINDOW, "a title")
    with Image.open(tmp_path / "s.png") as image:
        assert image.size == (1050, 480)
