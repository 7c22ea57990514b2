"""Loading somebody's checkpoint: no code runs, nothing outside its folder is read, the odd is reported in one line."""

import ast
import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from helpers.tiny_model import make_model
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer, LlavaConfig

from granvit.corpus.annotate.caption_local import LocalModel
from granvit.corpus.annotate.detect_models import load_detector
from granvit.errors import CheckpointError, GranvitError
from granvit.evaluate.patch_encoder import load_patch_encoder
from granvit.export.facts import read_source
from granvit.loading import models as loading
from granvit.loading.checkpoint_files import LoadError, check_folder, read_json
from granvit.loading.models import image_settings, load, load_model
from granvit.model.assemble import save_encoder, save_language
from granvit.model.encoders import load_encoder
from granvit.model.languages import load_language
from granvit.model.region_model import RegionModel
from granvit.train.tensorfile import read_tensors

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    folder = tmp_path_factory.mktemp("loading")
    model = make_model()
    model.save(folder / "checkpoint")
    save_encoder(model, folder / "encoder")
    save_language(model, folder / "language")
    return folder


@pytest.fixture
def checkpoint(saved, tmp_path):
    return Path(shutil.copytree(saved / "checkpoint", tmp_path / "checkpoint"))


def edit(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


# --- there is one place that loads -----------------------------------------------------------------------------------

LOADERS = {
    "from_pretrained",
    "from_config",
    "_from_config",
    "pipeline",
    "get_config_dict",
    "get_image_processor_dict",
    "get_tokenizer_config",
    "snapshot_download",
    "hf_hub_download",
}


def calls(path):
    """The loaders that a file calls, and the modules it imports, as `torch.load` and `import pickle` are written."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.rpartition(".")[2] in LOADERS or name in ("torch.load", "torch.hub.load"):
                yield name
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names]
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else names
            yield from (m for m in modules if m.split(".")[0] in ("pickle", "dill", "joblib", "cloudpickle", "shelve"))
            yield from (name for name in names if name in LOADERS)


def test_nothing_is_loaded_outside_the_one_helper():
    files = [p for folder in ("granvit", "benchmarks", "docs") for p in sorted((ROOT / folder).rglob("*.py"))]
    assert len(files) > 150
    found = {str(p.relative_to(ROOT)): sorted(set(calls(p))) for p in files}
    assert {name: made for name, made in found.items() if made and name != "granvit/loading/models.py"} == {}
    assert "cls.from_pretrained" in found["granvit/loading/models.py"]  # the search finds what is there


def test_the_command_in_a_message_says_it_too():
    texts = [*(ROOT / "docs").glob("*.md"), ROOT / "README.md", *(ROOT / "granvit/assets/templates").glob("*.j2")]
    lines = [
        line
        for path in texts
        for line in path.read_text().splitlines()
        if ".from_pretrained(" in line and "PeftModel" not in line
    ]
    assert len(lines) >= 6 and all("trust_remote_code=False" in line for line in lines)


# --- code of a checkpoint --------------------------------------------------------------------------------------------

EVIL = "from pathlib import Path\nPath({ran!r}).write_text('code of a checkpoint ran')\n" + "\n".join(
    f"class {name}:\n    from_pretrained = classmethod(lambda cls, *a, **k: cls())\n"
    for name in ("Config", "Model", "Tokenizer", "Processor", "Images")
)
MAP = {
    "AutoConfig": "evil.Config",
    **{f"Auto{kind}": "evil.Model" for kind in ("Model", "ModelForCausalLM", "ModelForImageTextToText")},
    "AutoModelForObjectDetection": "evil.Model",
    "AutoTokenizer": ["evil.Tokenizer", "evil.Tokenizer"],
    "AutoProcessor": "evil.Processor",
    "AutoImageProcessor": "evil.Images",
}
KINDS = {
    "all of it is of its own": {"model_type": "evil"},
    "the type is known": {},
    "no type": {"model_type": None},
}
LOADS = """
import sys
from pathlib import Path
from granvit.corpus.annotate.caption_local import LocalModel
from granvit.corpus.annotate.detect_models import load_detector
from granvit.corpus.annotate.ocr_networks import NetworkDetector, NetworkRecognizer
from granvit.errors import GranvitError
from granvit.evaluate.patch_encoder import load_patch_encoder
from granvit.loading.models import load, load_model
from granvit.export.facts import read_source
from granvit.model.encoders import load_encoder
from granvit.model.languages import load_language
from granvit.predict import GranViT
from granvit.train.debug.replay import _load_model
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoProcessor, AutoTokenizer
ran = Path(sys.argv[1])
for folder in sys.argv[2:]:
    for name, loader in {
        "config": lambda: load(AutoConfig, folder),
        "tokenizer": lambda: load(AutoTokenizer, folder),
        "processor": lambda: load(AutoProcessor, folder),
        "image processor": lambda: load(AutoImageProcessor, folder),
        "model": lambda: load_model(AutoModel, folder, dtype="auto"),
        "describe": lambda: GranViT.load(folder),
        "probe": lambda: load_patch_encoder(folder),
        "encoder": lambda: load_encoder(folder),
        "language": lambda: load_language(folder),
        "replay": lambda: _load_model(Path(folder).parent),
        "captioner": lambda: LocalModel(folder, "cpu", 1),
        "detector": lambda: load_detector(folder, (), 0.5, "cpu", "float32"),
        "ocr": lambda: NetworkDetector(folder, "cpu", 736, 0.5),
        "ocr lines": lambda: NetworkRecognizer(folder, "cpu", 4),
    }.items():
        try:
            loader()
            said = "loaded"
        except GranvitError as error:
            said = " ".join(str(error).split())
        assert not ran.exists(), (name, folder)
        print(name, "|", folder, "|", said)
"""


@pytest.mark.parametrize("answer", ["y\n" * 50, None], ids=["yes", "nobody"])
def test_no_loader_runs_a_checkpoints_code_or_asks_whether_it_may(saved, tmp_path, answer):
    ran, folders = tmp_path / "ran", []
    for kind, changes in KINDS.items():
        for part in ("checkpoint", "encoder", "language"):
            folder = Path(shutil.copytree(saved / part, tmp_path / kind.replace(" ", "-") / part))
            (folder / "evil.py").write_text(EVIL.format(ran=str(ran)))
            for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
                if not (folder / name).exists():
                    (folder / name).write_text("{}")
                edit(folder / name, auto_map=MAP, **changes if name == "config.json" else {})
            if kind == "all of it is of its own":  # no class of transformers is named anywhere
                edit(folder / "tokenizer_config.json", tokenizer_class=None)
                edit(folder / "processor_config.json", processor_class=None, image_processor={"auto_map": MAP})
            folders.append(str(folder))
    done = subprocess.run(
        [sys.executable, "-c", LOADS, str(ran), *folders],
        input=answer,
        stdin=subprocess.DEVNULL if answer is None else None,
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert not ran.exists() and "[y/N]" not in done.stdout + done.stderr
    said = [line.split(" | ") for line in done.stdout.splitlines() if line.count(" | ") == 2]
    assert len(said) == 14 * 9
    reported = {(name, Path(folder).parent.name, Path(folder).name): what for name, folder, what in said}
    assert reported["describe", "the-type-is-known", "checkpoint"] == "loaded"
    assert reported["language", "the-type-is-known", "language"] == "loaded"
    assert "never run" in reported["config", "all-of-it-is-of-its-own", "checkpoint"]


# --- files -----------------------------------------------------------------------------------------------------------


def sharded(folder, outside=None):
    """The weights in two files with an index; the second under another name, where one is given."""
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    files = ("model-00001-of-00002.safetensors", outside or "model-00002-of-00002.safetensors")
    for i, file in enumerate(files):
        part = {n: weights[n] for n in names[i::2]}
        save_file(part, Path(os.path.join(folder, file)), metadata={"format": "pt"})
    total = {"total_size": sum(w.numel() * 4 for w in weights.values())}
    index = {"metadata": total, "weight_map": {n: files[i % 2] for i, n in enumerate(names)}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


def test_weights_in_several_files_are_loaded(checkpoint):
    before = RegionModel.load(checkpoint).llava.state_dict()
    after = RegionModel.load(sharded(checkpoint)).llava.state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in before.items())


@pytest.mark.parametrize("where", ["../outside.safetensors", "absolute", "..\\outside.safetensors", "model.bin"])
def test_an_index_that_leads_out_of_the_folder_is_refused(checkpoint, tmp_path, where):
    outside = str(tmp_path / "outside.safetensors") if where == "absolute" else where
    sharded(checkpoint, outside)
    with pytest.raises(CheckpointError, match="index.json: weight_map: .* is no safetensors file of this folder"):
        RegionModel.load(checkpoint)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "chat_template.jinja"])
def test_a_link_out_of_the_folder_is_refused(checkpoint, tmp_path, name):
    (checkpoint / name).rename(tmp_path / name)
    (checkpoint / name).symlink_to(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name}: a link out of the folder"):
        RegionModel.load(checkpoint)


def test_a_shard_that_is_a_link_out_is_refused(checkpoint, tmp_path):
    sharded(checkpoint)
    shard = checkpoint / "model-00002-of-00002.safetensors"
    shard.rename(tmp_path / shard.name)
    shard.symlink_to(f"../{shard.name}")
    with pytest.raises(CheckpointError, match="00002-of-00002.safetensors: a link out of the folder"):
        RegionModel.load(checkpoint)
    (tmp_path / shard.name).unlink()
    with pytest.raises(CheckpointError, match="00002-of-00002.safetensors: a link that leads nowhere"):
        RegionModel.load(checkpoint)


def cached(folder, hub, name):
    """A folder as the hub's cache keeps it: the files in blobs/, links to them in snapshots/."""
    home = hub / ("models--" + name.replace("/", "--"))
    snapshot = home / "snapshots/0123456789abcdef0123456789abcdef01234567"
    (home / "blobs").mkdir(parents=True)
    (home / "refs").mkdir()
    snapshot.mkdir(parents=True)
    (home / "refs/main").write_text(snapshot.name)
    for number, path in enumerate(sorted(folder.iterdir())):
        shutil.copy(path, home / "blobs" / str(number))
        (snapshot / path.name).symlink_to(f"../../blobs/{number}")
    return snapshot


def test_the_links_of_the_hubs_cache_are_followed_by_folder_and_by_name(saved, tmp_path, monkeypatch):
    snapshot = cached(saved / "encoder", tmp_path / "hub", "nobody/encoder")
    by_folder = load_encoder(snapshot).tower.state_dict()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(loading, "hub_answers", lambda: False)
    # A hub that does not answer is not asked.
    monkeypatch.setattr("huggingface_hub.file_download.get_hf_file_metadata", None)
    tower = load_encoder("nobody/encoder").tower
    assert tower.name_or_path == tower.config._name_or_path == "nobody/encoder"
    by_name = tower.state_dict()
    assert by_folder.keys() == by_name.keys() and all(torch.equal(t, by_name[n]) for n, t in by_folder.items())
    (snapshot / "model.safetensors").unlink()
    (tmp_path / "elsewhere").write_bytes(b"")
    (snapshot / "model.safetensors").symlink_to("../../../../elsewhere")
    with pytest.raises(GranvitError, match="model.safetensors: a link out of the folder"):
        load_encoder("nobody/encoder")


SPECIAL = ["granvit.json", "config.json", "model.safetensors", "tokenizer.json", "processor_config.json"]


@pytest.mark.parametrize("name", [*SPECIAL, "tokenizer_config.json", "generation_config.json", "chat_template.jinja"])
def test_a_pipe_or_device_in_place_of_a_file_is_refused_at_once(checkpoint, name):
    (checkpoint / name).unlink()
    os.mkfifo(checkpoint / name)
    started = time.monotonic()
    with pytest.raises(CheckpointError, match=f"{name}: not a regular file"):
        RegionModel.load(checkpoint)
    (checkpoint / name).unlink()
    (checkpoint / name).symlink_to("/dev/zero")
    with pytest.raises(CheckpointError, match=f"{name}: (a link out of the folder|not a regular file)"):
        RegionModel.load(checkpoint)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("name", ["granvit.json", "config.json", "tokenizer_config.json", "tokenizer.json"])
def test_json_that_is_nested_without_end_or_huge_is_refused(checkpoint, name):
    (checkpoint / name).write_text('{"a":' + "[" * 100_000 + "]" * 100_000 + "}")
    with pytest.raises(CheckpointError, match=f"{name}: .*nested too deep"):
        RegionModel.load(checkpoint)
    for content in ("[" * 200 + "]" * 200, "1" * 5000):
        (checkpoint / name).write_text('{"a":' + content + "}")
        with pytest.raises(CheckpointError, match=f"{name}: "):
            RegionModel.load(checkpoint)
    with (checkpoint / name).open("wb") as file:
        file.truncate(400_000_000)  # a hole: no disk is used
    with pytest.raises(CheckpointError, match=f"{name}: 400,000,000 bytes, at most"):
        RegionModel.load(checkpoint)


LEADING = {
    ("config.json", "transformers_weights"): "../outside.safetensors",
    ("config.json", "configuration_files"): ["config.4.0.0.json"],
    ("tokenizer_config.json", "fast_tokenizer_files"): ["tokenizer.4.0.0.json"],
    ("processor_config.json", "audio_tokenizer"): {"audio_tokenizer_name_or_path": "../outside"},
    ("config.json", "attn_implementation"): "somebody/kernel",
}


@pytest.mark.parametrize(("name", "field"), LEADING)
def test_fields_that_send_a_reader_elsewhere_are_refused(checkpoint, name, field):
    edit(checkpoint / name, **{field: LEADING[name, field]})
    with pytest.raises(CheckpointError, match=f"{name}: {field}"):
        RegionModel.load(checkpoint)


def test_paths_that_a_checkpoint_states_are_not_followed(checkpoint, tmp_path):
    trap = tmp_path / "trap"
    trap.mkdir()
    for name in ("config.json", "tokenizer.json", "vocab.json", "processor_config.json"):
        os.mkfifo(trap / name)  # whoever opens one waits
    edit(checkpoint / "config.json", _name_or_path=str(trap), name_or_path=str(trap))
    edit(checkpoint / "tokenizer_config.json", name_or_path=str(trap), tokenizer_file=str(trap / "tokenizer.json"))
    edit(checkpoint / "tokenizer_config.json", vocab_file=str(trap / "vocab.json"))
    edit(checkpoint / "generation_config.json", custom_generate=str(trap))
    RegionModel.load(checkpoint)


def test_an_adapter_is_no_model(checkpoint, tmp_path):
    """A run that LoRA made is opened with its base (tests/model/test_adapter.py); nothing else with an adapter is."""
    (checkpoint / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(tmp_path)}))
    with pytest.raises(CheckpointError, match="adapter_config.json: peft_type is None, only 'LORA' is read"):
        RegionModel.load(checkpoint)
    (tmp_path / "adapter_config.json").write_text("{}")
    for loader in (load_encoder, load_language):
        with pytest.raises(GranvitError, match="adapter_config.json: an adapter, no whole model"):
            loader(tmp_path)


