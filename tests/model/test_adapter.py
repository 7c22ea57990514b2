"""Adapters on the disk: what peft itself computes with them, and what is refused of somebody's folder."""

import json
import os
import shutil

import pytest
import torch
from helpers.tiny_lora import RANK, train_lora
from helpers.tiny_model import make_model
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForImageTextToText

from granvit.corpus.annotate.caption_local import LocalModel
from granvit.errors import CheckpointError, GranvitError
from granvit.export.gguf import write_mmproj
from granvit.loading.checkpoint_files import LoadError
from granvit.loading.models import load_model
from granvit.model.adapter import merge, read_adapter, root_of
from granvit.model.encoders import load_encoder
from granvit.model.region_model import RegionModel


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    make_model().save(folder / "start")
    train_lora(folder / "start", folder / "run")
    return folder


@pytest.fixture
def adapter(trained, tmp_path):
    """A copy, whose base is where it was."""
    return shutil.copytree(trained / "run" / "checkpoint", tmp_path / "adapter")


def edit(path, **changes):
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({name: value for name, value in content.items() if value != "gone"}))


def rewrite(folder, **changes):
    """Other tensors in place of those whose names end so."""
    path = folder / "adapter_model.safetensors"
    tensors = load_file(path)
    for end, change in changes.items():
        for name in [name for name in tensors if name.endswith(end.replace("__", "."))]:
            tensor = tensors.pop(name)
            if change is not None:
                tensors[change[0] if isinstance(change, tuple) else name] = (
                    change[1](tensor) if isinstance(change, tuple) else change(tensor)
                )
    save_file(tensors, path)


def test_what_somebody_trained_with_peft_alone_is_merged_as_peft_merges(trained, tmp_path):
    """Other layers, another alpha, written by peft itself; with what names base and settings it is a checkpoint."""
    start = trained / "start"
    llava = RegionModel.load(start).llava
    config = LoraConfig(r=3, lora_alpha=5, target_modules=r"model\.language_model\..*\.(q_proj|up_proj)")
    wrapped = get_peft_model(llava, config)
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_()
    wrapped.save_pretrained(tmp_path / "theirs")
    edit(tmp_path / "theirs" / "adapter_config.json", base_model_name_or_path=str(start))
    for name in ("base.json", "granvit.json"):
        shutil.copyfile(trained / "run" / "checkpoint" / name, tmp_path / "theirs" / name)
    ours = RegionModel.load(tmp_path / "theirs").llava.state_dict()
    before = RegionModel.load(start).llava.state_dict()
    theirs = wrapped.merge_and_unload().state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=1e-6, atol=1e-6)
    changed = {name.split(".")[-2] for name in ours if not torch.equal(ours[name], before[name])}
    assert changed == {"q_proj", "up_proj"}


def test_in_half_precision_too(trained):
    whole = RegionModel.load(trained / "run" / "checkpoint").llava.state_dict()
    half = RegionModel.load(trained / "run" / "checkpoint", dtype=torch.bfloat16).llava.state_dict()
    for name, tensor in half.items():
        assert tensor.dtype == torch.bfloat16
        torch.testing.assert_close(tensor.float(), whole[name], rtol=2e-2, atol=2e-2)


CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
REFUSED = {
    "a pickle beside it": (lambda f: (f / "adapter_model.bin").write_bytes(b"x"), "adapter_model.bin: a pickle, which"),
    "a pickle in its place": (lambda f: (f / WEIGHTS).rename(f / "adapter_model.bin"), "a pickle, which is never read"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS}: cannot be read"),
    "half of the weights": (
        lambda f: (f / WEIGHTS).write_bytes((f / WEIGHTS).read_bytes()[:3000]),
        f"{WEIGHTS}: cannot be read",
    ),
    "another rank": (lambda f: edit(f / CONFIG, r=8), "lora_A and lora_B are (4, 48) and (32, 4), adapter_config"),
    "no rank": (lambda f: edit(f / CONFIG, r="gone"), "r is null, not a whole number from 1"),
    "a rank of text": (lambda f: edit(f / CONFIG, r="4"), 'r is "4", not a whole number'),
    "an endless rank": (lambda f: edit(f / CONFIG, r=10**30), "not a whole number from 1 to 65,536"),
    "much alpha": (lambda f: edit(f / CONFIG, lora_alpha=2e6), "not a positive number of at most a million"),
    "no alpha": (lambda f: edit(f / CONFIG, lora_alpha=0), "lora_alpha is 0, not a positive number"),
    "another method": (lambda f: edit(f / CONFIG, peft_type="VERA"), "peft_type is 'VERA', only 'LORA' is read"),
    "DoRA": (lambda f: edit(f / CONFIG, use_dora=True), "use_dora is true: only plain LoRA is read"),
    "rank-stabilised": (lambda f: edit(f / CONFIG, use_rslora=True), "use_rslora is true: only plain LoRA"),
    "ranks of layers": (lambda f: edit(f / CONFIG, rank_pattern={"q": 8}), 'rank_pattern is {"q": 8}: only plain'),
    "biases": (lambda f: edit(f / CONFIG, bias="all"), 'bias is "all": only plain LoRA is read'),
    "a module to import": (lambda f: edit(f / CONFIG, megatron_config={"a": 1}), "megatron_config is"),
    "no JSON": (lambda f: (f / CONFIG).write_text("{"), f"{CONFIG}: not readable as JSON"),
    "no base named": (lambda f: edit(f / CONFIG, base_model_name_or_path=None), "base_model_name_or_path is null"),
    "a base of the hub": (
        lambda f: edit(f / CONFIG, base_model_name_or_path="org/model"),
        "base is not there: no folder",
    ),
    "an endless base": (lambda f: edit(f / CONFIG, base_model_name_or_path="x" * 9999), "base is not there"),
    "a base with a zero": (lambda f: edit(f / CONFIG, base_model_name_or_path="a\0b"), "not a folder"),
    "its own base": (lambda f: edit(f / CONFIG, base_model_name_or_path="."), "a LoRA adapter of another base than"),
    "no digest": (lambda f: (f / "base.json").unlink(), "base.json: no such file"),
    "a digest of nothing": (lambda f: edit(f / "base.json", weights={}), "base.json: weights is no object of files"),
    "another digest": (
        lambda f: edit(f / "base.json", weights={"model.safetensors": "0" * 64}),
        "its model.safetensors has another SHA-256; base_model_name_or_path in",
    ),
    "a pipe": (lambda f: ((f / "base.json").unlink(), os.mkfifo(f / "base.json")), "base.json: not a regular file"),
    "a link out": (
        lambda f: ((f / WEIGHTS).rename(f.parent / "w"), (f / WEIGHTS).symlink_to(f.parent / "w")),
        f"{WEIGHTS}: a link out of the folder",
    ),
    "other settings": (lambda f: edit(f / "granvit.json", frame="canvas"), "granvit.json: other settings than"),
    "not a number": (lambda f: rewrite(f, lora_B__weight=lambda t: t * torch.nan), "is not finite (NaN or infinity)"),
    "half a pair": (lambda f: rewrite(f, v_proj__lora_A__weight=None), "v_proj: lora_A or lora_B is missing"),
    "of another size": (
        lambda f: rewrite(f, v_proj__lora_A__weight=lambda t: t[:, :16].contiguous()),
        "v_proj: a change of 16x16, the base has (16, 32)",
    ),
    "of the encoder": (
        lambda f: rewrite(
            f,
            layers__0__self_attn__v_proj__lora_A__weight=(
                "base_model.model.model.vision_tower.encoder.layers.0.self_attn.v_proj.lora_A.weight",
                lambda t: t,
            ),
            layers__0__self_attn__v_proj__lora_B__weight=(
                "base_model.model.model.vision_tower.encoder.layers.0.self_attn.v_proj.lora_B.weight",
                lambda t: torch.zeros(32, 4),
            ),
        ),
        "the base's language model has no such linear layer",
    ),
    "words": (
        lambda f: rewrite(f, linear_1__bias=("base_model.model.model.language_model.embed_tokens.weight", lambda t: t)),
        "embed_tokens.weight: no weight of the base's projector or encoder",
    ),
    "a projector of another size": (lambda f: rewrite(f, linear_1__bias=lambda t: t[:5]), "linear_1.bias is (5,), the"),
    "no pair at all": (
        lambda f: rewrite(f, lora_A__weight=None, lora_B__weight=None),
        "no lora_A and lora_B of any layer",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_bad_folder_is_refused_in_one_line_that_names_the_file(name, adapter):
    spoil, said = REFUSED[name]
    spoil(adapter)
    with pytest.raises(CheckpointError) as error:
        RegionModel.load(adapter)
    assert said in str(error.value) and "\n" not in str(error.value) and str(adapter.parent) in str(error.value)


def test_what_has_no_place_changes_nothing(trained, adapter):
    rewrite(adapter, linear_1__bias=lambda t: t[:5])
    model = RegionModel.load(trained / "start")
    before = {name: tensor.clone() for name, tensor in model.llava.state_dict().items()}
    with pytest.raises(LoadError, match="linear_1.bias"):
        merge(model.llava, read_adapter(adapter))
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.llava.state_dict().items())


def test_a_base_that_was_moved_is_found_where_the_config_says(trained, adapter, tmp_path):
    moved = shutil.copytree(trained / "start", tmp_path / "moved")
    edit(adapter / CONFIG, base_model_name_or_path="../moved")
    model = RegionModel.load(adapter)
    assert root_of(adapter).resolve() == moved
    expected = RegionModel.load(trained / "run" / "checkpoint").llava.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.llava.state_dict().items())


def test_others_say_what_it_is_or_merge_it(trained, adapter, tmp_path):
    with pytest.raises(GranvitError, match="an adapter, no whole model; merge it into its base first"):
        load_model(AutoModelForImageTextToText, adapter, dtype=torch.float32)
    with pytest.raises(GranvitError, match="adapter_config.json: an adapter, no whole model"):
        LocalModel(str(adapter), "cpu", 1)
    tower = load_encoder(adapter).tower.state_dict()
    base = load_encoder(trained / "start").tower.state_dict()
    assert all(torch.equal(tensor, base[name]) for name, tensor in tower.items())
    write_mmproj(RegionModel.load(adapter), tmp_path / "mmproj.gguf", "tiny", "float32")
    assert RANK == json.loads((adapter / CONFIG).read_text())["r"]
