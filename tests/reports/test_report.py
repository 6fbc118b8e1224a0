"""What a person reads: tables within 100 columns, a figure, one HTML file that needs nothing else."""

import html.parser
import json
import math
import re
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from metalr.compare import results, selection
from metalr.compare.comparison import Comparison, compare, load
from metalr.compare.contenders import Kind
from metalr.compare.selection import Criterion
from metalr.compare.settings import Settings
from metalr.compare.statistics import Interval
from metalr.reports import comparison_charts, page, report, sections, svg, tables, text_table
from metalr.reports.chart import Chart, Line, colours
from metalr.reports.text_table import Estimate, Grid
from metalr.tasks.catalog import make_task
from tests.compare.test_comparison import SMALL, policy, student

SETTINGS = replace(SMALL, factors=(0.1, 0.3, 1.0, 3.0, 10.0))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Comparison:
    folder = tmp_path_factory.mktemp("report") / "run"
    return compare(student(), folder, SETTINGS, controllers={"ppo": policy()})


def test_text_fits_into_100_columns_and_names_everyone(done: Comparison) -> None:
    text = report.text(done)
    assert max(map(len, text.splitlines())) <= 100
    for name in selection.contenders_of(done.records, "teacher-student"):
        assert name in text
    assert "chosen on train loss, reported on train loss" in text
    assert "chosen on valid loss, reported on test loss" in text
    assert "8 trials for each tuned contender" in text
    assert "nan" not in text


@pytest.mark.parametrize("width", [60, 80, 100, 140])
def test_tables_fit_the_screen_and_no_number_is_cut(done: Comparison, width: int, capsys, monkeypatch) -> None:
    rich = pytest.importorskip("rich.console")
    monkeypatch.setenv("COLUMNS", str(width))
    report.show(done)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= width
    terminal = partial(rich.Console, force_terminal=True, no_color=True)
    monkeypatch.setattr(rich, "Console", terminal)
    report.show(done)
    coloured = re.sub("\x1b\\[[0-9;]*m", "", capsys.readouterr().out)
    assert coloured.split() == shown.split()
    assert max(map(len, coloured.splitlines())) <= width
    whole = {number for grid in sections.all_grids(done) for number in numbers_of(text_table.as_text(grid, 1000))}
    for grid in sections.all_grids(done):
        assert set(numbers_of(text_table.as_text(replace(grid, notes=[]), width))) <= whole
        assert len(text_table.as_text(grid, width).splitlines()) > 2 + len(grid.rows)


def numbers_of(text: str) -> list[str]:
    return re.findall(r"[\d.]+(?:e[-+]\d+)?", text)


def test_a_narrow_grid_drops_columns_in_its_order_and_says_so() -> None:
    grid = Grid("T", ["name", "first", "second", "third"], [["a", "1.5", "2.5", "3.5"]], drop_first=["second"])
    assert text_table.as_text(grid, 19).splitlines()[1] == "name  first  third"
    narrow = text_table.as_text(grid, 12).splitlines()
    assert narrow[1:4] == ["name  first", "----  -----", "  a     1.5"]
    assert "second, third." in " ".join(narrow)
    assert "first" in text_table.as_text(grid, 3)  # one column always stays


def test_extreme_numbers_fit_too(tmp_path: Path) -> None:
    # The quadratic ends anywhere between 0 and 1e-15, or diverges.
    settings = replace(SETTINGS, contenders=("constant", "cosine"), wrong_base=None, trials=3)
    text = report.text(compare(make_task("quadratic", horizon=200), tmp_path / "run", settings))
    assert max(map(len, text.splitlines())) <= 100
    assert re.search(r"cosine: 4 of 4 at x10 diverged", text)


def test_numbers_in_the_text_are_those_of_the_table(done: Comparison) -> None:
    row = results.result_table(done.records, "teacher-student", Criterion.TRAIN)[0]
    line = next(line for line in report.text(done).splitlines() if line.strip("* ").startswith(row.contender))
    assert f"{row.iqm.value:#.4g}" in line
    assert f"{row.worst_decile:#.4g}" in line


