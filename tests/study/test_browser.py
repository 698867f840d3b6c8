"""The page clicked through in a real Chromium: by keys at desktop width, by touch on a phone."""

import json
import os

import pytest

from percent_ray.study import page as pages
from percent_ray.study.count import count
from percent_ray.study.page import Design
from percent_ray.study.records import QUESTIONS, read_key
from tests.browser import CHROMIUM
from tests.study.fabricated import ROWS, evaluation

DESKTOP = {"viewport": {"width": 1280, "height": 800}}
PHONE = {
    "viewport": {"width": 390, "height": 844},
    "device_scale_factor": 2,
    "is_mobile": True,
    "has_touch": True,
}
PAIRS = 4

pytestmark = pytest.mark.skipif(
    not CHROMIUM, reason="needs a browser: apt-get install chromium, or google-chrome on the PATH"
)


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    arguments = ["--disable-gpu", *(["--no-sandbox"] if os.geteuid() == 0 else [])]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        yield browser
        browser.close()


@pytest.fixture
def study(tmp_path):
    home = evaluation(tmp_path / "eval")
    design = Design(pairs=PAIRS, images=3, consent="My answers may be published.")
    pages.make(*ROWS, design, evaluation=home, folder=tmp_path / "study")
    return tmp_path / "study"


@pytest.fixture
def opened(browser, study):
    """Opens the page on a device; afterwards neither an error nor a request has been seen."""
    contexts, problems = [], []

    def open_on(device):
        context = browser.new_context(**device)
        contexts.append(context)
        page = context.new_page()
        page.set_default_timeout(5000)
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda message: problems.append(message.text))
        page.on(
            "request",
            lambda request: (
                problems.append(request.url[:80])
                if not request.url.startswith(("file:", "data:", "blob:"))
                else None
            ),
        )
        page.goto((study / "study.html").as_uri())
        return page

    yield open_on
    for context in contexts:
        context.close()
    assert not problems


def begin(page, name):
    page.get_by_label("Your name or code").fill(name)
    page.get_by_label("My answers may be published.").check()
    page.get_by_role("button", name="Start").click()


def chosen(page):
    """The answers that the page shows to the pair, None where there is none."""
    radios = page.locator("fieldset").evaluate_all(
        "groups => groups.map(group => group.querySelector(':checked')?.value ?? null)"
    )
    return dict(zip(QUESTIONS, radios, strict=True))


def saved(page, study, name):
    with page.expect_download() as caught:
        page.get_by_role("button", name="Download answers").click()
    path = study / "answers" / name
    caught.value.save_as(path)
    assert caught.value.suggested_filename.startswith("answers-")
    return path


def test_by_keys_with_a_reload_and_a_change_of_mind(opened, study):
    page = opened(DESKTOP)
    page.get_by_label("Your name or code").focus()
    page.keyboard.type("ann")
    page.keyboard.press("Enter")
    assert page.get_by_text("Please agree first").is_visible()
    page.keyboard.press("Space")  # the box has the focus
    page.keyboard.press("Enter")
    where = page.locator("#where")
    assert where.inner_text() == f"1 of {PAIRS}"
    for key in "102":  # Set 1, no preference, Set 2
        page.keyboard.press(key)
    assert chosen(page) == {"overall": "set_1", "diversity": "none", "quality": "set_2"}
    page.keyboard.press("Enter")
    page.keyboard.press("2")
    page.keyboard.press("Enter")
    assert page.get_by_text("2 questions have no answer yet").is_visible()
    assert where.inner_text() == f"2 of {PAIRS}"

    page.reload()
    assert where.inner_text() == f"2 of {PAIRS}"
    assert chosen(page) == {"overall": "set_2", "diversity": None, "quality": None}
    page.keyboard.press("2")
    page.keyboard.press("2")
    page.keyboard.press("Backspace")
    assert where.inner_text() == f"1 of {PAIRS}"
    assert chosen(page) == {"overall": "set_1", "diversity": "none", "quality": "set_2"}
    page.get_by_role("radio", name="Set 1").nth(1).check()  # diversity, in place of none
    page.keyboard.press("Enter")
    page.keyboard.press("Enter")
    for _ in range(2):
        for key in "000":
            page.keyboard.press(key)
        page.keyboard.press("Enter")

    assert page.get_by_role("heading", name="Thank you!").is_visible()
    path = saved(page, study, "ann.json")
    fields = json.loads(path.read_text())
    assert fields["annotator"] == "ann"
    given = [[answer[question] for question in QUESTIONS] for answer in fields["answers"]]
    assert given == [["set_1", "set_1", "set_2"], ["set_2"] * 3, ["none"] * 3, ["none"] * 3]