# --- names -----------------------------------------------------------------------------------------------------------


def test_a_name_that_nobody_has_is_reported_fast_without_a_network(monkeypatch):
    monkeypatch.setattr(loading, "hub_answers", lambda: False)
    captioner = partial(LocalModel, device="cpu", batch_size=1)
    detector = partial(load_detector, labels=(), threshold=0.5, device="cpu", dtype="float32")
    for loader in (load_encoder, load_language, load_patch_encoder, captioner, detector):
        with pytest.raises(GranvitError, match="^nobody/such-model: .*the hub cannot be reached$"):
            loader("nobody/such-model")
    for name in ("/no/where", "./here", "a/b/c", "", "a//b"):
        with pytest.raises(LoadError, match="no such folder"):
            load(AutoConfig, name)
    with pytest.raises(LoadError, match="no such folder|not a folder"):
        load(AutoConfig, __file__)


def test_a_hub_that_does_not_answer_is_given_up_after_three_seconds(monkeypatch):
    class Silent:
        def head(self, *args, **options):
            time.sleep(30)

    monkeypatch.setattr(loading, "get_session", Silent)
    loading.hub_answers.cache_clear()
    started = time.monotonic()
    assert not loading.hub_answers()
    assert time.monotonic() - started < 6
    loading.hub_answers.cache_clear()


