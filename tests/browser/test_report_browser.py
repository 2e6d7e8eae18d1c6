"""The report in a real browser: nothing runs or leaves the file, and transcripts are found and read."""

import re
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hostile import HOSTILE, hostile_run, measured

from loop.heldout.comparison import Change, Comparison
from loop.records import Attack, Completion, Critique, read_jsonl, write_jsonl
from loop.report.page import write_comparison, write_page

api = pytest.importorskip("playwright.sync_api", reason="playwright is missing: pip install playwright")
CHROMIUM = next((found for name in ("chromium", "chromium-browser") if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine: apt install chromium")
WIDTHS = (1280, 400)
LONG = 1_000_000


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hostile run with many attacks, one of a single very long line, and one that is asked again."""
    run = hostile_run(tmp_path_factory.mktemp("hostile"))
    measured(run)
    folder = run.iteration(1)
    first, *others = read_jsonl(folder / "attacks.jsonl", Attack)
    turns = [{"role": "user", "content": "Where is the\u202e biscuit? " + "x" * LONG}]
    more = [
        replace(first, id=f"attack-more-{n:04d}", strategy=f"way-{n % 3}", domain="benign", harmful=False)
        for n in range(1500)
    ]
    more[0] = replace(more[0], id="attack-long", turns=turns)
    write_jsonl(folder / "attacks.jsonl", [first, *others, *more])
    _asked_again(run.iteration(2), replace(first, id="attack-again", iteration=2, parent_id=first.id))
    return write_page(run)


def _asked_again(folder: Path, attack: Attack) -> None:
    folder.mkdir()
    answer = Completion("completion-again", attack.id, 0, "policy", "I would rather not.", "stop", 5, "m")
    critique = Critique("critique-again", answer.id, "Critic", 0.1, 0.9, "p1", "Polite.", span="rather not")
    write_jsonl(folder / "attacks.jsonl", [attack])
    write_jsonl(folder / "completions.jsonl", [answer])
    write_jsonl(folder / "critiques.jsonl", [critique])


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with api.sync_playwright() as playwright:
        # Chromium's own sandbox needs rights that a container seldom has; the pages are our own.
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def show(browser: Any) -> Iterator[Any]:
    """`show(path, width, scheme, hash)` → the page, loaded; the test fails if it complains or asks anyone."""
    contexts: list[Any] = []
    trouble: list[str] = []

    def go(path: Path, width: int = 1280, scheme: str = "light", hash: str = "") -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: trouble.append(message.text))
        page.on("pageerror", lambda error: trouble.append(str(error)))
        page.on("dialog", lambda dialog: (trouble.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda asked: None if asked.url.startswith(path.as_uri()) else trouble.append(asked.url),
        )
        page.goto(path.as_uri() + hash)
        if page.query_selector("#transcripts"):
            page.wait_for_selector("html[data-ready]")
        return page

    yield go
    for context in contexts:
        context.close()
    assert not trouble


def _ids(page: Any) -> list[str]:
    """Where the rows in sight lead to."""
    found: list[str] = []
    for place in range(page.locator(".option").count()):
        page.locator(".option").nth(place).click()
        found.append(page.locator("#story h3").first.inner_text())
    return found


def _count(page: Any) -> int:
    return int(page.locator("#count").inner_text().split(" of ")[0].replace(",", ""))


def violations(page: Any) -> list[Any]:
    """What axe-core finds fault with, each with the first elements that show it."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="no axe-playwright-python")
    found = axe.Axe().run(page).response["violations"]
    return [(one["id"], [node["html"][:200] for node in one["nodes"]][:3]) for one in found]


# ---- safe, and for everyone ---------------------------------------------------------------------


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_mend(show: Any, report: Path, width: int, scheme: str):
    page = show(report, width, scheme, "#attack-aa")
    page.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true; })")
    assert not violations(page)


@pytest.mark.parametrize("width", WIDTHS)
def test_no_page_is_wider_than_the_screen(show: Any, report: Path, width: int):
    for hash in ("", "#attack-aa", "#attack-long", "#item-1"):
        page = show(report, width, hash=hash)
        assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_hostile_text_is_shown_as_text(show: Any, report: Path):
    page = show(report, hash="#attack-aa")
    story = page.locator("#story").inner_text()
    for words in ("<script>alert(1)</script>", "<svg onload=alert(3)>", "javascript:alert(4)", "{{ 7 * 7 }}"):
        assert words in story
    for sign in ("⟦U+202E⟧", "⟦U+001B⟧", "⟦U+0000⟧", "⟦U+D800⟧"):
        assert sign in story
    assert not page.locator("#story svg, #story script, #story img, #list svg, #list script").count()
    assert not page.locator("a:not([href^='#'])").count()


def test_a_line_of_a_million_characters_can_be_read(show: Any, report: Path):
    page = show(report, hash="#attack-long")
    assert "⟦U+202E⟧ biscuit" in page.locator("#story .said").nth(0).inner_text()
    page.get_by_role("button", name=re.compile("Show all")).first.click()
    assert len(page.locator("#story .said").nth(0).inner_text()) > 100_000