def test_by_touch_on_a_phone_and_counted(opened, study):
    page = opened(PHONE)
    begin(page, "Bén 7")
    assert page.evaluate("document.documentElement.scrollWidth") == 390, "nothing is cut off"
    assert not page.locator(".keys").is_visible()
    picture = page.get_by_role("button", name="Enlarge picture 3 of set 2")
    small = picture.bounding_box()["width"]
    picture.tap()
    assert page.get_by_text("Set 2, picture 3 of 3").is_visible()
    assert page.locator("#enlarged").bounding_box()["width"] > 1.5 * small
    page.locator("#following").tap()
    assert page.get_by_text("Set 2, picture 1 of 3").is_visible()
    page.get_by_role("button", name="Close").tap()
    taps = [("Set 1", "Set 2", "Set 2"), ("No preference", "Set 1", "Set 2"), ("Set 2",) * 3]
    for pair in taps:
        for question, choice in zip(QUESTIONS, pair, strict=True):
            group = page.locator(f"fieldset[data-question={question}]")
            choice = group.get_by_role("radio", name=choice)
            assert choice.bounding_box()["height"] >= 44
            choice.tap()
        page.get_by_role("button", name="Next pair").tap()
    page.get_by_role("button", name="Stop here").tap()
    assert page.get_by_text("9 of 12 questions are answered.").is_visible()
    path = saved(page, study, "ben.json")

    count([path], None)
    numbers = json.loads((study / "counts.json").read_text())
    assert numbers["annotators"] == ["Bén 7"]
    names = {"Set 1": "set_1", "Set 2": "set_2"}
    for column, question in enumerate(QUESTIONS):
        expected = {"a": 0, "none": 0, "b": 0}
        for taken, pair in zip(taps, read_key(study / "key.json").pairs, strict=False):
            first = {"A": "a", "B": "b"}[pair.set_1]
            second = {"A": "b", "B": "a"}[pair.set_1]
            sides = {"set_1": first, "set_2": second}
            expected[sides.get(names.get(taken[column], ""), "none")] += 1
        of = numbers["questions"][question]
        assert {side: share["answers"] for side, share in of["shares"].items()} == expected
        assert of["missing"] == 1


def test_a_second_annotator_starts_afresh_and_the_text_is_there_to_copy(opened, study):
    page = opened(DESKTOP)
    begin(page, "ann")
    page.keyboard.press("1")
    page.get_by_role("button", name="Stop here").click()
    page.context.grant_permissions([])
    page.evaluate("() => { navigator.clipboard.writeText = () => Promise.reject(new Error()) }")
    page.get_by_role("button", name="Copy to clipboard").click()
    assert page.get_by_text("please copy the text below").is_visible()
    text = json.loads(page.get_by_label("Your answers as text").input_value())
    assert text["answers"][0] == {"pair": 1, "overall": "set_1", "diversity": None, "quality": None}
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Another annotator on this device").click()
    assert page.get_by_label("Your name or code").input_value() == ""
    begin(page, "ben")
    assert set(chosen(page).values()) == {None}


def test_keys_can_be_turned_off_and_do_nothing_while_a_picture_is_large(opened):
    page = opened(DESKTOP)
    begin(page, "ann")
    page.get_by_role("button", name="Enlarge picture 1 of set 1").click()
    page.keyboard.press("1")
    page.keyboard.press("ArrowRight")
    assert page.get_by_text("Set 1, picture 2 of 3").is_visible()
    page.keyboard.press("Escape")
    assert set(chosen(page).values()) == {None}
    page.get_by_label("Keys").uncheck()
    page.keyboard.press("1")
    assert set(chosen(page).values()) == {None}
    page.get_by_label("Keys").check()
    page.keyboard.press("1")
    assert chosen(page)["overall"] == "set_1"


def test_a_screen_reader_hears_what_is_asked(opened):
    page = opened(DESKTOP)
    begin(page, "ann")
    group = page.get_by_role("radiogroup", name="Diversity. Which set is more varied?")
    assert group.get_by_role("radio").count() == 3
    assert page.locator("html").get_attribute("lang") == "en"
    assert page.get_by_role("progressbar", name=f"1 of {PAIRS}").is_visible()
    page.keyboard.press("Tab")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineWidth")
    assert outline == "3px"