def test_a_hub_that_answers_is_asked_and_its_answer_reported_in_one_line(monkeypatch, tmp_path, saved):
    asked = []

    def download(name, allow_patterns):
        asked.append(sorted(allow_patterns))
        if name == "nobody/encoder":
            return str(saved / "encoder")
        raise RuntimeError("404 Client Error.\n\nRepository Not Found\nfor url")

    monkeypatch.setattr(loading, "hub_answers", lambda: True)
    monkeypatch.setattr(loading, "snapshot_download", download)
    with pytest.raises(GranvitError) as caught:
        load_encoder("nobody/other")
    assert "404 Client Error. Repository Not Found" in str(caught.value)
    assert loading.find("nobody/encoder", weights=True) == saved / "encoder"
    assert asked[-1] == ["model.safetensors", "model.safetensors.index.json"]


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_named(checkpoint, value):
    path = checkpoint / "model.safetensors"
    weights = load_file(path)
    weights["language_model.model.layers.1.mlp.up_proj.weight"][3, 5] = value
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="weight .*layers.1.mlp.up_proj.weight is not finite"):
        RegionModel.load(checkpoint)


def test_a_codec_whose_tokens_the_tokenizer_lacks_is_named(checkpoint):
    edit(checkpoint / "granvit.json", codec="loc:20")
    with pytest.raises(CheckpointError, match="granvit.json: codec 'loc:20' needs 4 tokens .* such as <loc0016>"):
        RegionModel.load(checkpoint)


