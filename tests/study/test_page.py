"""What `make` writes, and that the page does not say which side is which."""

import base64
import io
import json
import re
import sys
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from jobs import user_study
from percent_ray.study import page as pages
from percent_ray.study.page import Design
from percent_ray.study.records import read_key
from tests.study.fabricated import PROMPTS, ROWS, evaluation, pixels_of

SMALL = Design(pairs=4, images=3)
PICTURE = re.compile(r'data:image/webp;base64,[^"]+')


def made(home, folder, design=SMALL, rows=tuple(ROWS)):
    pages.make(*rows, design, evaluation=home, folder=folder)
    return (folder / "study.html").read_text(), read_key(folder / "key.json")


def shown(page):
    [data] = re.findall(
        r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL
    )
    return json.loads(data)


def decoded(uri):
    return Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2])))


def test_the_page_shows_the_pictures_that_the_key_says(tmp_path):
    home = evaluation(tmp_path / "eval", sizes=(8, 8))
    page, key = made(home, tmp_path / "study")
    data = shown(page)
    assert data["study"] == key.study
    assert len(data["pairs"]) == len(key.pairs) == 4
    for pair, record in zip(data["pairs"], key.pairs, strict=True):
        assert pair["prompt"] == record.text == f"prompt {record.prompt} </script>"
        rows = (0, 1) if record.set_1 == "A" else (1, 0)
        for row, uris in zip(rows, pair["sets"], strict=True):
            assert len(uris) == 3
            for image, uri in enumerate(uris):
                expected = pixels_of(row, record.prompt, image)
                np.testing.assert_array_equal(np.asarray(decoded(uri)), expected)
    assert oct((tmp_path / "study" / "key.json").stat().st_mode)[-3:] == "600"


def test_other_labels_leave_the_page_the_same_to_the_byte(tmp_path):
    page, key = made(evaluation(tmp_path / "one"), tmp_path / "a")
    labels = {"flow-grpo": "PEC", "pec-dino": "The winner"}
    renamed, other = made(evaluation(tmp_path / "two", labels=labels), tmp_path / "b")
    assert renamed == page
    assert (other.row_a.label, key.row_a.label) == ("PEC", "Flow-GRPO")


def test_swapped_rows_leave_the_page_the_same_but_for_its_pictures(tmp_path):
    home = evaluation(tmp_path / "eval")
    page, key = made(home, tmp_path / "a")
    swapped, other = made(home, tmp_path / "b", rows=tuple(reversed(ROWS)))
    assert swapped != page
    assert PICTURE.sub("", swapped).replace(other.study, "") == PICTURE.sub("", page).replace(
        key.study, ""
    )
    for pair, swap in zip(shown(page)["pairs"], shown(swapped)["pairs"], strict=True):
        assert pair["sets"] == list(reversed(swap["sets"]))


def test_nothing_of_the_files_is_on_the_page(tmp_path):
    """Neither labels nor names, nor the seed, nor what the PNG files carry; and pictures of two
    resolutions come in one."""
    home = evaluation(tmp_path / "eval", sizes=(16, 48))
    page, _ = made(home, tmp_path / "study", Design(pairs=4, images=3, seed=987654))
    source = PICTURE.sub("", page).casefold()
    for text in ("987654", ".png", str(home), "rows/", "row_a", "seed", *ROWS, *ROWS.values()):
        assert text.casefold() not in source, text
    uris = PICTURE.findall(page)
    assert len(uris) == 2 * 3 * 4
    for uri in uris:
        assert decoded(uri).size == (48, 48)
        assert not set(decoded(uri).info) & {"row", "exif", "icc_profile", "xmp"}
        assert b"Flow-GRPO" not in base64.b64decode(uri.partition(",")[2])
    assert "http" not in source.replace("http-equiv", "")


def test_an_icc_profile_does_not_come_along(tmp_path):
    from PIL import ImageCms

    home = evaluation(tmp_path / "eval")
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    for path in home.glob("rows/pec-dino/pictures/*/*.png"):
        Image.open(path).save(path, icc_profile=profile)
    page, _ = made(home, tmp_path / "study")
    assert not any("icc_profile" in decoded(uri).info for uri in PICTURE.findall(page))


def test_sides_are_balanced_and_drawn_by_the_seed_and_so_are_prompts(tmp_path):
    home = evaluation(tmp_path / "eval")
    drawn = set()
    for seed in range(4):
        _, key = made(home, tmp_path / str(seed), Design(pairs=6, images=3, seed=seed))
        assert Counter(pair.set_1 for pair in key.pairs) == {"A": 3, "B": 3}
        assert len({pair.prompt for pair in key.pairs}) == 6
        drawn.add(tuple((pair.prompt, pair.set_1) for pair in key.pairs))
    assert len(drawn) == 4
    _, again = made(home, tmp_path / "again", Design(pairs=6, images=3, seed=3))
    assert tuple((pair.prompt, pair.set_1) for pair in again.pairs) in drawn


def test_only_prompts_with_enough_pictures_in_both_rows_are_drawn(tmp_path):
    home = evaluation(tmp_path / "eval")
    (home / "rows" / "pec-dino" / "pictures" / "00002" / "002.png").unlink()
    for path in (home / "rows" / "flow-grpo" / "pictures" / "00005").iterdir():
        path.unlink()
    _, key = made(home, tmp_path / "study", Design(pairs=5, images=3))
    assert {pair.prompt for pair in key.pairs} == set(range(PROMPTS)) - {2, 5}


