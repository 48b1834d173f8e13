"""The page: well-formed, self-contained, accessible, and true to the survey it draws."""

import itertools
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from fxcompress.plan import Plan
from fxcompress.report.chart import HEIGHT, LEFT, RIGHT, TOP, WIDTH, draw_points, draw_timelines
from fxcompress.report.data import GraphView, Line, Point, Survey
from fxcompress.report.page import LONGEST_LISTING, render
from fxcompress.report.style import DARK, LIGHT, TEXT_COLOURS
from fxcompress.timeline import Life, Moment, Timeline

VOID = {"meta", "br", "hr", "img", "link", "input"}
BEFORE = Timeline(
    tuple(Moment("forward" if i < 3 else "backward", f"n{i}", "h", "m.py:1", live, 0) for i, live in enumerate(
        (1024, 2048, 3072, 4096, 512)
    )),
    (Life("kept", "h.1", "m.py:2", 1024, 0, 4, saved=True),),
)  # fmt: skip
AFTER = Timeline(
    tuple(Moment("forward" if i < 2 else "backward", f"m{i}", "h", "m.py:1", 1000 + i, 7) for i in range(4)),
    tuple(Life(f"t{i}", "h", "m.py:3", 10 * i, 0, 3, saved=False) for i in range(12)),
)
POINTS = (
    Point("PyTorch's own cut", "plain", 4096, 4000, 0.0, 1.0),
    Point("as given", "given", 1003, 900, 0.05, 1.0, 0.01),
    Point("2/2 bits", "width", 900, 600, 0.08, 1.0, 0.5),
    Point("budget 35%", "budget", failure="no plan found; the best tried peaks at 1.00 KiB"),
)


@pytest.fixture
def survey(plan: Plan) -> Survey:
    forward = (Line("input", "primals_1", "float32[8x8]"), Line("node", "addmm = addmm(primals_1)", note="saved as x"))
    view = GraphView(plan.graphs[0], BEFORE, AFTER, forward, (Line("codec", "decode → y", note="3 nodes"),))
    return Survey("bench.models:gpt2", plan, (view,), POINTS)


