"""The page in a real browser: what is drawn with the mouse is what is asked."""

import base64
import io
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("gradio", reason="the extra `app` is not installed")
sync_api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

from helpers.tiny_model import make_model  # noqa: E402

from granvit import app, predict  # noqa: E402
from granvit.app import Limits, ServedModels, build  # noqa: E402
from granvit.images import open_picture  # noqa: E402
from granvit.predict import GranViT, checked_boxes  # noqa: E402

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")
QUIET = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
         "--disable-component-update", "--disable-sync"]  # fmt: skip


class Echo:
    """Stands in for a model: says what it was asked about, so that a test sees which pixels arrived."""

    def __init__(self, name: str) -> None:
        self.name = name

    def describe(self, picture: Any, boxes: Any) -> list[str]:
        reported = []
        for x1, y1, x2, y2 in checked_boxes(boxes, picture.size).astype(int).tolist():
            red, green, blue = np.asarray(picture.crop((x1, y1, x2, y2))).reshape(-1, 3).mean(0).round().astype(int)
            reported.append(f"{self.name} {picture.width}x{picture.height} rgb {red} {green} {blue}")
        return reported

    read = describe

    def locate(self, picture: Any, phrases: Any) -> list[Any]:
        return [
            None if phrase == "nothing" else (1.0, 2.0, picture.width / 2, picture.height / 2) for phrase in phrases
        ]

    def caption(self, picture: Any) -> str:
        return f"<b>{self.name}</b> sees {picture.width} x {picture.height}"


def served(models: dict[str, Any]) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    desk = ServedModels(list(models), Limits(max_pixels=2_000_000, max_upload_mb=1))
    desk.serve(models)
    page = build(desk)
    page.launch(server_name="127.0.0.1", server_port=port, prevent_thread_lock=True, quiet=True, max_file_size="1mb")
    yield f"http://127.0.0.1:{port}"
    page.close()


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    yield from served({"before": Echo("before"), "after": Echo("after")})


@pytest.fixture(scope="module")
def checkpoints() -> dict[str, GranViT]:
    """Two models of a few thousand parameters that answer differently."""
    return {name: GranViT(make_model(seed=seed)) for seed, name in enumerate(("before", "after"))}


@pytest.fixture(scope="module")
def real_address(checkpoints: dict[str, GranViT]) -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(predict, "LONGEST_DESCRIPTION", 6)  # an untrained model never ends an answer by itself
        yield from served(checkpoints)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
        yield chromium
        chromium.close()


def opened(address: str, browser: Any) -> Iterator[Any]:
    tab = browser.new_page(viewport={"width": 1280, "height": 1000})
    tab.goto(address)
    tab.wait_for_selector("#picture input[type=file]", state="attached")
    yield tab
    tab.close()


@pytest.fixture
def page(address: str, browser: Any) -> Iterator[Any]:
    yield from opened(address, browser)


@pytest.fixture
def real_page(real_address: str, browser: Any) -> Iterator[Any]:
    yield from opened(real_address, browser)


def painted(size: tuple[int, int], box: tuple[int, int, int, int], mode: str = "RGB") -> Image.Image:
    """A grey picture with one red box."""
    picture = Image.new("RGB", size, (128, 128, 128))
    picture.paste((250, 10, 10), box)
    return picture.convert(mode)


def upload(page: Any, file: Path) -> None:
    page.set_input_files("#picture input[type=file]", str(file))
    page.wait_for_selector("#picture canvas")
    time.sleep(1.0)  # the canvas takes its size after the picture has loaded


def drag(page: Any, size: tuple[int, int], box: tuple[float, float, float, float]) -> None:
    """Draw a box, given in pixels of the upright picture, on the canvas, which shows it centred and as wide as fits."""
    top = page.locator("#picture canvas").bounding_box()["y"]
    page.evaluate(f"window.scrollTo(0, {top + box[1] - 200 if size[1] > 2000 else 0})")
    area = page.locator("#picture canvas").bounding_box()
    scale = min(1.0, area["width"] / size[0], area["height"] / size[1])
    left = area["x"] + (area["width"] - size[0] * scale) / 2
    top = area["y"] + (area["height"] - size[1] * scale) / 2
    x1, y1, x2, y2 = (side * scale for side in box)
    page.mouse.move(left + x1, top + y1)
    page.mouse.down()
    page.mouse.move(left + (x1 + x2) / 2, top + (y1 + y2) / 2, steps=4)
    page.mouse.move(left + x2, top + y2, steps=4)
    page.mouse.up()


