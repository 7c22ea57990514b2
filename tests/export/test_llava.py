import hashlib
import json
import os
import random
import re
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers.odd_pictures import odd_pictures
from helpers.paths import WITHOUT_GRANVIT
from helpers.tiny_languages import save_as_published
from helpers.tiny_lora import RANK, train_lora
from helpers.tiny_model import collate, make_model, make_tower, packed_logits
from PIL import Image
from safetensors.torch import load_file
from tokenizers.processors import TemplateProcessing
from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

from granvit import predict
from granvit.cli.export import Export
from granvit.corpus.synthetic.scenes import layout
from granvit.errors import CheckpointError, GranvitError
from granvit.export.card import write_card
from granvit.export.facts import read_source
from granvit.export.llava import ExportError, check_stock, export
from granvit.geometry import View
from granvit.images import decode
from granvit.model.assemble import assemble
from granvit.model.packing import Sample
from granvit.model.region_model import RegionModel, Settings
from granvit.predict import GranViT
from granvit.questions import ask_box, ask_caption, box_exchange, caption_exchange

CHILD = Path(__file__).parent / "export_child.py"
ASSETS = Path(predict.__file__).parent / "assets"
SIZES = ((91, 53), (40, 120), (64, 64), (301, 200))


def noise(size, seed=0):
    """A picture with large and small structure; `size` is (width, height)."""
    rng = np.random.default_rng([seed, *size])
    coarse = Image.fromarray(rng.integers(0, 256, (7, 5, 3), dtype=np.uint8)).resize(size)
    fine = rng.integers(-20, 21, (size[1], size[0], 3))
    return Image.fromarray((np.asarray(coarse).astype(int) + fine).clip(0, 255).astype(np.uint8))


# --- a process without granvit gives what granvit gives --------------------------------------------------------------


def scenes(folder, count, codec, tokens, end):
    """Jobs for the child: pictures of mixed sizes, each with a box, a phrase, and two answers to score."""
    jobs = []
    draw = random.Random(7)
    for i in range(count):
        size = SIZES[i] if i < len(SIZES) else (draw.randint(30, 700), draw.randint(30, 700))
        noise(size, i).save(folder / f"{i}.png")
        x, y = sorted(draw.sample(range(size[0] + 1), 2)), sorted(draw.sample(range(size[1] + 1), 2))
        phrase = layout(3, i, 160, documents=0).record.regions[0].text
        relative = sorted(draw.sample(range(1001), 2)), sorted(draw.sample(range(1001), 2))
        box = [relative[0][0] / 1000, relative[1][0] / 1000, relative[0][1] / 1000, relative[1][1] / 1000]
        jobs.append(
            {
                "picture": str(folder / f"{i}.png"),
                "box": [x[0], y[0], x[1], y[1]],
                "phrase": phrase,
                "tokens": tokens,
                "texts": [phrase, box],
                "answers": [phrase + end, codec.encode(box) + end],
            }
        )
    (folder / "jobs.json").write_text(json.dumps(jobs))
    return jobs


def ours(model, job):
    """What granvit says and computes for a job: texts, box, and the logits of both answers, (A, V)."""
    granvit, picture = GranViT(model), Image.open(job["picture"]).convert("RGB")
    view = model.view(picture.size)
    described = granvit.describe(picture, [job["box"]])[0]
    box = granvit.locate(picture, [job["phrase"]])[0]
    relative = view.to_relative(job["box"], model.settings.frame)[0]
    exchanges = [
        caption_exchange(relative, job["texts"][0], model.codec),
        box_exchange(job["texts"][1], job["phrase"], model.codec),
    ]
    pixels = np.array(view.apply(picture, model.fill))
    batch = collate(model, [Sample("a", [model.dialog.branch(e) for e in exchanges], pixels)])
    with torch.inference_mode():
        logits, _ = packed_logits(model, batch)
    lengths = [int((batch.labels[0][batch.branch_ids[0] == n + 1] >= 0).sum()) for n in range(2)]
    return [e.question for e in exchanges], described, box, logits.split(lengths)


