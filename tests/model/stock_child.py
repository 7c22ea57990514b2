"""Loads exported checkpoints with plain `transformers`, where granvit cannot be imported, and answers with them.

python -I without_granvit.py stock_child.py FOLDER

reads FOLDER/picture.png and FOLDER/questions.json; for each model directory in
FOLDER writes `answers.safetensors` into it: the logits of each whole conversation, features, generated tokens.
"""

import json
import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    LlavaForConditionalGeneration,
    SiglipVisionModel,
)


def main(folder: Path) -> None:
    picture = Image.open(folder / "picture.png").convert("RGB")
    questions = json.loads((folder / "questions.json").read_text())
    for place in sorted(p for p in folder.iterdir() if p.is_dir()):
        answers = {}
        with torch.inference_mode():
            model, info = LlavaForConditionalGeneration.from_pretrained(place / "llava", output_loading_info=True)
            assert not any(info.values()), info
            processor = AutoProcessor.from_pretrained(place / "llava")
            for i, (question, answer) in enumerate(questions):
                content = [{"type": "image"}, {"type": "text", "text": question}]
                text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
                inputs = processor(images=picture, text=text + answer, return_tensors="pt")
                output = model(**inputs)
                answers[f"ids{i}"] = inputs["input_ids"][0]
                answers[f"logits{i}"] = output.logits[0].contiguous()
            tower = model.model.vision_tower
            answers["features"] = tower(inputs["pixel_values"], output_hidden_states=True).hidden_states[-1]

            alone, info = SiglipVisionModel.from_pretrained(place / "encoder", output_loading_info=True)
            assert not any(info.values()), info
            pixels = AutoImageProcessor.from_pretrained(place / "encoder")(picture, return_tensors="pt")
            hidden = alone(pixels["pixel_values"], output_hidden_states=True).hidden_states
            answers["encoder_features"] = hidden[-1]
        save_file({k: v.contiguous() for k, v in answers.items()}, place / "answers.safetensors")


main(Path(sys.argv[1]))
