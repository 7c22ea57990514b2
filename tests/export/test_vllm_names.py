"""The weight names of an export pass through vLLM's own mapper to the modules that vLLM's LLaVA has.

vLLM itself is too large to install for a test; its source files are enough: `pip install --no-deps vllm==0.33.0`, or
`PYTHONPATH` naming a folder with its unpacked wheel. Nothing of it is imported but one class, cut out of its file.
"""

import ast
import dataclasses
import re
import typing
from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from helpers.tiny_model import make_model
from safetensors import safe_open

from granvit.export.llava import export


@pytest.fixture(scope="module")
def sources() -> dict[str, ast.Module]:
    """vLLM's models, as syntax trees by file name."""
    spec = find_spec("vllm")  # looks for it and imports nothing
    if spec is None or not spec.submodule_search_locations:
        pytest.skip("vLLM's source files are absent: pip install --no-deps vllm==0.33.0")
    folder = Path(next(iter(spec.submodule_search_locations))) / "model_executor" / "models"
    return {name: ast.parse((folder / f"{name}.py").read_text()) for name in ("utils", "llava", "llava_next", "siglip")}


def class_of(tree: ast.Module, name: str) -> ast.ClassDef:
    return next(node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)


@pytest.fixture(scope="module")
def mapper(sources):
    """`LlavaForConditionalGeneration.hf_to_vllm_mapper`, made by vLLM's own `WeightsMapper`."""
    return mapper_of(sources, "llava", "LlavaForConditionalGeneration")


def mapper_of(sources, file, name):
    names: dict[str, typing.Any] = {
        **{name: getattr(dataclasses, name) for name in ("dataclass", "field")},
        **{"Iterable": Iterable, "Mapping": Mapping, "regex": re, "re": re, "torch": torch, "Any": typing.Any},
    }
    future = ast.parse("from __future__ import annotations").body
    aliases = [node for node in sources["utils"].body if isinstance(node, ast.Assign | ast.AnnAssign)]
    for node in [*aliases, class_of(sources["utils"], "WeightsMapper")]:
        try:
            exec(compile(ast.Module([*future, node], []), "utils.py", "exec"), names)
        except NameError:
            assert node in aliases, "WeightsMapper needs a name that this test does not give it"
    llava = class_of(sources[file], name)
    (call,) = (
        node.value
        for node in llava.body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "hf_to_vllm_mapper"
    )
    return eval(compile(ast.Expression(call), f"{file}.py", "eval"), names)


@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_every_exported_name_reaches_a_module_of_vllms_llava(sources, mapper, kind, tmp_path):
    model = make_model(kind)
    model.save(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", "llava")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        names = list(file.keys())
    mapped = [mapper._map_name(name) for name in names]
    made = ast.unparse(class_of(sources["llava"], "LlavaForConditionalGeneration"))
    heads = {name.split(".")[0] for name in mapped}
    assert heads == {"vision_tower", "multi_modal_projector", "language_model"}
    assert all(f"self.{head} =" in made for head in heads)
    assert {".".join(name.split(".")[:2]) for name in mapped} - {"language_model.lm_head"} == {
        *("vision_tower.vision_model", "language_model.model"),
        *("multi_modal_projector.linear_1", "multi_modal_projector.linear_2"),
    }
    projector = ast.unparse(class_of(sources["llava"], "LlavaMultiModalProjector"))
    assert "self.linear_1 =" in projector and "self.linear_2 =" in projector
    tower = ast.unparse(sources["siglip"])
    parts = {name.split(".")[2] for name in mapped if name.startswith("vision_tower")}
    assert parts == {"embeddings", "encoder", "post_layernorm"}
    assert all(f"self.{part} =" in tower for part in parts)


def test_every_exported_name_of_tiles_reaches_a_module_of_vllms_llava_next(sources, tmp_path):
    make_model(fit="squash", tiles="2x1,1x2,2x2").save(tmp_path / "run")
    export(tmp_path / "run", tmp_path / "out", "llava")
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        names = list(file.keys())
    mapper = mapper_of(sources, "llava_next", "LlavaNextForConditionalGeneration")
    mapped = [mapper._map_name(name) for name in names]
    heads = {name.split(".")[0] for name in mapped}
    assert heads == {"vision_tower", "multi_modal_projector", "language_model", "image_newline"}
    made = ast.unparse(class_of(sources["llava_next"], "LlavaNextForConditionalGeneration"))
    assert all(f"self.{head} =" in made for head in heads)
    # The modules below are those of its LLaVA.
    imported = {
        node.module: {a.name for a in node.names} for node in sources["llava_next"].body if hasattr(node, "module")
    }
    assert {"LlavaMultiModalProjector", "init_vision_tower_for_llava"} <= imported["llava"]
    assert "require_post_norm=False" in made


def test_vllm_reads_features_before_the_last_norm(sources):
    """As granvit trains them; a norm that stands in the checkpoint and not in the tower is passed over there."""
    assert "require_post_norm=False" in ast.unparse(sources["llava"])
    assert "drops['post_layernorm.'] = None" in ast.unparse(sources["siglip"])


def test_the_mapper_is_the_real_one(mapper):
    """It also takes the names that transformers 5 gives in memory, which a checkpoint does not have."""
    assert mapper._map_name("model.vision_tower.x") == "vision_tower.x"
    assert mapper._map_name("model.language_model.layers.0.x") == "language_model.model.layers.0.x"
