"""Captions through `transformers serve`, a real OpenAI-compatible server around a real model."""

import importlib.util
import sys
import threading
import time

import pytest
from helpers.serving import Process, painted
from helpers.tiny_captioner import SAYS, save

from granvit.corpus.annotate.caption import CaptionConfig

START = "import sys; from transformers.cli.transformers import main; sys.exit(main())"


@pytest.fixture
def served(tmp_path):
    """The little LLaVA behind `transformers serve`; (process, folder of the model, what the server prints)."""
    if not all(importlib.util.find_spec(name) for name in ("fastapi", "uvicorn")):
        pytest.skip('pip install "transformers[serving]"')
    model, out = save(tmp_path / "llava"), tmp_path / "served"
    (tmp_path / "hf/hub").mkdir(parents=True)
    environment = {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", START, "serve", str(model), "--device", "cpu", "--host", "127.0.0.1", "--port"]
    process = Process(lambda port: [*command, str(port)], "/health", out, environment)
    process.start(patience_s=240)
    yield process, model, out
    process.kill()


def paid(out):
    """Requests that the server answered, by its own account."""
    return sum("POST /v1/chat/completions" in line and "200 OK" in line for line in out.read_text().splitlines())


@pytest.mark.slow
def test_200_regions_16_at_a_time_with_the_server_killed_and_restarted_in_the_middle(served, tmp_path):
    process, model, out = served
    items = [painted(f"p{i}", 15) for i in range(20)]
    for item in items:  # red and blue, ten of each picture
        item.record.regions = [r for i, r in enumerate(item.record.regions) if i % 3 != 1]
    config = CaptionConfig(
        str(model), f"{process.address}/v1", whole_image=False, cache=str(tmp_path / "c.sqlite"), patience_s=300
    )
    annotator = config.build()

    def restart():
        while paid(out) < 80:
            time.sleep(0.01)
        process.kill()
        process.start(patience_s=240)

    thread = threading.Thread(target=restart)
    thread.start()
    annotator(items)
    thread.join()
    assert [[r.text for r in i.record.regions] for i in items] == [[SAYS["red"], SAYS["blue"]] * 5] * 20
    assert annotator.counts == {"asked": 200, "from-cache": 0, "repeated": 0}
    assert all(i.rejections == [] for i in items)
    failures = annotator.captioner.failures
    assert failures["endpoint-unreachable"] >= 16, failures
    print(f"answered by the server: {paid(out)}; failed attempts: {dict(failures)}")
    assert 200 - 16 <= paid(out) <= 200
    again = config.build()
    again(items)
    assert again.counts["asked"] == 0 and paid(out) <= 200