class Checker(HTMLParser):
    """Collects tags and attributes, and insists on balance."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} is given twice"
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert "svg" in self.open, f"<{tag}/> closes itself only inside an image"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        self.text += data


def checked(page: str) -> Checker:
    checker = Checker()
    checker.feed(page)
    checker.close()
    assert not checker.open
    return checker


def test_it_is_well_formed_and_asks_for_nothing(survey: Survey) -> None:
    page = render(survey)
    found = checked(page)
    names = {tag for tag, _ in found.tags}
    assert page.startswith("<!doctype html>") and not names & {"script", "link", "img", "iframe", "object"}
    assert not any(name in attributes for _, attributes in found.tags for name in ("src", "href", "style", "onclick"))
    assert "url(" not in page and "@import" not in page and "http" not in page


def test_it_can_be_read_without_eyes_colours_or_a_mouse(survey: Survey) -> None:
    found = checked(render(survey))
    tags = found.tags
    assert ("html", {"lang": "en"}) in tags
    assert any(tag == "meta" and attributes.get("name") == "viewport" for tag, attributes in tags)
    images = [attributes for tag, attributes in tags if tag == "svg"]
    assert all(image.get("role") == "img" or image.get("aria-hidden") == "true" for image in images)
    charts = sum(image.get("role") == "img" for image in images)
    assert charts == 2 and sum(tag == "desc" for tag, _ in tags) == charts
    scrolling = [attributes for _, attributes in tags if attributes.get("class") == "scroll"]
    assert scrolling and all(box["tabindex"] == "0" and box["aria-label"] for box in scrolling)
    assert sum(tag == "table" for tag, _ in tags) == sum(tag == "caption" for tag, _ in tags)
    assert all(attributes.get("scope") == "col" for tag, attributes in tags if tag == "th")
    levels = [int(tag[1]) for tag, _ in tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after <= before + 1 for before, after in itertools.pairwise(levels))


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    light, dark = sorted((luminance(a), luminance(b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("palette", [LIGHT, DARK], ids=["light", "dark"])
def test_contrast_is_that_of_wcag_aa(palette: dict[str, str]) -> None:
    """4.5 for text, by the definition of relative luminance."""
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    for back in ("back", "panel"):
        for colour in TEXT_COLOURS:
            assert contrast(palette[colour], palette[back]) >= 4.5, (colour, back)
    assert LIGHT.keys() == DARK.keys()


def test_numbers_are_the_surveys(survey: Survey) -> None:
    text = checked(render(survey)).text
    for words in (
        "3.91 KiB → 900 B", "4.00 KiB → 1003 B", "4.1x lower", "+5.0%", "1.0%", "h.*.mlp (x12)", "affine 4b g128 SR",
        "no plan found; the best tried peaks at 1.00 KiB", "addmm = addmm(primals_1)", "⟵ saved as x", "model.py:12",
        "PyTorch's own cut: 4.00 KiB at n3 (backward)", "4 more",
    ):  # fmt: skip
        assert words in text, words
    assert text.count("a model") >= 3


def test_names_are_text_and_nothing_else(survey: Survey) -> None:
    evil = "<script>alert(1)</script>\x1b\"'&"
    view = survey.graphs[0]
    tensor = replace(view.plan.decisions[0].tensor, name=evil, layer=evil, source=evil)
    decisions = (replace(view.plan.decisions[0], tensor=tensor, reason=evil), *view.plan.decisions[1:])
    moments = (Moment("forward", evil, evil, evil, 5, 1),)
    timeline = Timeline(moments, (Life(evil, evil, evil, 4, 0, 0, saved=True),))
    line = Line("node", evil, evil, evil, evil, evil)
    bad = GraphView(replace(view.plan, decisions=decisions), timeline, timeline, (line,), (line,))
    page = render(replace(survey, target=evil, graphs=(bad,), points=(*POINTS, Point(evil, "width", 5, failure=evil))))
    found = checked(page)
    assert not any(tag == "script" for tag, _ in found.tags) and "\x1b" not in page
    assert "<script>alert(1)</script>" in found.text


def test_a_long_graph_is_cut(survey: Survey) -> None:
    view = replace(survey.graphs[0], forward=(Line("node", "x"),) * (LONGEST_LISTING + 5))
    assert "… 5 more lines" in render(replace(survey, graphs=(view,)))


def test_several_graphs_are_numbered(survey: Survey) -> None:
    text = checked(render(replace(survey, graphs=survey.graphs * 2))).text
    assert "Graph 1 of 2: Memory over one step" in text and "Graph 2 of 2: What is saved, and how" in text


def test_equal_surveys_give_equal_pages(survey: Survey) -> None:
    assert render(survey) == render(survey)


def coordinates(path: str) -> list[tuple[float, float]]:
    """The corners of a path of M, H and V."""
    x, y, corners = 0.0, 0.0, []
    for letter, numbers in re.findall(r"([MHVZ])([-0-9. ]*)", path):
        values = [float(number) for number in numbers.split()]
        if letter == "M":
            x, y = values
        elif letter == "H":
            x = values[0]
        elif letter == "V":
            y = values[0]
        corners.append((x, y))
    return corners


def test_the_timeline_reaches_its_peak_and_stays_inside() -> None:
    svg = draw_timelines(BEFORE, AFTER)
    (plain,) = re.findall(r'class="line plain" d="([^"]+)"', svg)
    corners = coordinates(plain)
    assert min(y for _, y in corners) == TOP, "the higher of the two peaks touches the top"
    assert all(LEFT <= x <= WIDTH - RIGHT and TOP <= y <= HEIGHT for x, y in corners)
    xs = [x for x, _ in corners]
    assert xs == sorted(xs) and xs[-1] == WIDTH - RIGHT


def test_a_peak_of_one_moment_among_thousands_shows() -> None:
    moments = tuple(Moment("forward", f"n{i}", "", "", 10_000 if i == 4321 else 1, 0) for i in range(9000))
    (path,) = re.findall(r'class="line plain" d="([^"]+)"', draw_timelines(Timeline(moments, ()), AFTER))
    assert min(y for _, y in coordinates(path)) == TOP
    assert len(path) < 30_000


def test_empty_timelines_are_drawn() -> None:
    empty = Timeline((), ())
    assert checked(draw_timelines(empty, empty)).tags


def test_points_without_a_plan_are_left_out() -> None:
    svg = draw_points(POINTS)
    assert svg.count("<g ") == 3 and ">4</text>" not in svg
    places = re.findall(r"translate\(([-0-9.]+) ([-0-9.]+)\)", svg)
    assert all(LEFT <= float(x) <= WIDTH - RIGHT and TOP <= float(y) <= HEIGHT for x, y in places)
    assert float(places[0][0]) > float(places[1][0]), "a lower peak is further left"
    assert float(places[0][1]) > float(places[1][1]), "less time is further down"


def test_settings_that_cost_less_than_nothing_stay_inside() -> None:
    faster = (*POINTS, Point("faster", "width", 10, 10, -0.2, 1.0))
    places = re.findall(r"translate\(([-0-9.]+) ([-0-9.]+)\)", draw_points(faster))
    assert all(TOP <= float(y) <= HEIGHT for _, y in places)
