"""Does what an exported model's card says, with plain `transformers`, where granvit cannot be imported.

python -I without_granvit.py export_child.py FOLDER

FOLDER/jobs.json holds pictures with a box and a phrase each, and what to ask and
answer for the logits. For each model directory in FOLDER/models it runs the Python of README.md, asks both questions of
every picture, and writes `said.json` and `said.safetensors` beside the card.
"""

import json
import os
import re
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


def code_of(card: Path) -> str:
    return "\n".join(re.findall(r"```python\n(.*?)```", card.read_text(), re.S))


def run_llava(folder: Path, jobs: list[dict]) -> None:
    card: dict = {}
    exec(compile(code_of(folder / "README.md"), str(folder / "README.md"), "exec"), card)
    said, logits = [], {}
    for i, job in enumerate(jobs):
        picture = card["open_picture"](job["picture"])
        width, height = picture.size
        asked = card["describe_question"](job["box"], width, height), card["locate_question"](job["phrase"])
        described, located = (card["ask"](picture, question, job["tokens"]) for question in asked)
        box = card["text_to_box"](located, width, height)
        said.append({"asked": asked, "described": described, "located": located, "box": box})
        for n, question in enumerate(asked):
            content = [{"type": "image"}, {"type": "text", "text": question}]
            text = card["processor"].apply_chat_template(
                [{"role": "user", "content": content}], add_generation_prompt=True
            )
            inputs = card["processor"](images=picture, text=text + job["answers"][n], return_tensors="pt")
            with torch.inference_mode():
                logits[f"{i}.{n}"] = card["model"](**inputs).logits[0].contiguous()
    (folder / "said.json").write_text(json.dumps(said))
    save_file(logits, folder / "said.safetensors")


def run_encoder(folder: Path, jobs: list[dict]) -> None:
    from PIL import Image

    card: dict = {}
    exec(compile(code_of(folder / "README.md"), str(folder / "README.md"), "exec"), card)
    features = {str(i): card["features"](Image.open(j["picture"]).convert("RGB")) for i, j in enumerate(jobs)}
    save_file({k: v.contiguous() for k, v in features.items()}, folder / "said.safetensors")


def main(folder: Path) -> None:
    jobs = json.loads((folder / "jobs.json").read_text())
    for place in sorted((folder / "models").iterdir()):
        os.chdir(place)
        answers = any((place / name).exists() for name in ("processor_config.json", "adapter_config.json"))
        (run_llava if answers else run_encoder)(place, jobs)


main(Path(sys.argv[1]))