def rows(page: Any, table: str, holding: str) -> list[list[str]]:
    """The cells of a table, once one of them holds a text."""
    page.wait_for_function(f"() => document.querySelector('{table}').innerText.includes('{holding}')", timeout=60_000)
    found = page.locator(f"{table} tbody tr")
    return [[cell.strip() for cell in found.nth(i).locator("td").all_inner_texts()] for i in range(found.count())]


def phone_photo(path: Path, size: tuple[int, int], box: tuple[int, int, int, int]) -> None:
    """A JPEG that is stored on its side and says so, as phones write them."""
    upright = painted(size, box)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    upright.transpose(Image.Transpose.ROTATE_90).save(path, "JPEG", quality=98, subsampling=0, exif=exif)


@needs_browser
@pytest.mark.parametrize(
    ("name", "size", "box"),
    [
        ("plain.png", (400, 300), (100, 60, 220, 200)),
        ("tiny.png", (24, 18), (5, 4, 15, 14)),
        ("portrait.png", (300, 4000), (60, 2200, 240, 2600)),
        ("large.png", (1500, 1200), (300, 200, 900, 800)),
        ("phone.jpg", (300, 400), (50, 100, 200, 300)),
        ("transparent.png", (400, 300), (100, 60, 220, 200)),
    ],
)
def test_the_box_that_is_drawn_is_the_box_that_is_asked(
    page: Any, tmp_path: Path, name: str, size: tuple[int, int], box: tuple[int, int, int, int]
) -> None:
    file = tmp_path / name
    if name == "phone.jpg":
        phone_photo(file, size, box)
    elif name == "transparent.png":
        layer = Image.new("RGBA", size, (0, 0, 0, 0))
        layer.paste((250, 10, 10, 255), box)
        layer.save(file)
    else:
        painted(size, box).save(file)
    upload(page, file)
    drag(page, size, box)
    page.click("#describe")
    reported, before, after = rows(page, "#said", "rgb")[0]
    # A step of the mouse is a pixel of the screen, on which a large picture is shown smaller.
    area = page.locator("#picture canvas").bounding_box()
    slack = 1 + 1 / min(1.0, area["width"] / size[0], area["height"] / size[1])
    asked = [float(side) for side in reported.split(",")]
    assert np.abs(np.array(asked) - box).max() <= slack, (reported, box)
    assert before.startswith(f"before {size[0]}x{size[1]} rgb") and after.startswith("after")
    red, green, _ = map(int, before.split("rgb ")[1].split())
    assert red > 225 and green < 60  # within the red box, whatever its border


@needs_browser
@pytest.mark.parametrize("drawn_first", [False, True])
@pytest.mark.parametrize(
    ("button", "box"), [("Rotate clockwise", (100, 100, 240, 220)), ("Rotate counterclockwise", (60, 180, 200, 300))]
)
def test_a_picture_that_was_turned_on_the_page_is_asked_as_it_is_shown(
    page: Any, tmp_path: Path, button: str, box: tuple[int, int, int, int], drawn_first: bool
) -> None:
    """With the box drawn on the turned picture, and with one that turns with it."""
    painted((400, 300), (100, 60, 220, 200)).save(tmp_path / "a.png")
    upload(page, tmp_path / "a.png")
    if drawn_first:
        drag(page, (400, 300), (100, 60, 220, 200))
    page.get_by_role("button", name=button, exact=True).click()
    time.sleep(1.0)
    if not drawn_first:
        drag(page, (300, 400), box)
    page.click("#describe")
    [[reported, before, _]] = rows(page, "#said", "rgb")
    asked = np.array([float(side) for side in reported.split(",")])
    assert np.abs(asked - box).max() <= 2, (reported, box)
    assert before.startswith("before 300x400 rgb")
    red, green, _ = map(int, before.split("rgb ")[1].split())
    assert red > 225 and green < 60