def test_the_demos_table(done: Comparison) -> None:
    text = report.wrong_base_text(done, "teacher-student", contenders=["ppo", "cosine"])
    names = [line.strip("* ").split("  ")[0] for line in text.splitlines() if re.match(r"[* ] \w", line)]
    assert names == ["tuned cosine", "tuned best", "ppo", "cosine"]
    assert all(f"x{factor:g}" in text for factor in SETTINGS.factors)
    grid = tables.wrong_base_grid(done, "teacher-student", shown=tables.OVER_COSINE)
    assert str(grid.rows[0][1]) == "1.000 [1.000, 1.000]"


def test_the_committed_demo_reads_as_it_was_printed() -> None:
    """The tables of the README come from these records, which were written before some words changed."""
    folder = Path(__file__).parents[2] / "experiments" / "records" / "demo"
    demo, printed = load(folder), (folder / "output.txt").read_text()
    (task,) = demo.tasks
    for criterion in Criterion:
        assert text_table.as_text(tables.result_grid(demo, task, criterion)) in printed
    learned = [name for name, kind in selection.kinds_of(demo.records).items() if kind is Kind.LEARNED]
    shown = ["cosine", *learned, "state-blind policy", f"{learned[0]}: random policy"]
    table = report.wrong_base_text(demo, contenders=shown)
    assert len(table.split("interquartile mean")[0].splitlines()) == 3 + 2 * (2 + len(shown))
    assert table in printed


def test_edges_are_said(done: Comparison) -> None:
    first, second, *_ = results.result_table(done.records, "teacher-student", Criterion.TRAIN)
    rows = [replace(first, contender="cosine", edges=["lr high"]), replace(second, contender="linear", edges=[])]
    (warning,) = tables.edge_warnings(rows)
    assert warning.startswith("! cosine: the best value lies on an edge of its search (lr high)")


class Links(html.parser.HTMLParser):
    """Collects what a browser would fetch and jump to, and checks that tags match."""

    def __init__(self) -> None:
        super().__init__()
        self.fetched: list[str] = []
        self.targets: list[str] = []
        self.ids: list[str] = []
        self.tags: list[tuple[str, dict]] = []
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        self.fetched += [
            value for key, value in attrs if key in ("src", "srcset", "data") or (tag, key) == ("link", "href")
        ]
        self.targets += [found["href"]] if tag == "a" else []
        self.ids += [found["id"]] if "id" in found else []
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def of(self, name: str) -> list[dict]:
        return [attrs for tag, attrs in self.tags if tag == name]


def links_of(page: str) -> Links:
    links = Links()
    links.feed(page)
    assert links.open == []
    return links


def test_html_is_whole_and_needs_no_network(done: Comparison, tmp_path: Path) -> None:
    path = report.html(done, tmp_path / "deep" / "report.html")
    page = path.read_text(encoding="utf-8")
    links = links_of(page)
    assert links.fetched == []
    assert "http://" not in page
    assert "https://" not in page
    assert "url(" not in page
    for setting in ("lr_range", "report_seeds", "sha256", "torch"):
        assert setting in page
    assert page == report.html(done, tmp_path / "again.html").read_text(encoding="utf-8")


def test_the_page_can_be_found_ones_way_in(done: Comparison) -> None:
    written = page.page(done)
    links = links_of(written)
    assert len(links.targets) >= 3
    assert {target.removeprefix("#") for target in links.targets} <= set(links.ids)
    assert len(set(links.ids)) == len(links.ids)
    assert {"name": "viewport", "content": "width=device-width, initial-scale=1"} in links.of("meta")
    assert "prefers-color-scheme: dark" in written
    assert all("open" not in attrs for attrs in links.of("details"))
    charts = links.of("svg")
    assert len(charts) == 5  # curves, regret, repair of one controller: LR and loss each but for the regret
    assert all(len(attrs["aria-label"].split()) > 8 for attrs in charts)
    assert len(links.of("th")) == len(links.of("button")) > 20