def test_a_comparison_passes_too(show: Any, tmp_path: Path):
    change = Change(
        "safety",
        "harmful_compliance",
        "lower",
        0.4,
        0.2,
        -0.2,
        -0.3,
        -0.1,
        0.1,
        0.2,
        0.05,
        0.12,
        24,
        0.9,
        "better",
    )
    shown = replace(change, metric="refusal", margin=None, p_holm=None, finding="")
    write_comparison(Comparison(HOSTILE, "b", "no regression", [change, shown]), tmp_path / "c.html")
    for width in WIDTHS:
        page = show(tmp_path / "c.html", width)
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert not violations(page)


# ---- finding ------------------------------------------------------------------------------------


LEFT = {
    ("kind", "item"): 2,
    ("iteration", "0"): 2,
    ("iteration", "2"): 1,
    ("domain", "benign"): 1500,
    ("strategy", "way-1"): 500,
    ("verdict", "bad"): 1,
    ("verdict", "good"): 2,
}


def test_each_filter_leaves_what_it_should(show: Any, report: Path):
    page = show(report)
    for (control, value), found in LEFT.items():
        page.select_option(f"#{control}", value)
        assert (control, value, _count(page)) == (control, value, found)
        page.select_option(f"#{control}", "")
        assert _count(page) == 1506


def test_filters_narrow_each_other_and_may_leave_nothing(show: Any, report: Path):
    page = show(report)
    page.select_option("#kind", "item")
    page.check("#changed")
    assert _ids(page) == ["item-1"]
    page.select_option("#iteration", "0")
    assert _count(page) == 0 and not page.locator("#list").is_visible()


def test_what_changed_is_found_among_attacks_asked_again(show: Any, report: Path):
    page = show(report)
    page.check("#changed")
    assert sorted(_ids(page)) == ["attack-again", "item-1"]


def test_a_search_finds_words_anywhere_in_a_story(show: Any, report: Path):
    page = show(report)
    page.fill("#search", "RATHER polite")
    assert _ids(page) == ["attack-again"]
    page.fill("#search", "<script>alert(1)</script> revised")
    assert _ids(page) == ["attack-aa"]


def test_only_rows_in_sight_are_drawn(show: Any, report: Path):
    page = show(report)
    assert page.locator(".option").count() < 40
    page.evaluate("document.getElementById('list').scrollTop = 1e9")
    page.wait_for_selector(".option[aria-posinset='1506']")
    assert page.locator(".option").count() < 40


def test_the_list_is_worked_by_keys(show: Any, report: Path):
    page = show(report)
    page.focus("#list")
    page.keyboard.press("ArrowDown")
    assert page.url.endswith("#attack-aa")
    page.keyboard.press("End")
    active = page.locator(f"#{page.locator('#list').get_attribute('aria-activedescendant')}")
    assert active.get_attribute("aria-posinset") == "1506" and active.get_attribute("aria-selected") == "true"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "story"


# ---- reading ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("hash", "leads_to"),
    [
        ("attack-again", "attack-again"),
        ("completion-2", "attack-aa"),
        ("critique-1", "attack-aa"),
        ("pair-1", "attack-aa"),
        ("item-1", "item-1"),
    ],
)
@pytest.mark.parametrize("width", WIDTHS)
def test_an_address_leads_to_a_story(show: Any, report: Path, hash: str, leads_to: str, width: int):
    page = show(report, width, hash=f"#{hash}")
    title = page.locator("#story h3").first
    assert title.inner_text() == leads_to
    assert 0 <= title.bounding_box()["y"] < 900
    assert page.locator(".option[aria-selected='true']").count() == 1


def test_an_address_that_leads_nowhere_shows_the_report(show: Any, report: Path):
    for hash in ("#attack-unknown", "#%E0%A4%A", "#<script>"):
        page = show(report, hash=hash)
        assert page.locator("h1").is_visible() and _count(page) == 1506


def test_a_story_goes_from_seed_to_pair_and_marks_what_is_quoted(show: Any, report: Path):
    page = show(report, hash="#attack-again")
    headings = page.locator("#story h4").all_inner_texts()
    assert headings[0] == "Seed seed-1" and headings[-2:] == [
        "Pair",
        "Every policy’s answer, by a judge that is not the critic",
    ]
    assert page.locator("#story mark").all_inner_texts() == ["rather not"]
    page.get_by_role("link", name="attack-aa", exact=True).click()
    api.expect(page.locator("#story h3").first).to_have_text("attack-aa")
    page.go_back()
    assert page.locator("#story h3").first.inner_text() == "attack-again"


def test_an_item_is_shown_before_and_after_side_by_side(show: Any, report: Path):
    page = show(report, hash="#item-1")
    before, after = page.locator("#story .sides section").all()
    assert "baseline" in before.inner_text() and "▲ bad answer" in before.inner_text()
    assert "iteration 1" in after.inner_text() and "✓ good answer" in after.inner_text()
    assert before.bounding_box()["y"] == after.bounding_box()["y"]
    page.locator("#story select").first.select_option("1")
    assert "iteration 1" in page.locator("#story .sides section").first.inner_text()


def test_on_paper_the_figures_and_the_story_are_left(show: Any, report: Path):
    page = show(report, hash="#attack-again")
    page.emulate_media(media="print")
    assert not page.locator("#list").is_visible() and not page.locator("#filters").is_visible()
    assert page.locator("#story").is_visible() and page.locator("#results table").first.is_visible()
