"""Names of runs and classes that are no valid text, HTML or formulas."""

from __future__ import annotations

import html
import json
import warnings
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from made_up_runs import DEVICES, add_devices, make_run
from PIL import Image

from data_prep.plot import plot_shards
from fedgan_mpi.data import Manifest, write_shard
from fedgan_mpi.errors import UserError
from fedgan_mpi.report.comparison import write_comparison
from fedgan_mpi.report.page import write_report
from fedgan_mpi.report.web.page import render_figure, render_table, write_page
from fedgan_mpi.run.figures import label_text, new_figure, write_figure
from fedgan_mpi.run.image_grids import grids_of, round_of_grid, write_animation

NAMES = ["<b>&amp;'\"", "$x^", "$$", "_hidden", "b\udcffrd", "", "a\nb", "\\alpha", "Ä" * 200]


class Text(HTMLParser):
    """Collects the text of table cells and of the title and the heading of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {tag: [] for tag in ("td", "th", "title", "h1")}
        self.tags: list[str] = []
        self._open = ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._open = tag
        if tag in self.found:
            self.found[tag].append("")

    def handle_data(self, data):
        if self._open in self.found:
            self.found[self._open][-1] += data

    def handle_endtag(self, tag):
        self._open = ""


# ------------------------------------------------------------ pages


@pytest.mark.parametrize("name", ["<script>alert(1)</script>", "</title><b>", "a & b", "&lt;"])
def test_title_and_cells_of_a_page_show_any_text(tmp_path, name):
    table = render_table([{"head": "first", name: name}, {"head": name, name: "x"}])
    write_page(tmp_path / "page.html", name, {"Section": table})
    text = Text((tmp_path / "page.html").read_text())
    assert text.found["title"] == [name] and text.found["h1"] == [name]
    assert text.found["th"] == ["head", name]
    assert text.found["td"] == ["first", name, name, "x"]
    assert text.tags.count("script") == 1 and "b" not in text.tags


def test_captions_show_any_text(tmp_path):
    Image.new("L", (8, 8)).save(tmp_path / "x.png")
    figure = render_figure(tmp_path / "x.png", '"><script>')
    assert "<script" not in figure and figure.count("&gt;&lt;script&gt;") == 2


def test_a_report_shows_any_class_name(tmp_path):
    run = add_devices(make_run(tmp_path / "a", {0: 9, 40: 5}), (1, 2, 3))
    held = {"class_names": NAMES, "histograms": [[10] * len(NAMES)] * 3}
    (run / "devices.json").write_text(json.dumps({**DEVICES, **held}))
    write_report(run)
    cells = Text((run / "report.html").read_text()).found["td"]
    assert {name.replace("\udcff", "\\udcff") for name in NAMES} <= set(cells)


def test_a_report_shows_any_configuration(tmp_path):
    value = "</pre><script>&amp;"
    run = make_run(tmp_path / "a", {0: 9, 40: 5}, f"--run.directory={value}")
    write_report(run)
    page = (run / "report.html").read_text()
    assert html.escape(value) in page
    # The library, the page's own script, and the data of three charts.
    assert page.count("<script") == page.count("</script") == 5 and page.count("</pre>") == 1


def test_a_comparison_shows_any_name_of_a_directory(tmp_path):
    parent = tmp_path / "b\udcffrd $x^ <script>"
    runs = [make_run(parent / f"run{seed}", {0: 9, 40: 5}, f"--run.seed={seed}") for seed in (0, 1)]
    write_comparison(runs, tmp_path / "out")
    page = (tmp_path / "out" / "index.html").read_text()
    assert "b\\udcffrd $x^ &lt;script&gt;/run1" in page and page.count("<script") == 3


# ------------------------------------------------------------ figures


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_shows_any_label(tmp_path, name):
    figure = new_figure(3, 3)
    axes = figure.subplots()
    axes.plot([1], [1], label=label_text(name))
    axes.set_title(label_text(name))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph|No artists")
        legend = axes.legend()
        write_figure(figure, tmp_path / "figure.png")
    assert len(legend.get_texts()) == (name != "")
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.size == (360, 360)


def test_a_picture_of_shards_shows_any_class_name(tmp_path):
    images = np.zeros((len(NAMES), 1, 16, 16), np.uint8)
    labels = np.arange(len(NAMES))
    write_shard(tmp_path / "device_0001.h5", images, labels, labels, {"device": 1})
    manifest = Manifest(
        format_version=1, dataset="$x^\udcff", image_shape=(1, 16, 16), class_names=NAMES,
        partition={"name": "iid"}, seed=0, devices=1, images=[len(NAMES)],
        histograms=[[1] * len(NAMES)], pixels_sha256=[""], sha256="x", heldout=None,
        heldout_images=0, features=None,
    )  # fmt: skip
    plot_shards(tmp_path, manifest, tmp_path / "shards.png")
    with Image.open(tmp_path / "shards.png") as picture:
        assert picture.size[0] > 1000


# ------------------------------------------------------------ foreign pictures


@pytest.fixture
def run(tmp_path) -> Path:
    return make_run(tmp_path / "a", {0: 9, 20: 7, 40: 5})


def test_foreign_files_among_the_grids_are_ignored(run):
    grids = grids_of(run)
    assert [round_of_grid(grid) for grid in grids] == [0, 20, 40]
    for name in ("round_best.png", "photo.png", "round_000030.png.bak", "round_1.png"):
        (run / "samples" / name).write_bytes(b"x")
    (run / "samples" / "round_000031.png").mkdir()
    (run / "samples" / "round_1000000.png").write_bytes(grids[0].read_bytes())
    assert [round_of_grid(grid) for grid in grids_of(run)] == [0, 20, 40, 1_000_000]
    write_report(run)
    write_animation(run / "training.gif", grids_of(run))


@pytest.mark.parametrize("size", [None, (5, 5)], ids=["damaged", "other size"])
def test_a_film_names_the_file_that_is_no_grid(run, size):
    path = run / "samples" / "round_000020.png"
    path.write_bytes(path.read_bytes()[:60])
    reason = f"{path} is not a PNG file that can be read"
    if size is not None:
        Image.new("L", size).save(path)
        reason = f"{path} has 5×5 pixels, but the last grid has 134×134"
    with pytest.raises(UserError) as refused:
        write_animation(run / "training.gif", grids_of(run))
    assert str(refused.value) == reason and not (run / "training.gif").exists()


def test_a_film_needs_a_grid(run):
    with pytest.raises(UserError, match="there is no sample grid"):
        write_animation(run / "training.gif", [])
