import json

import pytest
from helpers.tiny_model import make_model, make_tower
from helpers.tiny_recipe import shorten_answers
from PIL import Image
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from granvit.cli import main
from granvit.corpus.synthetic.synthesize import synthesize
from granvit.evaluate import attention, probes


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A checkpoint "model", a bare "tower", a training and a held-out corpus, a picture and what is none."""
    folder = tmp_path_factory.mktemp("shelf")
    make_model().save(folder / "model")
    make_tower(seed=4).save_pretrained(folder / "tower")
    SiglipImageProcessorPil(size={"height": 64, "width": 64}).save_pretrained(folder / "tower")
    synthesize(folder / "train", 24, 1, 96, 0.5, workers=1, progress=False)
    synthesize(folder / "val", 6, 2, 96, 0.5, split="val", workers=1, progress=False)
    Image.effect_noise((120, 90), 90).convert("RGB").save(folder / "photo.png")
    (folder / "note.png").write_text("not a picture")
    return folder


@pytest.fixture
def granvit(shelf, monkeypatch, capsys):
    """Runs a command in the shelf's folder: (exit status, standard output, standard error)."""
    monkeypatch.chdir(shelf)
    shorten_answers(monkeypatch)
    monkeypatch.setattr(attention, "LONGEST_DESCRIPTION", 3)
    monkeypatch.setattr(probes, "_WIDTH", 16)
    monkeypatch.setattr(probes, "LEARNING_RATES", (3e-3,))
    monkeypatch.setattr(probes, "_STEPS", 10)

    def run(*args: str):
        with pytest.raises(SystemExit) as left:
            main([str(a) for a in args])
        out, err = capsys.readouterr()
        return left.value.code or 0, out, err

    return run


def test_attend_writes_a_page(granvit, shelf):
    status, out, err = granvit("attend", "photo.png", "--model", "model", "--box", "10,10,60,70", "--out", "seen")
    assert (status, out) == (0, "page: seen/attend.html\n"), err
    assert {"attend.html", "encoders.png", "heads-1.png", "words-1.png"} == {p.name for p in (shelf / "seen").iterdir()}


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["photo.png", "--box", "10,10,60,70"], "give at least one --model DIR"),
        (["photo.png", "--model", "model"], "give at least one --box x1,y1,x2,y2 or --point x,y (pixels)"),
        (["photo.png", "--model", "model", "--box", "10,10,60"], "--box '10,10,60' is not x1,y1,x2,y2"),
        (["photo.png", "--model", "model", "--box", "200,10,260,20"], "lies outside the picture of 120x90 pixels"),
        (["photo.png", "--model", "model", "--point", "nowhere"], "--point 'nowhere' is not x,y"),
        (["photo.png", "--model", "model", "--point", "120,5"], "--point 120,5 lies outside the picture of 120x90"),
        (["note.png", "--model", "model", "--point", "1,5"], "note.png: not-an-image"),
        (["photo.png", "--model", "val", "--point", "1,5"], "val: no encoder that transformers can load"),
        (["photo.png", "--model", "model", "--model", "model/", "--point", "1,5"], "the same encoder is named twice"),
    ],
)
def test_attend_tells_what_is_wrong_in_one_line(granvit, args, said):
    status, out, err = granvit("attend", *args)
    assert status == 1 and out == "" and said in err.splitlines()[-1] and "Traceback" not in err


def test_attention_mass_prints_and_writes_its_numbers(granvit, shelf):
    status, out, err = granvit(
        "attention-mass", "tower", "model", "--corpus", "val", "--limit", "4", "--examples", "1", "--out", "mass"
    )
    assert status == 0, err
    plain = json.loads((shelf / "mass/attention-mass.json").read_text())
    assert plain["images"] == 4 and sum(plain["regions"].values()) > 0
    kind = next(iter(plain["shares"]))
    share = plain["shares"][kind]["encoder attention, last 2 layers"]["model"]
    assert f"{100 * share['value']:.1f} [" in out and "change" in out and "page: mass/attention-mass.html" in out
    status, _, err = granvit("attention-mass", "model", "--corpus", "val", "--limit", "0")
    assert status == 1 and "--limit 0" in err


def test_probe_compares_encoders(granvit, shelf):
    status, out, err = granvit(
        "probe", "tower", "model", "--corpus", "train", "--held-out", "val", "--task", "is-text", "--out", "probe.json"
    )
    assert status == 0, err
    assert "is-text: 2 targets, trained on" in out and "linear, accuracy" in out and "majority" in out
    plain = json.loads((shelf / "probe.json").read_text())
    assert [row["head"] for row in plain["rows"]] == ["linear", "attentive"]
    assert set(plain["rows"][0]["scores"]) == {"tower", "model"} and plain["scored_on"]["images"] == 6


def test_probe_needs_images_of_both_kinds(granvit):
    status, _, err = granvit("probe", "tower", "--corpus", "val", "--task", "is-text")
    assert status == 1 and "0 images to train on and 6 held out" in err