def test_a_config_of_more_weights_than_the_files_hold_makes_none(checkpoint):
    config = json.loads((checkpoint / "config.json").read_text())
    config["text_config"]["vocab_size"] = 16_000_000
    (checkpoint / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match=r"config.json: a model of [\d,]{11,} weights, the files hold [\d,]+"):
        RegionModel.load(checkpoint)


def test_every_part_loads_as_it_is(saved):
    assert isinstance(load(LlavaConfig, saved / "checkpoint"), LlavaConfig)
    for cls in (AutoProcessor, AutoTokenizer, AutoImageProcessor):
        assert load(cls, saved / "checkpoint") is not None
    assert not load_model(AutoModel, saved / "encoder", dtype=torch.float32).training
    assert image_settings(saved / "encoder")["image_mean"] == [0.5] * 3
    assert image_settings(saved / "language") == {}
    check_folder(saved / "language", weights=True)
    assert read_json(saved / "checkpoint/granvit.json")["codec"] == "loc:16"


# --- files of runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["recipe.json", "data.json", "metrics.json"])
def test_a_pipe_among_a_runs_files_is_refused(tmp_path, name):
    (tmp_path / "checkpoint").mkdir()
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match=f"{name}: not a regular file"):
        read_source(tmp_path)


def test_a_pipe_among_a_checkpoints_tensors_is_refused(tmp_path):
    os.mkfifo(tmp_path / "student.safetensors")
    with pytest.raises(CheckpointError, match="student.safetensors: cannot be read: .*not a regular file"):
        read_tensors(tmp_path / "student.safetensors")
