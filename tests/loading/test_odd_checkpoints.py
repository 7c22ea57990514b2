"""Whatever a checkpoint's settings say, loading and asking ends: with answers, or with one line that names the file."""

import json
import os
import shutil
import signal
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from helpers.odd_checkpoints import cases, spoil
from helpers.tiny_model import make_model
from PIL import Image

from granvit import predict
from granvit.errors import CheckpointError, GranvitError
from granvit.model.region_model import RegionModel
from granvit.predict import GranViT

SEED = int(os.environ.get("GRANVIT_FUZZ_SEED", "0"))
CASES = int(os.environ.get("GRANVIT_FUZZ_CASES", "120"))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("odd") / "checkpoint"
    make_model().save(folder)
    return folder


@contextmanager
def within(seconds):
    def give_up(*given):
        raise TimeoutError

    before = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def test_every_odd_value_is_an_answer_or_one_line(saved, tmp_path, monkeypatch):
    monkeypatch.setattr(predict, "LONGEST_DESCRIPTION", 3)
    monkeypatch.setattr(predict, "LONGEST_BOX", 3)
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (50, 80, 3), dtype=np.uint8))
    loaded, refused = 0, 0
    for case in cases(saved, SEED)[:CASES]:
        folder = Path(shutil.copytree(saved, tmp_path / "odd"))
        spoil(folder, *case)
        try:
            with within(60):
                granvit = GranViT.load(folder)
                granvit.describe(picture, [[3, 4, 40, 30]])
                granvit.locate(picture, ["red"])
            loaded += 1
        except GranvitError as error:
            assert str(folder) in str(error) and len(str(error)) < 1000, case
            refused += 1
        except BaseException as error:
            raise AssertionError(f"GRANVIT_FUZZ_SEED={SEED}: {case}") from error
        shutil.rmtree(folder)
    assert loaded + refused == CASES and loaded > CASES // 50 and refused > CASES // 4


NAMED = [
    (("config.json", "vision_config", "patch_size"), 0, "config.json: vision_config.patch_size is 0, not a whole"),
    (("config.json", "vision_config", "image_size"), -64, "config.json: vision_config.image_size is -64"),
    (("config.json", "vision_config", "image_size"), 10**9, "config.json: vision_config.image_size is 1000000000"),
    (("config.json", "vision_config", "num_attention_heads"), 0, "vision_config.num_attention_heads is 0"),
    (("config.json", "text_config", "num_attention_heads"), 0, "config.json: text_config.num_attention_heads is 0"),
    (("config.json", "text_config", "num_hidden_layers"), 10**9, "text_config.num_hidden_layers is 1000000000"),
    (("config.json", "text_config", "num_key_value_heads"), "two", 'text_config.num_key_value_heads is "two"'),
    (("config.json", "text_config", "hidden_size"), 2.5, "config.json: text_config.hidden_size is 2.5"),
    (("config.json", "text_config", "hidden_act"), "loud", "cannot be loaded as LlavaForConditionalGeneration: .*loud"),
    (("config.json", "text_config", "rope_parameters", "rope_theta"), 0, "rope_parameters.rope_theta is 0, not a pos"),
    (("config.json", "text_config", "rms_norm_eps"), float("nan"), "text_config.rms_norm_eps is NaN, not a positive"),
    (("config.json", "text_config", "layer_types"), ["sliding_attention"] * 2, "layer_types has sliding windows"),
    (("config.json", "text_config", "vocab_size"), 1, "cannot be loaded as LlavaForConditionalGeneration: "),
    (("config.json", "image_token_index"), 0, "config.json: image_token_index is 0, the tokenizer has"),
    (("config.json", "vision_config"), 3, "config.json: cannot be loaded as AutoConfig: .*vision_config"),
    (("granvit.json", "codec"), 5, "granvit.json: codec is 5, not a text"),
    (("granvit.json", "frame"), ["image"], "granvit.json: frame is .*, not a text"),
    (("granvit.json", "bins"), 5, "granvit.json: unknown setting 'bins'"),
    (("processor_config.json", "image_processor"), [], "processor_config.json: cannot be loaded as AutoProcessor"),
    (("processor_config.json", "image_processor", "image_std", 0), 0, "processor_config.json: image_std is"),
    (("processor_config.json", "image_processor", "size"), {"shortest_edge": 9**9}, "the encoder takes 64 px"),
    (("tokenizer_config.json", "eos_token"), 7, "tokenizer_config.json: cannot be loaded as AutoTokenizer"),
    (("tokenizer.json", "model"), None, "tokenizer.json: no tokenizer: "),
    (("tokenizer.json", "added_tokens", 0, "special"), "x", "tokenizer.json: no tokenizer: "),
]


@pytest.mark.parametrize(("path", "value", "said"), NAMED, ids=lambda given: str(given)[:50])
def test_a_wrong_value_is_named_with_its_file(saved, tmp_path, path, value, said):
    folder = Path(shutil.copytree(saved, tmp_path / "odd"))
    content = json.loads((folder / path[0]).read_text())
    inner = content
    for key in path[1:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    (folder / path[0]).write_text(json.dumps(content))
    with within(60), pytest.raises(CheckpointError, match=said) as caught:
        RegionModel.load(folder)
    assert str(folder) in str(caught.value)