def test_charts_hold_the_numbers_that_they_draw(done: Comparison) -> None:
    (chart, *_) = (found for found in charts_of(page.page(done)) if found["xLabel"].startswith("base LR"))
    rows = results.wrong_base_table(done.records, "teacher-student")
    for line in chart["lines"]:
        own = [row for row in rows if row.contender == line["name"] and row.factor is not None]
        assert line["x"] == [f"{row.factor:.4g}" for row in own]
        assert line["y"] == [f"{row.regret.value:.4g}" for row in own]
        assert line["px"] == sorted(line["px"])


def charts_of(written: str) -> list[dict]:
    return [json.loads(text) for text in re.findall('<script type="application/json">(.*?)</script>', written)]


def test_a_contender_has_one_colour_throughout_and_no_two_share_one(done: Comparison) -> None:
    palette = comparison_charts.colours_of(done)
    assert set(palette) == set(selection.kinds_of(done.records))
    assert len(set(palette.values())) == len(palette)
    assert len(set(colours([f"c{index}" for index in range(40)]).values())) == 40
    written = page.page(done)
    for name, colour in palette.items():
        dots = re.findall(rf'background:(#\w+)"></i>{re.escape(name)}</td>', written)
        lines = re.findall(rf'(#\w+)"></i>{re.escape(name)}</span>', written)
        assert {*dots, *lines} <= {colour}
        assert dots


def test_a_page_says_what_is_left_out_and_why(done: Comparison) -> None:
    written = page.page(done)
    assert "left out: there is one task" in written
    assert "profile of" not in written
    assert "In the tables only: " in written or len(selection.contenders_of(done.records, "teacher-student")) <= 8
    plain = replace(done, settings=replace(done.settings, factors=()))
    plain.records = [record for record in done.records if record.phase != "wrong-base"]
    assert "the comparison was made with no factors" in page.page(plain)
    stopped = replace(done, records=[record for record in done.records if record.phase != "wrong-base"])
    assert "their runs are not finished" in page.page(stopped)
    assert "no curves were recorded" in page.page(replace(done, curves={}))


def test_the_headline_says_who_is_best_and_where_the_controllers_are(done: Comparison) -> None:
    best = selection.tuned_best(done.records, "teacher-student", Criterion.TRAIN)
    text = sections.headline(done)
    assert f"is {best}, after 8 trials" in text
    rows = results.wrong_base_table(done.records, "teacher-student", ["ppo"])
    (right,) = (row for row in rows if row.contender == "ppo" and row.factor == 1.0)
    assert f"ppo, without trials, has {right.over_best.value:.3g} times that schedule's loss from the right" in text
    stopped = replace(done, records=[record for record in done.records if record.phase == "tuning"])
    assert sections.headline(stopped).startswith("Not finished: teacher-student")


def seeds_of_ppo(done: Comparison, count: int) -> Comparison:
    """The comparison with copies of its controller, one for each training seed."""
    own = [record for record in done.records if record.contender == "ppo"]
    copies = [replace(record, contender=f"ppo (seed {seed})") for seed in range(count) for record in own]
    return replace(done, records=[record for record in done.records if record.contender != "ppo"] + copies)


def test_learners_with_five_training_seeds_have_an_interval_over_them(done: Comparison) -> None:
    five = seeds_of_ppo(done, 5)
    assert sections.learners_of(five) == {"ppo": [f"ppo (seed {seed})" for seed in range(5)]}
    (grid,) = sections.learner_grids(five)
    (row,) = grid.rows
    assert row[:2] == ["ppo", "5"]
    names = sections.learners_of(five)
    expected = {r.factor: r.over_reference for r in results.learner_table(five.records, five.tasks, names)}
    assert list(row[2:]) == [tables.interval(expected[factor]) for factor in sorted(expected)]
    assert "hierarchical bootstrap" in page.page(five)
    assert "Learners over their training seeds" in report.text(five)
    assert sections.learner_grids(seeds_of_ppo(done, 4)) == []
    assert "ppo has 4 controllers" in page.page(seeds_of_ppo(done, 4))
    assert sections.learners_of(done) == {}


