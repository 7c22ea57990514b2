"""Loads an exported LLaVA-NeXT with plain `transformers`, where granvit cannot be imported, and answers with it.

python -I next_child.py FOLDER: for each picture of FOLDER/pictures/*.png what FOLDER/llava makes of it and of the
conversation in FOLDER/text.txt: features, the tokens, the logits; into FOLDER/answers.safetensors.
"""

import importlib.util
import sys
from pathlib import Path


class NoGranvit:
    """Refuses the package under test, wherever it may be found."""

    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "granvit":
            raise ModuleNotFoundError(name, name=name)
        return None


sys.meta_path.insert(0, NoGranvit())
try:
    importlib.util.find_spec("granvit")
    sys.exit("granvit can be imported here")
except ModuleNotFoundError:
    pass

import torch  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors.torch import save_file  # noqa: E402
from transformers import AutoProcessor, LlavaNextForConditionalGeneration  # noqa: E402


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