@needs_browser
def test_the_patch_that_is_clicked_is_the_one_that_looks(
    real_page: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    attend, looked = app.ServedModels.attend, []

    def noting(desk: app.ServedModels, picture: Image.Image, point: tuple[float, float]) -> Image.Image:
        looked.append((picture.size, point, attend(desk, picture, point)))
        return looked[-1][2]

    monkeypatch.setattr(app.ServedModels, "attend", noting)
    painted((400, 300), (100, 60, 220, 200)).save(tmp_path / "a.png")
    upload(real_page, tmp_path / "a.png")
    real_page.get_by_role("tab", name="Attention").click()
    real_page.click("#take")
    real_page.wait_for_selector("#clickable img")
    time.sleep(1.0)
    area = real_page.locator("#clickable img").bounding_box()
    real_page.mouse.click(area["x"] + 0.4 * area["width"], area["y"] + 0.2 * area["height"])
    real_page.wait_for_selector("#seen img", timeout=60_000)
    [(size, (x, y), figure)] = looked
    assert size == (400, 300) and abs(x - 160) <= 2 and abs(y - 60) <= 2
    shown = real_page.evaluate(
        "() => { const i = document.querySelector('#seen img'); return [i.naturalWidth, i.naturalHeight] }"
    )
    assert tuple(shown) == figure.size, "one figure, of both checkpoints"


@needs_browser
def test_two_checkpoints_answer_side_by_side_what_each_answers_alone(
    real_page: Any, checkpoints: dict[str, GranViT], tmp_path: Path
) -> None:
    painted((400, 300), (100, 60, 220, 200)).save(tmp_path / "a.png")
    upload(real_page, tmp_path / "a.png")
    drag(real_page, (400, 300), (100, 60, 220, 200))
    real_page.click("#describe")
    real_page.wait_for_selector("#said td", timeout=60_000)
    [[reported, *answers]] = rows(real_page, "#said", ",")
    heads = [head.strip() for head in real_page.locator("#said thead th").all_inner_texts()]
    assert heads == ["box", "before", "after"]
    box = [[float(side) for side in reported.split(",")]]
    alone = [model.describe(tmp_path / "a.png", box)[0] for model in checkpoints.values()]
    sure = [f"{' '.join(text.split())} {text.confidence:.0%}" for text in alone]
    assert [" ".join(text.split()) for text in answers] == sure
    assert alone[0] != alone[1] and "how sure the model was" in real_page.inner_text("#said")


@needs_browser
def test_a_file_that_is_too_large_is_said_in_a_sentence(page: Any, tmp_path: Path) -> None:
    Image.effect_noise((1200, 1200), 90).convert("RGB").save(tmp_path / "noise.png")
    assert (tmp_path / "noise.png").stat().st_size > 1_000_000
    page.set_input_files("#picture input[type=file]", str(tmp_path / "noise.png"))
    page.wait_for_function(
        "() => /maximum allowed size|larger than 1 MB/i.test(document.body.innerText)", timeout=60_000
    )
    assert page.locator("#picture canvas").count() == 0 or "Traceback" not in page.inner_text("body")


@needs_browser
def test_phrases_are_found_and_no_box_is_said(page: Any, tmp_path: Path) -> None:
    painted((400, 300), (100, 60, 220, 200)).save(tmp_path / "a.png")
    upload(page, tmp_path / "a.png")
    page.get_by_role("tab", name="Find").click()
    page.fill("#phrases textarea", "red thing\n\nnothing\n")
    page.locator("#locate").focus()
    page.keyboard.press("Enter")  # no mouse is needed
    assert rows(page, "#found", "no box") == [
        ["red thing", "1, 2, 200, 150", "1, 2, 200, 150"],
        ["nothing", "no box", "no box"],
    ]
    page.wait_for_selector("#drawn img")
    assert page.locator("#drawn img").count() >= 2


@needs_browser
def test_captions_stand_side_by_side_as_plain_text(page: Any, tmp_path: Path) -> None:
    painted((40, 30), (1, 1, 20, 20)).save(tmp_path / "a.png")
    upload(page, tmp_path / "a.png")
    page.get_by_role("tab", name="The whole picture").click()
    page.click("#caption")
    assert rows(page, "#captions", "sees") == [
        ["before", "<b>before</b> sees 40 x 30"],
        ["after", "<b>after</b> sees 40 x 30"],
    ]


@needs_browser
@pytest.mark.parametrize(
    ("file", "sentence"),
    [("note.png", "cannot be opened as a picture"), ("huge.png", "at most 2,000,000 are taken")],
)
def test_what_is_no_picture_or_too_large_is_said_in_a_sentence(
    page: Any, tmp_path: Path, file: str, sentence: str
) -> None:
    (tmp_path / "note.png").write_text("not a picture")
    Image.new("RGB", (2000, 1500)).save(tmp_path / "huge.png")
    page.set_input_files("#picture input[type=file]", str(tmp_path / file))
    time.sleep(1)
    page.click("#describe")
    page.wait_for_selector(".toast-wrap")
    page.wait_for_function(f"() => document.body.innerText.includes('{sentence}')", timeout=60_000)
    assert "Traceback" not in page.inner_text("body")


@needs_browser
def test_nothing_opened_and_nothing_drawn_is_said(page: Any, tmp_path: Path) -> None:
    page.click("#describe")
    page.wait_for_function("() => document.body.innerText.includes('Open a picture first')", timeout=60_000)
    painted((40, 30), (1, 1, 20, 20)).save(tmp_path / "a.png")
    upload(page, tmp_path / "a.png")
    page.click("#describe")
    page.wait_for_function("() => document.body.innerText.includes('Draw at least one box')", timeout=60_000)


def encoded(picture: Image.Image) -> str:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return base64.b64encode(out.getvalue()).decode()


def test_the_api_answers_the_same_questions(address: str) -> None:
    from gradio_client import Client

    client = Client(address, verbose=False)
    image = encoded(painted((40, 30), (10, 5, 20, 15)))
    asked = client.predict(image, [[10, 5, 20, 15], [30, 20, 40, 30]], api_name="/describe")
    assert asked["before"] == ["before 40x30 rgb 250 10 10", "before 40x30 rgb 128 128 128"]
    assert client.predict(image, ["a", "nothing"], api_name="/locate")["after"] == [[1.0, 2.0, 20.0, 15.0], None]
    assert client.predict(image, api_name="/caption")["after"] == "<b>after</b> sees 40 x 30"
    names = client.view_api(return_format="dict", print_info=False)["named_endpoints"]
    assert set(names) == {"/describe", "/read", "/locate", "/caption"}


@pytest.mark.parametrize(
    ("image", "boxes", "sentence"),
    [
        ("", [[0, 0, 1, 1]], "cannot be opened as a picture"),
        ("no base64!", [[0, 0, 1, 1]], "not base64"),
        ("/etc/hostname", [[0, 0, 1, 1]], "opened as a picture|not base64"),
        (encoded(painted((40, 30), (1, 1, 2, 2))), [[0, 0, 1]], "four numbers"),
        (encoded(painted((40, 30), (1, 1, 2, 2))), [], "at least one box"),
        (encoded(painted((40, 30), (1, 1, 2, 2))), [[0, 0, 9, 9]] * 101, "at most 100"),
        (encoded(painted((40, 30), (1, 1, 2, 2))), [[50, 50, 60, 60]], "outside the picture"),
    ],
)
def test_the_api_says_what_is_wrong(address: str, image: str, boxes: Any, sentence: str) -> None:
    from gradio_client import Client
    from gradio_client.exceptions import AppError

    with pytest.raises(AppError, match=f"(?i){sentence}"):
        Client(address, verbose=False).predict(image, boxes, api_name="/describe")


def test_a_picture_is_opened_as_everywhere_else(tmp_path: Path) -> None:
    phone_photo(tmp_path / "phone.jpg", (30, 40), (5, 5, 20, 20))
    data = (tmp_path / "phone.jpg").read_bytes()
    assert np.array_equal(np.asarray(ServedModels([], Limits()).open(data)), np.asarray(open_picture(data)))


@needs_browser
def test_the_page_is_there_while_the_checkpoints_load(browser: Any, tmp_path: Path) -> None:
    desk = ServedModels(["slow"], Limits())
    page = build(desk)
    _, address, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True)
    try:
        tab = browser.new_page()
        tab.goto(address)
        painted((400, 300), (100, 60, 220, 200)).save(tmp_path / "plain.png")
        upload(tab, tmp_path / "plain.png")
        tab.get_by_role("tab", name="The whole picture").click()
        tab.click("#caption")
        time.sleep(1.0)
        said = tab.inner_text("body")
        assert "sees" not in said and "Error" not in said  # it waits
        desk.serve({"slow": Echo("slow")})
        assert rows(tab, "#captions", "sees") == [["slow", "<b>slow</b> sees 400 x 300"]]
    finally:
        page.close()


def test_what_is_no_checkpoint_is_refused_before_there_is_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from granvit.cli.ask import App
    from granvit.errors import GranvitError

    monkeypatch.setattr(app, "build", lambda *_: pytest.fail("a page was made"))
    with pytest.raises(GranvitError, match="granvit.json: no such file"):
        App((tmp_path,), port=0).run()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GranvitError, match="run `granvit demo`"):
        App(port=0).run()


def test_a_checkpoint_that_turns_out_to_be_damaged_ends_the_program(tmp_path: Path) -> None:
    from granvit.cli.ask import App
    from granvit.errors import CheckpointError

    (tmp_path / "granvit.json").write_text('{"codec": "int1000"}')
    with pytest.raises(CheckpointError, match="config.json"):
        App((tmp_path,), port=0).run()