@pytest.mark.parametrize("log", [False, True])
def test_a_chart_maps_its_ends_to_its_ends_and_ticks_to_round_values(log: bool) -> None:
    axis = svg._Axis(0.5, 20.0, 100.0, 300.0, log)
    assert [axis.at(0.5), axis.at(20.0), axis.at(99.0)] == pytest.approx([100.0, 300.0, 300.0])
    assert axis.at(math.sqrt(10.0)) == pytest.approx(200.0) if log else axis.at(10.25) == pytest.approx(200.0)
    assert axis.ticks() == pytest.approx([0.5, 1.0, 2.0, 5.0, 10.0, 20.0] if log else [5.0, 10.0, 15.0, 20.0])


def test_a_chart_survives_what_is_not_a_number() -> None:
    line = Line("<a>", np.array([1.0, 2.0, 3.0]), np.array([1.0, np.inf, np.nan]), "#000000")
    drawn = svg.as_svg(Chart("T <b>", (line,), "x", "y", y_log=True), "key")
    assert "<a>" not in drawn
    assert charts_of(drawn)[0]["lines"][0]["y"] == ["1"]
    assert "nothing to draw" in svg.as_svg(Chart("T", (), "x", "y"), "key")


def test_the_band_of_one_bad_contender_flattens_no_line_of_a_logarithmic_chart() -> None:
    x, falling = np.array([0.0, 1.0, 2.0]), np.array([1.0, 0.5, 0.25])
    bad = Line("bad", x, np.ones(3), "#000000", low=np.full(3, 1e-3), high=np.full(3, 1e6))
    chart = Chart("T", (Line("good", x, falling, "#0072B2"), bad), "x", "y", y_log=True)
    _, y = svg._axes(chart, list(chart.lines))
    assert (y.low, y.high) == pytest.approx((0.25 / 1.1, 1.1))
    pixels = charts_of(svg.as_svg(chart, "key"))[0]["lines"][0]["py"]
    assert max(pixels) - min(pixels) > 200.0  # of some 250


def test_learned_controllers_stand_out_in_every_table_of_a_task(done: Comparison) -> None:
    task = done.tasks[0]
    every = (*(tables.result_grid(done, task, c) for c in Criterion), tables.time_grid(done, task))
    for grid in every:
        assert {str(grid.rows[index][0]) for index in grid.marked} == {"ppo"}
    price = tables.price_grid(done, task)
    assert {str(price.rows[index][0]) for index in price.marked} == {str(row[0]) for row in price.rows} & {"ppo"}


