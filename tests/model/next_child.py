"""Loads an exported LLaVA-NeXT with plain `transformers`, where granvit cannot be imported, and answers with it.

python -I without_granvit.py next_child.py FOLDER

for each picture of FOLDER/pictures/*.png what FOLDER/llava makes of it and of the
conversation in FOLDER/text.txt: features, the tokens, the logits; into FOLDER/answers.safetensors.
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import save_file
from transformers import AutoProcessor, LlavaNextForConditionalGeneration


@torch.inference_mode()
def main(folder: Path) -> None:
    model, info = LlavaNextForConditionalGeneration.from_pretrained(folder / "llava", output_loading_info=True)
    assert not any(info.values()), info
    processor = AutoProcessor.from_pretrained(folder / "llava")
    question, answer = (folder / "text.txt").read_text().splitlines()
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    answers = {}
    for path in sorted((folder / "pictures").glob("*.png")):
        inputs = processor(images=Image.open(path), text=text + answer, return_tensors="pt")
        embeds = model.model.get_image_features(inputs["pixel_values"], inputs["image_sizes"]).pooler_output[0]
        answers[f"{path.stem} pixels"] = inputs["pixel_values"][0]
        answers[f"{path.stem} ids"] = inputs["input_ids"][0]
        answers[f"{path.stem} features"] = embeds
        answers[f"{path.stem} logits"] = model(**inputs).logits[0]
    save_file({name: tensor.contiguous() for name, tensor in answers.items()}, folder / "answers.safetensors")


main(Path(sys.argv[1]))