def test_large_pictures_are_shrunk_to_the_size_and_keep_their_form(tmp_path):
    home = evaluation(tmp_path / "eval", sizes=(16, 300))
    for path in home.glob("rows/pec-dino/pictures/*/*.png"):
        Image.open(path).crop((0, 0, 300, 150)).save(path)
    page, _ = made(home, tmp_path / "study", Design(pairs=4, images=3, size=200))
    sizes = Counter(decoded(uri).size for uri in PICTURE.findall(page))
    assert sizes == {(200, 200): 12, (200, 100): 12}


def run(monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["user_study.py", *map(str, arguments)])
    user_study.main()


def test_the_job_says_what_it_made_and_where(tmp_path, monkeypatch, capsys):
    home = evaluation(tmp_path / "eval")
    (home / "rows" / "pec-dino" / "pictures" / "00002" / "002.png.part").touch()
    row = home / "rows" / "flow-grpo"
    run(monkeypatch, "make", row, "PEC (DINO)", "--pairs", 4, "--images", 3, "--evaluation", home)
    output = capsys.readouterr().out
    [page] = home.glob("user_study/*/study.html")
    assert (
        f"{page}  {page.stat().st_size / 1e6:.1f} MB, 4 pairs of 2 x 3 pictures of 16 px" in output
    )
    assert "Flow-GRPO (A) against PEC (DINO) (B): 4 of the 7 prompts" in output
    assert "1 entries of other names than 00012/003.png" in output


def break_picture(home):
    for path in home.glob("rows/pec-dino/pictures/*/000.png"):
        path.write_bytes(path.read_bytes()[:-30])


def same_label(home):
    for path in home.glob("rows/*/row.json"):
        path.write_text('{"label": "PEC"}')


def no_pictures(home):
    (home / "rows" / "pec-dino" / "pictures").rename(home / "gone")


def no_label(home):
    (home / "rows" / "pec-dino" / "row.json").write_text("{}")


def one_prompt(home):
    (home / "prompts.jsonl").write_text('{"prompt": "alone"}')


@pytest.mark.parametrize(
    ("rows", "options", "spoil", "message"),
    [
        (
            ("Flow-GRPO", "pec-dino"),
            "--pairs 8",
            None,
            "Flow-GRPO has so many pictures of 7 prompts",
        ),
        (("Flow-GRPO", "pec-dino"), "--images 4", None, "both of 0; set fewer pairs or images"),
        (("Flow-GRPO", "pec-dino"), "--images 1", None, "--images needs 2 or more, is 1"),
        (("Flow-GRPO", "pec-dino"), "--pairs 0", None, "--pairs needs 1 or more, is 0"),
        (("Flow-GRPO", "pec-dino"), "--size 2", None, "--size needs 16 or more, is 2"),
        (("Flow-GRPO", "pec-dino"), "--pairs x", None, "invalid int value: 'x'; --help shows how"),
        (("Flow-GRPO", "flow-grpo"), "", None, "are one and the same row"),
        (("Flow-GRPO", "NFT"), "", None, "has no row NFT; it has Flow-GRPO, PEC (DINO)"),
        (("flow-grpo", "PEC"), "", same_label, "2 rows of {home} are labelled PEC: name flow-grpo"),
        (
            ("Flow-GRPO", "pec-dino"),
            "",
            no_pictures,
            "holds no pictures; run jobs/evaluate.py again",
        ),
        (("Flow-GRPO", "pec-dino"), "", no_label, "row.json is not a row's: expected an object"),
        (
            ("Flow-GRPO", "pec-dino"),
            "",
            one_prompt,
            "pictures of prompt 6, and prompts.jsonl has 1",
        ),
        (("Flow-GRPO", "pec-dino"), "", break_picture, "000.png cannot be read as a picture"),
    ],
)
def test_a_study_that_cannot_be_made_is_one_line(
    tmp_path, monkeypatch, capsys, rows, options, spoil, message
):
    home = evaluation(tmp_path / "eval")
    if spoil:
        spoil(home)
    usual = ["--pairs", "4", "--images", "3", "--evaluation", home, "--to", tmp_path / "study"]
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "make", *rows, *usual, *options.split())
    assert ended.value.code == 2
    [line] = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("error: ")
    assert message.format(home=home) in line
    assert not (tmp_path / "study" / "study.html").exists()


def test_an_evaluation_that_is_not_there_is_one_line(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, "make", "a", "b", "--evaluation", tmp_path / "none")
    assert "none holds no evaluated rows; run jobs/evaluate.py" in capsys.readouterr().err


def test_the_key_of_another_study_is_not_overwritten(tmp_path):
    home = evaluation(tmp_path / "eval")
    _, key = made(home, tmp_path / "study")
    made(home, tmp_path / "study")  # the same study once more
    with pytest.raises(ValueError, match=f"is the key of another study, {key.study}"):
        made(home, tmp_path / "study", Design(pairs=4, images=3, seed=1))
    assert read_key(tmp_path / "study" / "key.json") == key


def test_help_teaches(monkeypatch, capsys):
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch, "--help")
    assert ended.value.code == 0
    output = capsys.readouterr().out
    for words in ("examples", "make ROW_A ROW_B", "count ANSWERS/*.json", "keep the key"):
        assert words in output