def test_figures_are_written(done: Comparison, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    first = report.figure(done, tmp_path / "curves.png")
    second = report.repair_figure(done, tmp_path / "repair.png", "ppo")
    assert first.read_bytes()[:4] == second.read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize("share", [0.05, 0.5, 0.65, 0.8])
def test_a_stopped_comparison_can_be_read(done: Comparison, share: float) -> None:
    part = replace(done, records=done.records[: int(share * len(done.records))])
    assert "trials" in report.text(part)


def test_a_stopped_comparison_has_a_page(done: Comparison, tmp_path: Path) -> None:
    part = replace(done, records=[record for record in done.records if record.phase == "tuning"])
    page = report.html(part, tmp_path / "part.html").read_text()
    assert "Not finished" in page
    assert "teacher-student, cosine" in page


def test_show_prints_with_and_without_rich(done: Comparison, capsys, monkeypatch) -> None:
    report.show(done)
    plain = capsys.readouterr().out
    assert "chosen on train loss" in plain
    monkeypatch.setitem(sys.modules, "rich.console", None)
    report.show(done)
    assert capsys.readouterr().out.split() == plain.split()


def test_rich_renders_a_grid() -> None:
    console = pytest.importorskip("rich.console").Console(width=60, record=True)
    console.print(
        text_table.as_rich(Grid("Title [x]", ["name", "loss"], [["cosine", Estimate("1", "0", "2")]], ["A note."]))
    )
    text = console.export_text()
    assert "1 [0, 2]" in text
    assert "A note." in text


def test_plain_grid() -> None:
    grid = Grid("Losses", ["name", "loss"], [["a", "1"], ["long name", "22"]], ["one two three"], frozenset({1}))
    assert text_table.as_text(grid, width=8).splitlines() == [
        "Losses",
        "name        loss",
        "----------- ----",
        "  a            1",
        "* long name   22",
        "one two",
        "three",
    ]
    with pytest.raises(ValueError, match="got a row of 1 cells"):
        Grid("", ["a", "b"], [["1"]])


def test_a_wide_grid_puts_intervals_below_or_leaves_them_out() -> None:
    rows = [["a", Estimate("1", "0.5", "2.25")], ["b", "-"]]
    grid = Grid("Losses", ["name", "loss"], rows, ["Note."], frozenset({1}))
    assert text_table.as_text(grid, 24).splitlines()[3:] == ["  a   1 [0.5, 2.25]", "* b               -", "Note."]
    assert text_table.as_text(grid, 14).splitlines()[3:] == [
        "  a          1",
        "      0.5–2.25",
        "* b          -",
        "Note.",
    ]
    narrow = text_table.as_text(grid, 12).splitlines()
    assert narrow[3:6] == ["  a      1", "* b      -", "Note."]
    assert narrow[6] == "Intervals"
    assert max(map(len, narrow)) <= 12


def test_plain_aligns_numbers_to_the_right_and_words_to_the_left() -> None:
    rows = [("cosine", 0.123456, None, "a"), ("wsd", 12, 3.0, "long")]
    assert text_table.plain(("name", "loss", "low", "note"), rows, indent="  ").splitlines() == [
        "  name      loss  low  note",
        "  cosine  0.1235    -  a",
        "  wsd         12    3  long",
    ]
    assert text_table.plain(None, {"a": "b c", "long": "d"}.items()) == "a     b c\nlong  d"
    assert text_table.plain(("name", "loss"), []) == "name  loss"
    assert text_table.plain(None, []) == ""
    with pytest.raises(ValueError, match=r"got a row of 1 cells, expected 2: \['name', 'loss'\]"):
        text_table.plain(("name", "loss"), [("cosine",)])


def test_html_escapes() -> None:
    assert "<script>" not in text_table.as_html(Grid("<script>", ["<script>"], [["<script>"]], ["<script>"]))


def test_numbers() -> None:
    found = [tables.number(value) for value in (0.0, 1.0, 10.0, 123.0, 1234.5, 0.00012345, math.inf, math.nan, None)]
    assert found == ["0", "1.000", "10.00", "123.0", "1234", "0.0001234", "inf", "-", "-"]
    assert str(tables.interval(Interval(1.0, 0.5, math.inf))) == "1.000 [0.5000, inf]"


def test_importing_needs_no_plotting_and_a_figure_says_what_is_missing(done: Comparison) -> None:
    code = f"""
import sys
blocked = ("matplotlib", "rich", "optuna", "gymnasium", "stable_baselines3")
sys.modules.update({{name: None for name in blocked}})
from metalr.compare import comparison
from metalr.reports import report
found = comparison.load({str(done.folder)!r})
report.show(found)
from metalr.reports import page
print(len(page.page(found)) > 10_000)
for draw in (lambda: report.figure(found, "x.png"), lambda: report.repair_figure(found, "x.png", "ppo")):
    try:
        draw()
    except ImportError as error:
        print(error)
"""
    root = Path(__file__).parents[2]
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root, check=True)
    assert answer.stdout.count("pip install 'metalr[plot]'") == 2
    assert "True" in answer.stdout.split()


def test_settings_are_stored_as_they_were_given(done: Comparison) -> None:
    config = json.loads((done.folder / "config.json").read_text())
    assert config["settings"]["seed"] == 0
    assert isinstance(load(done.folder).settings, Settings)