def check_parity(folder, models, jobs, python=sys.executable):
    """The child's answers equal ours; the largest difference of a logit, of the largest logit."""
    subprocess.run([python, *WITHOUT_GRANVIT, CHILD, folder], cwd=folder, check=True)
    worst = 0.0
    for name, model in models.items():
        place = folder / "models" / name
        said, logits = json.loads((place / "said.json").read_text()), load_file(place / "said.safetensors")
        for i, job in enumerate(jobs):
            asked, described, box, expected = ours(model, job)
            assert said[i]["asked"] == asked
            assert said[i]["described"] == described, (name, i)
            assert (said[i]["box"] is None) == (box is None)
            if box is not None:
                assert np.abs(np.subtract(said[i]["box"], box)).max() <= 0.5
            for n in range(2):
                stock = logits[f"{i}.{n}"][-len(expected[n]) - 1 : -1]
                worst = max(worst, float((stock - expected[n]).abs().max() / stock.abs().max()))
    assert worst <= 1e-5
    return worst


def test_plain_transformers_and_the_card_give_the_same_logits_answers_and_boxes(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "LONGEST_DESCRIPTION", 6)
    monkeypatch.setattr(predict, "LONGEST_BOX", 6)
    models = {
        "letterbox": make_model("qwen2"),
        "squash": make_model("llama", fit="squash"),
        "canvas": make_model("qwen2", frame="canvas"),
    }
    jobs = scenes(tmp_path, 4, models["letterbox"].codec, 6, "<|end|>")
    for name, model in models.items():
        model.save(tmp_path / "trained" / name)
        export(tmp_path / "trained" / name, tmp_path / "models" / name)
    export(tmp_path / "trained" / "squash", tmp_path / "models" / "tower", "encoder")

    check_parity(tmp_path, models, jobs)

    features = load_file(tmp_path / "models" / "tower" / "said.safetensors")
    for i, job in enumerate(jobs):
        picture = Image.open(job["picture"])
        view = View.squash(picture.size, models["squash"].canvas)
        with torch.inference_mode():
            expected = models["squash"].features(torch.from_numpy(np.array(view.apply(picture)))[None])
        assert (features[str(i)] - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_lora_is_merged_or_apart_and_plain_peft_gives_the_same_logits(tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "LONGEST_DESCRIPTION", 6)
    monkeypatch.setattr(predict, "LONGEST_BOX", 6)
    make_model().save(tmp_path / "start")
    trained = train_lora(tmp_path / "start", tmp_path / "run")
    jobs = scenes(tmp_path, 3, trained.codec, 6, "<|end|>")
    export(tmp_path / "run", tmp_path / "models" / "merged")
    apart = export(tmp_path / "run", tmp_path / "models" / "apart", "adapter").folder
    assert {file.name for file in apart.iterdir()} == {"README.md", "adapter_config.json", "adapter_model.safetensors"}
    assert str(tmp_path) not in "".join(file.read_text() for file in apart.glob("*.[jm]*"))
    card = (apart / "README.md").read_text()
    assert f"stage2 trained the language model by LoRA of rank {RANK} on q_proj, k_proj" in card
    # The base as it is exported has the weights that the card names.
    exported = export(tmp_path / "start", apart / "BASE").folder / "model.safetensors"
    assert f"| model.safetensors | `{hashlib.sha256(exported.read_bytes()).hexdigest()}` |" in card
    merged = (tmp_path / "models" / "merged" / "README.md").read_text()
    assert "by LoRA of rank 4" in merged and "merged into these files" in merged
    check_parity(tmp_path, {"merged": trained, "apart": trained}, jobs)
    with pytest.raises(GranvitError, match="start is a whole model and no adapter: it was trained without LoRA"):
        export(tmp_path / "start", tmp_path / "none", "adapter")


@pytest.mark.slow
def test_50_pictures_of_mixed_sizes_through_the_shipped_parts(tmp_path):
    model = assemble(ASSETS / "nano-encoder", ASSETS / "nano-language", Settings("loc:80"))
    model.save(tmp_path / "trained")
    export(tmp_path / "trained", tmp_path / "models" / "nano")
    jobs = scenes(tmp_path, 50, model.codec, 48, "<|end|>")
    print("worst relative difference of a logit:", check_parity(tmp_path, {"nano": model}, jobs))


# --- transformers 4.57 -----------------------------------------------------------------------------------------------

ROPES = {
    "qwen2": {"rope_type": "default", "rope_theta": 1_000_000.0},
    "qwen3": {"rope_type": "default", "rope_theta": 5_000.0},
    "llama": {
        "rope_type": "llama3",
        "rope_theta": 500_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    },
}


def with_rope(kind, folder, **settings):
    """A checkpoint whose rotary positions are not the default; far from it, so that logits tell."""
    make_model(kind, **settings).save(folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rope_parameters"] = ROPES[kind]
    (folder / "config.json").write_text(json.dumps(config))
    return RegionModel.load(folder)


@pytest.mark.parametrize("kind", ROPES)
def test_what_older_versions_look_for_is_written_beside_what_is_read_now(tmp_path, kind):
    model = with_rope(kind, tmp_path / "trained")
    assert model.llava.config.text_config.rope_parameters == ROPES[kind]
    folder = export(tmp_path / "trained", tmp_path / "out").folder
    config, tokenizer, images, processor = (
        json.loads((folder / f"{name}.json").read_text())
        for name in ("config", "tokenizer_config", "preprocessor_config", "processor_config")
    )
    text = config["text_config"]
    assert text["rope_theta"] == ROPES[kind]["rope_theta"] and text["rope_parameters"] == ROPES[kind]
    scaling = {name: value for name, value in ROPES[kind].items() if name != "rope_theta"}
    assert text["rope_scaling"] == (scaling if kind == "llama" else None)
    assert tokenizer["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert tokenizer["additional_special_tokens"] == ["<|answer|>", "<image>"]
    assert not {"extra_special_tokens", "is_local", "backend", "local_files_only"} & tokenizer.keys()
    assert images == {**processor["image_processor"], "processor_class": "LlavaProcessor"}
    again = RegionModel.load(folder)
    assert again.llava.config.text_config.rope_parameters == ROPES[kind]
    assert again.processor.tokenizer.get_vocab() == model.processor.tokenizer.get_vocab()
    assert again.dialog.prefix_ids == model.dialog.prefix_ids
    assert "transformers from 4.57 on loads it" in (folder / "README.md").read_text()


def test_files_that_say_other_than_the_model_are_not_exported(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("granvit.export.llava.for_older", lambda model, folder: spoil(folder))

    def spoil(folder):
        config = json.loads((folder / "config.json").read_text())
        config["text_config"]["rope_parameters"]["rope_theta"] = 77.0
        (folder / "config.json").write_text(json.dumps(config))

    with pytest.raises(ExportError, match="config.json: other rotary positions"):
        export(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_transformers_4_57_and_the_card_give_the_same_logits_answers_and_boxes(tmp_path, monkeypatch):
    python = os.environ.get("TRANSFORMERS_4_57_PYTHON")
    if python is None:
        pytest.skip("TRANSFORMERS_4_57_PYTHON names no interpreter with transformers 4.57, torch and this Pillow")
    monkeypatch.setattr(predict, "LONGEST_DESCRIPTION", 6)
    monkeypatch.setattr(predict, "LONGEST_BOX", 6)
    models = {
        "qwen2": with_rope("qwen2", tmp_path / "trained/qwen2"),
        "llama": with_rope("llama", tmp_path / "trained/llama", fit="squash"),
        "qwen3": with_rope("qwen3", tmp_path / "trained/qwen3"),
    }
    jobs = scenes(tmp_path, 3, models["qwen2"].codec, 6, "<|end|>")
    for name in models:
        export(tmp_path / "trained" / name, tmp_path / "models" / name)
    print("worst relative difference of a logit:", check_parity(tmp_path, models, jobs, python))


# --- what is written -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["llava", "encoder"])
def test_what_float16_cannot_hold_is_refused(checkpoint, tmp_path, form):
    model = RegionModel.load(checkpoint)
    with torch.no_grad():
        next(iter(model.llava.model.vision_tower.parameters())).view(-1)[0] = 1e5
    model.save(tmp_path / "source")
    with pytest.raises(ExportError, match="--precision float16: weight .* is not finite.*bfloat16 has room"):
        export(tmp_path / "source", tmp_path / "out", form, precision="float16")
    assert not (tmp_path / "out").exists()
    export(tmp_path / "source", tmp_path / "out", form, precision="bfloat16")


def test_a_config_that_servers_read_and_no_path_of_this_machine(checkpoint, tmp_path):
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["_name_or_path"] = str(tmp_path / "secret")
    source = tmp_path / "source"
    RegionModel.load(checkpoint).save(source)
    (source / "config.json").write_text(json.dumps(config))
    for form in ("llava", "encoder"):
        export(source, tmp_path / form, form, precision="bfloat16")
        for path in (tmp_path / form).glob("*.json"):
            assert str(tmp_path) not in path.read_text()
        weights = load_file(tmp_path / form / "model.safetensors")
        assert {t.dtype for t in weights.values()} == {torch.bfloat16}
        assert json.loads((tmp_path / form / "config.json").read_text())["dtype"] == "bfloat16"
    config = json.loads((tmp_path / "llava/config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["text_config"]["architectures"] == ["Qwen2ForCausalLM"]
    assert (config["vision_feature_layer"], config["vision_feature_select_strategy"]) == (-1, "full")


def test_an_export_is_whole_or_absent_and_overwrites_nothing(checkpoint, tmp_path):
    (tmp_path / "out").mkdir()  # an empty folder may be there
    (tmp_path / ".out.partial").mkdir()
    (tmp_path / ".out.partial/rest").touch()
    export(checkpoint, tmp_path / "out")
    assert not (tmp_path / ".out.partial").exists() and not (tmp_path / "out/rest").exists()
    with pytest.raises(GranvitError, match="out is there already"):
        export(checkpoint, tmp_path / "out")
    with pytest.raises(CheckpointError, match="granvit.json: no such file"):
        export(tmp_path / "nothing", tmp_path / "other")
    assert not (tmp_path / "other").exists()


# --- what is refused -------------------------------------------------------------------------------------------------


def test_a_processor_that_cannot_pad_is_refused(model, tmp_path):
    stretching = SiglipImageProcessorPil(size={"height": 64, "width": 64}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    model = make_model()
    model.processor.image_processor = stretching
    model.save(tmp_path / "trained")
    with pytest.raises(
        ExportError, match="trained on pictures padded to a square, which the stock .*97x61 pixels: ever"
    ):
        export(tmp_path / "trained", tmp_path / "out", "encoder")
    assert not (tmp_path / "out").exists()


def test_a_tokenizer_that_adds_tokens_of_its_own_is_refused():
    # As Llama 3's does: the chat template has its first token already.
    model = make_model("llama")
    begin = model.processor.tokenizer.bos_token
    model.processor.tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{begin} $A", special_tokens=[(begin, model.processor.tokenizer.bos_token_id)]
    )
    with pytest.raises(ExportError, match="other tokens of a question"):
        check_stock(model, "here")


def test_other_features_are_refused(monkeypatch):
    model = make_model()
    monkeypatch.setattr(model.llava.config, "vision_feature_layer", -2)
    with pytest.raises(ExportError, match="computes other image features"):
        check_stock(model, "here")


# --- the card --------------------------------------------------------------------------------------------------------


def code_of(folder):
    """What the Python of a card defines, run where the card lies."""
    card: dict = {}
    exec("\n".join(re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.S)), card)
    return card


@pytest.mark.parametrize("make", ["preset", "qwen2", "llama3"])
def test_the_card_reads_control_tokens_in_a_phrase_as_text(tmp_path, monkeypatch, make):
    if make == "preset":
        model = make_model()
    else:
        save_as_published(make, tmp_path / "language")
        model = assemble(make_tower(), tmp_path / "language", Settings("int1000"))
    model.save(tmp_path / "checkpoint")
    export(tmp_path / "checkpoint", tmp_path / "out")
    monkeypatch.chdir(tmp_path / "out")
    card, asked = code_of(tmp_path / "out"), []
    monkeypatch.setattr(
        card["model"], "generate", lambda input_ids, **_: asked.append(input_ids[0].tolist()) or input_ids
    )
    dialog, picture = model.dialog, noise((90, 50))
    control = [t.content for t in model.processor.tokenizer.added_tokens_decoder.values()]
    for phrase in ["a red star", " two\n\nlines ", "", "caf\xe9", *control, *(f"a {t}{t} mug" for t in control)]:
        card["ask"](picture, card["locate_question"](phrase))
        assert asked.pop() == dialog.prefix_ids + dialog.ask(ask_box(phrase))
    card["ask"](picture, card["describe_question"]((9, 10, 45, 45), 90, 50))
    assert asked.pop() == dialog.prefix_ids + dialog.ask(ask_caption([0.1, 0.2, 0.5, 0.9], model.codec))


def test_the_card_opens_pictures_as_the_model_was_trained_on_them(model, tmp_path):
    write_card(tmp_path / "README.md", model, read_source(tmp_path), "gguf", "name", None, [])
    card = code_of(tmp_path)
    for kind, (ending, image, options) in odd_pictures().items():
        path = tmp_path / f"picture{ending}"
        image.save(path, **options)
        assert np.array_equal(card["open_picture"](path), decode(path.read_bytes())), kind


@pytest.mark.parametrize("codec", ["decimal", "int1000", "loc:16"])
@pytest.mark.parametrize(("frame", "fit"), [("image", "letterbox"), ("canvas", "letterbox"), ("canvas", "squash")])
def test_the_cards_boxes_are_ours(model, tmp_path, codec, frame, fit):
    model = RegionModel(model.llava, model.processor, Settings(codec, frame, fit))
    write_card(tmp_path / "README.md", model, read_source(tmp_path), "gguf", "name", None, [])
    card = code_of(tmp_path)
    granvit, rng = GranViT(model), np.random.default_rng(0)
    for size in SIZES:
        view = model.view(size)
        picture = noise(size)
        picture.save(tmp_path / "picture.png")
        square = card["square"](tmp_path / "picture.png")
        assert square.width == square.height
        canvas = square.resize((64, 64), Image.Resampling.BICUBIC)
        assert np.array_equal(canvas, view.apply(picture, model.fill))
        for _ in range(50):
            box = (np.sort(rng.random((2, 2)), 0) * size).ravel()
            text = model.codec.encode(view.to_relative(box, frame)[0])
            assert card["box_to_text"](box, *size) == text
            expected = granvit.to_pixels(text, view)
            found = card["text_to_box"](text, *size)
            assert (found is None) == (expected is None)
            if found is not None:
                assert np.allclose(found, expected, atol=1e-9)
        for answer in ("", "a red star", "[0.9, 0.1, 0.2, 0.3]", "<loc0001><loc0002>"):
            assert card["text_to_box"](answer, *size) is None


# --- the hub and the command -----------------------------------------------------------------------------------------


def test_the_command_tells_what_it_wrote_and_uploads_when_asked(checkpoint, tmp_path, monkeypatch, capsys):
    calls = []

    class Hub:
        def create_repo(self, *given, **named):
            calls.append(("create", given, named))
            return "https://hub/me/mine"

        def upload_folder(self, **named):
            calls.append(("upload", named))

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    monkeypatch.setattr("granvit.export.llava.hub_answers", lambda: True)
    assert Export(checkpoint, tmp_path / "out", "encoder", push_to_hub="me/mine").run() == 0
    assert calls == [
        ("create", ("me/mine",), {"private": True, "exist_ok": True}),
        ("upload", {"repo_id": "me/mine", "folder_path": tmp_path / "out"}),
    ]
    printed = capsys.readouterr().out
    assert "model.safetensors" in printed and printed.endswith("https://hub/me/mine\n")
    calls.clear()
    assert Export(checkpoint, tmp_path / "again").run() == 0
    assert calls == []


def test_an_upload_that_fails_is_reported_in_one_line_and_the_folder_stays(checkpoint, tmp_path, monkeypatch):
    class Hub:
        def create_repo(self, *given, **named):
            raise RuntimeError("401 Client Error.\n\nInvalid username or password.")

    monkeypatch.setattr("huggingface_hub.HfApi", Hub)
    for answers, said in ((True, "401 Client Error. Invalid username or password."), (False, "cannot be reached")):
        monkeypatch.setattr("granvit.export.llava.hub_answers", lambda answers=answers: answers)
        out = tmp_path / str(answers)
        with pytest.raises(GranvitError) as caught:
            Export(checkpoint, out, "encoder", push_to_hub="me/mine").run()
        assert said in str(caught.value) and "\n" not in str(caught.value) and "is written" in str(caught.value)
        assert (out / "model.safetensors").exists()


def test_settings_are_left_as_they_were(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "out")
    assert RegionModel.load(tmp_path / "out").settings.to_json() == json.loads(
        (checkpoint / "granvit.json").read_text()
    )


@pytest.mark.parametrize("form", ["llava", "encoder"])
def test_whoever_may_read_an_export_may_read_its_weights(checkpoint, tmp_path, form):
    mask = os.umask(0o022)
    try:
        export(checkpoint, tmp_path / "out", form)
    finally:
        os.umask(mask)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "out").iterdir()}
    assert "model.safetensors" in modes and set(modes.values()) == {0o644}
