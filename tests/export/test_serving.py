"""The exported model behind `transformers serve`, a real server with the OpenAI API."""

import importlib.util
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from helpers.served import Process
from PIL import Image

from granvit import predict
from granvit.export.llava import export
from granvit.model.assemble import assemble
from granvit.model.region_model import Settings

ASSETS = Path(predict.__file__).parent / "assets"
CHECK = Path(__file__).parents[2] / "docs" / "check_served.py"
START = "import sys; from transformers.cli.transformers import main; sys.exit(main())"


def checker():
    pytest.importorskip("openai")
    spec = importlib.util.spec_from_file_location("check_served", CHECK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("listed", "said"),
    [
        ([], "--model NAME is needed: the server lists none .transformers serve: give it the folder"),
        (None, "the server lists none"),
        (["a", "b"], "the server lists a, b$"),
    ],
)
def test_a_server_that_does_not_list_one_model_is_reported(listed, said):
    models = listed and [SimpleNamespace(id=name) for name in listed]
    server = SimpleNamespace(models=SimpleNamespace(list=lambda: SimpleNamespace(data=models)))
    with pytest.raises(SystemExit, match=said):
        checker().only_model(server)


def test_the_one_model_of_a_server_is_asked():
    server = SimpleNamespace(models=SimpleNamespace(list=lambda: SimpleNamespace(data=[SimpleNamespace(id="own")])))
    assert checker().only_model(server) == "own"


def test_no_server_and_no_checkpoint_are_one_line(tmp_path):
    pytest.importorskip("openai")
    done = subprocess.run([sys.executable, CHECK, "http://127.0.0.1:9/v1", tmp_path, "x.png"], capture_output=True)
    assert done.returncode == 1 and done.stderr.decode().count("\n") == 1 and b"granvit.json" in done.stderr


@pytest.mark.slow
def test_transformers_serve_gives_our_answers(tmp_path):
    if not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn", "openai")):
        pytest.skip('pip install "transformers[serving]"')
    assemble(ASSETS / "nano-encoder", ASSETS / "nano-language", Settings("loc:80")).save(tmp_path / "trained")
    export(tmp_path / "trained", tmp_path / "served")
    pictures = []
    for i, size in enumerate(((91, 53), (40, 120), (160, 160), (301, 200))):
        rng = np.random.default_rng(i)
        pictures.append(tmp_path / f"{i}.png")
        Image.fromarray(rng.integers(0, 256, (6, 4, 3), dtype=np.uint8)).resize(size).save(pictures[-1])
    (tmp_path / "hf/hub").mkdir(parents=True)
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", START, "serve", str(tmp_path / "served"), "--device", "cpu", "--port"]
    server = Process(lambda port: [*command, str(port)], "/health", tmp_path / "out", environment)
    server.start(patience_s=600)
    try:
        asked = [server.address + "/v1", tmp_path / "trained", *pictures, "--model", tmp_path / "served"]
        reported = subprocess.run([sys.executable, CHECK, *map(str, asked)], capture_output=True, text=True)
    finally:
        server.kill()
    assert reported.returncode == 0, reported.stdout + reported.stderr
    assert reported.stdout.endswith("8 of 8 answers are the same\n")
