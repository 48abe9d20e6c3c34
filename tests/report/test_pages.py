"""Pages of runs and comparisons, parsed independently: their numbers, requests and size."""

from __future__ import annotations

import builtins
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from made_up_runs import add_devices, make_run

from fedgan_mpi.report.comparison import write_comparison
from fedgan_mpi.report.page import write_report
from fedgan_mpi.report.web import interactive

VOID = {"meta", "img", "input", "link", "br"}
NAMES = ["</script><b>", "a\u2028b", "$$x$$", "@y{safe} %s", "<!--", "]]>"]


class Page(HTMLParser):
    """Tables by heading, charts, images and scripts of a page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tables: dict[str, list[list[list[tuple[str, str | None]]]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[tuple[str | None, str]] = []
        self.text = path.read_text()
        self._open: list[str] = []
        self._heading = ""
        self.feed(self.text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        attributes = dict(attrs)
        self.tags.append((tag, attributes))
        if tag not in VOID:
            self._open.append(tag)
        tables = self.tables.get(self._heading, [])
        if tag == "h2":
            self._heading = ""
        elif tag == "table":
            self.tables.setdefault(self._heading, []).append([])
        elif tag == "tr":
            tables[-1].append([])
        elif tag in ("td", "th"):
            tables[-1][-1].append(("", attributes.get("data-value")))
        elif tag == "script":
            self.scripts.append((attributes.get("type"), ""))

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open[-1:] == ["h2"]:
            self._heading += data
        elif {"td", "th"} & set(self._open):
            row = self.tables[self._heading][-1][-1]
            row[-1] = (row[-1][0] + data, row[-1][1])
        elif self._open[-1:] == ["script"]:
            self.scripts[-1] = (self.scripts[-1][0], self.scripts[-1][1] + data)

    def rows(self, heading: str, table: int = 0) -> dict[str, dict[str, tuple[str, str | None]]]:
        """First cell -> head -> (text, exact number)."""
        head, *rows = self.tables[heading][table]
        names = [text for text, _ in head]
        return {row[0][0]: dict(zip(names, row, strict=True)) for row in rows}

    @property
    def columns(self) -> list[dict[str, list]]:
        """The columns of data of all charts."""
        data = [json.loads(text) for kind, text in self.scripts if kind == "application/json"]
        return [
            {key: values for key, values in entries if isinstance(values, list)}
            for entries in find_entries(data)
        ]


def find_entries(value):
    """Yield the entries of every map of lists in nested JSON."""
    if isinstance(value, dict):
        if value.get("type") == "map" and value.get("entries"):
            yield value["entries"]
        for inner in value.values():
            yield from find_entries(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from find_entries(inner)


def edit_lines(run: Path, edit) -> list[dict]:
    """Change the lines of stats.jsonl by a function, and return them."""
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    for line in lines:
        edit(line)
    (run / "stats.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines


@pytest.fixture
def run(tmp_path) -> Path:
    """A private run in which no two rounds have equal numbers."""
    flags = ["--algorithm.name=dp_fedavg_gan", "--participation.policy=random"]
    run = make_run(tmp_path / "a", {0: 9, 20: 7.25, 40: 5.5}, *flags, "--participation.count=2")

    def edit(line):
        t = line["round"]
        if "metric" in line:
            line |= {"epsilon": t / 8, "delta": 1e-5}
        else:
            line |= {"seconds": 2 + t / 64, "seconds_server": t / 128, "g_loss": 3 - t / 32}
            line |= {"seconds_of_device": [t / 4, 0.5], "bytes_up_other": 1000 * t}

    edit_lines(add_devices(run, (1, 3), (2, 3)), edit)
    return run


def test_the_numbers_of_a_report_are_those_of_its_files(run):
    write_report(run)
    page, lines = Page(run / "report.html"), edit_lines(run, lambda line: None)
    rounds = [line for line in lines if "metric" not in line]

    def total(key):
        return sum(line[key] for line in rounds)

    cost = page.rows("Cost")
    assert cost["time, measured"]["total"] == (f"{total('seconds'):.4g} s", repr(total("seconds")))
    assert cost["sent down"]["total"] == ("40 MB", "40000000")
    assert cost["sent up"]["per round"] == ("0.5 MB", "500000.0")
    assert cost["sent up, beyond the payload"]["total"] == ("0.82 MB", "820000")
    assert "time, simulated cell" not in cost
    phases = page.rows("Where the seconds went")
    assert float(phases["server"]["total"][1]) == total("seconds_server")
    share = total("seconds_server") / total("seconds")
    assert float(phases["server"]["of the measured time"][1]) == pytest.approx(share)
    devices = page.rows("Participation")
    assert float(devices["1"]["local rounds, s"][1]) == sum(t / 4 for t in range(1, 41, 2))
    assert (
        devices["3"]["local rounds, s"][0].strip() == "20.000" and devices["3"]["rounds"][0] == "40"
    )
    assert page.rows("Scores")["frechet_classifier_distance-12345678"]["final"] == ("5.5", "5.5")
    assert page.rows("Privacy")["a"]["ε"] == ("5", "5.0")
    classes = page.rows("Class balance")
    assert classes["b"]["images"][0] == "170"
    assert float(classes["b"]["share in data"][1]) == 170 / 420
    assert page.rows("Class balance", 1)["2"]["a"] == ("150", "150")
    changed = page.rows("Configuration")
    assert changed["algorithm.name"]["value"][0] == '"dp_fedavg_gan"'
    assert changed["algorithm.name"]["default"][0] == '"ren"'
    assert changed["training.rounds"]["value"][0] == "40" and "training.optimizer" not in changed


def test_the_charts_hold_the_numbers_of_the_files(run):
    write_report(run)
    columns = Page(run / "report.html").columns
    lines = [line for line in edit_lines(run, lambda line: None) if "metric" not in line]
    keys = ["d_loss", "g_loss"]
    losses = {f"y{n}": [line[key] for line in lines] for n, key in enumerate(keys)}
    assert {"x": [float(t) for t in range(1, 41)], **losses} in columns
    keys = [f"seconds_{part}" for part in ("downlink", "local", "uplink", "server")] + ["seconds"]
    seconds = {f"y{n}": [line[key] for line in lines] for n, key in enumerate(keys)}
    assert {"x": [float(t) for t in range(1, 41)], **seconds} in columns
    of_devices = {
        1: [t / 4 if t % 2 else 0.0 for t in range(1, 41)],
        2: [0.0 if t % 2 else t / 4 for t in range(1, 41)],
        3: [0.5] * 40,
    }
    devices = {f"y{n}": values for n, values in enumerate(of_devices.values())}
    assert {"x": [float(t) for t in range(1, 41)], **devices} in columns
    assert {"x": [0, 20, 40], "y": [9, 7.25, 5.5]} in columns
    assert {"x": [0, 20, 40], "y": [0, 2.5, 5]} in columns


def test_long_runs_show_means_of_equal_parts(tmp_path):
    run = make_run(tmp_path / "a", {0: 9})
    lines = [json.loads(line) for line in (run / "stats.jsonl").read_text().splitlines()]
    line = next(line for line in lines if line["round"] == 1)
    rounds = [{**line, "round": t, "d_loss": t / 2} for t in range(1, 1201)]
    text = "".join(json.dumps(line) + "\n" for line in [*lines[:2], *rounds])
    (run / "stats.jsonl").write_text(text)
    write_report(run)
    (losses,) = [c for c in Page(run / "report.html").columns if c.get("y0", [0])[0] == 0.75]
    assert losses["x"] == [2 * n + 1.5 for n in range(600)]
    assert losses["y0"] == [(2 * n + 1.5) / 2 for n in range(600)]


# ------------------------------------------------------------ requests, size, scripts


def check_self_contained(page: Page) -> None:
    """Fail if an element, a style or our script could cause a request."""
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        assert "href" not in attributes and "srcset" not in attributes
        assert (attributes.get("src") or "data:").startswith("data:"), attributes
    library = interactive.library_script()
    assert page.text.count(library) == 1
    own = page.text.replace(library, "")
    assert not re.search(r"https?:|@import|url\(|fetch\(|XMLHttpRequest|import\(", own)
    policies = [a["content"] for tag, a in page.tags if a.get("http-equiv")]
    (policy,) = policies
    assert policy.startswith("default-src 'none'; img-src data:;") and "http" not in policy
    assert "connect-src" not in policy and "'self'" not in policy


def test_pages_cause_no_request_and_are_small(run, tmp_path):
    write_report(run)
    write_comparison([run, make_run(tmp_path / "b", {0: 9, 40: 5})], tmp_path / "out")
    for path in (run / "report.html", tmp_path / "out" / "index.html"):
        page = Page(path)
        check_self_contained(page)
        assert path.stat().st_size < 2_500_000
        live = [a for tag, a in page.tags if a.get("class") == "live"]
        assert len(live) == len([a for tag, a in page.tags if a.get("class") == "still"]) >= 2
        sliders = [a for tag, a in page.tags if a.get("type") == "range"]
        assert sliders[0]["max"] == "2"


def test_grids_have_a_limit_of_number_and_bytes(tmp_path):
    run = make_run(tmp_path / "a", dict.fromkeys(range(0, 41), 5.0))

    def captions():
        write_report(run)
        return re.findall(r"<figcaption>after round (\d+)<", (run / "report.html").read_text())

    shown = captions()
    assert len(shown) == 12 and shown[0] == "0" and shown[-1] == "40"
    for grid in (run / "samples").iterdir():  # bytes after the image are allowed in PNG files
        grid.write_bytes(grid.read_bytes() + bytes(1_900_000))
    assert captions() == ["0", "20", "40"]


def test_without_bokeh_pages_show_images_only(run, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] == "bokeh":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    interactive.is_available.cache_clear()
    try:
        write_report(run)
    finally:
        interactive.is_available.cache_clear()
    page = Page(run / "report.html")
    assert len(page.scripts) == 1 and 'class="live"' not in page.text
    assert len([a for _, a in page.tags if a.get("class") == "still"]) == 5
    assert page.rows("Cost")["sent down"]["total"][0] == "40 MB"


@pytest.mark.parametrize("name", NAMES)
def test_hostile_names_stay_text(tmp_path, name):
    metric = f"frechet_{name}_distance-1"
    run = add_devices(make_run(tmp_path / "a", {0: 9, 40: 5}, metric=metric), (1, 2, 3))
    devices = json.loads((run / "devices.json").read_text())
    (run / "devices.json").write_text(json.dumps({**devices, "class_names": [name, "b"]}))
    write_report(run)
    directory = tmp_path / name.replace("/", "∕")
    other = make_run(directory, {0: 9, 40: 4}, "--training.batch_size=16", metric=metric)
    write_comparison([run, other], tmp_path / "out")
    report, comparison = Page(run / "report.html"), Page(tmp_path / "out" / "index.html")
    assert name in report.rows("Class balance") and metric in report.rows("Scores")
    directories = [row["directory"][0] for row in comparison.rows("Runs").values()]
    assert str(directory) in directories
    for page in (report, comparison):
        check_self_contained(page)
        assert "b" not in {tag for tag, _ in page.tags}
        for kind, text in page.scripts:
            if kind == "application/json":
                assert text.isascii() and "<" not in text


def test_a_comparison_shows_phases_and_differences(tmp_path):
    one = add_devices(make_run(tmp_path / "a", {0: 9, 40: 5}), (1, 2, 3))
    other = make_run(tmp_path / "b", {0: 9, 40: 4}, "--training.batch_size=16")
    write_comparison([one, add_devices(other, (1, 2))], tmp_path / "out")
    page = Page(tmp_path / "out" / "index.html")
    small = "ren serial batch_size 16"
    classes = page.rows("Class balance")
    assert float(classes["a"]["share in data"][1]) == pytest.approx(250 / 420)
    assert float(classes["a"][f"in training: {small}"][1]) == pytest.approx(0.75)
    assert page.rows("Where the seconds went")[small]["server, s"] == ("0.5", "0.5")
    assert page.rows("Configuration")["training.batch_size"] == {
        "key": ("training.batch_size", None),
        "ren serial batch_size 32": ("32", None),
        small: ("16", None),
    }
    assert list(page.rows("Configuration")) == ["training.batch_size"]
    assert "training.optimizer" in page.rows("Configuration", 1)
