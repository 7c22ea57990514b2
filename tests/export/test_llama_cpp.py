"""What is exported as GGUF, in llama.cpp itself: the same tokens, the same words, the same answers about pictures.

Every answer is greedy, from files in float32 or float16. They need not agree to the last: llama.cpp's GELU is a table
of halves, so that where two words are nearly as likely the other one may be said (docs/export.md).
"""

import numpy as np
import pytest
import torch
from helpers.llama_cpp import ask_llama_cpp, need_llama_cpp
from helpers.smollm2 import real_language

from granvit.corpus.synthetic.synthesize import make
from granvit.export import gguf as writing
from granvit.export.gguf import write_language, write_mmproj
from granvit.images import decode
from granvit.model.assemble import assemble
from granvit.model.region_model import Settings
from granvit.nano.models import ASSETS, build_model
from granvit.nano.recipes import nano
from granvit.predict import GranViT, ImageQuestions
from granvit.questions import BBOX2CAPTION, CAPTION2BBOX, GLOBAL, ask_box

PICTURES = 20
TEXTS = ["a  12 b", "[125, 500]\n\n  l'été", "<|im_start|>user\nhi<|im_end|>\n", "日本 don't 1234567", GLOBAL]


def pictures(count, folder):
    """Embedded scenes: (picture, its file, its first region)."""
    for i in range(count):
        record = make(i, seed=4_000_001, size=160, documents=0.0)
        picture, file = decode(record.image), folder / f"{i}.png"
        picture.save(file)
        yield picture, file, record.regions[0]


def written(model, folder, precision):
    """The two files of a model."""
    model.processor.tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))
    write_language(model, folder / "tokenizer.json", folder / "language.gguf", "a", precision)
    write_mmproj(model, folder / "mmproj.gguf", "a", precision)
    return folder / "language.gguf", folder / "mmproj.gguf"


def rendered(model, question):
    content = [{"type": "image"}, {"type": "text", "text": question}]
    text = model.processor.apply_chat_template(
        [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
    )
    return text.replace("<image>", "<__media__>")


# --- the presets' Qwen2, with the shipped encoder --------------------------------------------------------------------


def as_llama_cpp_needs_it(prompt):
    """The same question without the spaces that the presets' fixed pieces swallow, which llama.cpp's do not."""
    for piece in (*BBOX2CAPTION, CAPTION2BBOX):
        prompt = prompt.replace(piece, piece.strip() + " " * (piece == CAPTION2BBOX))
    return prompt


@pytest.mark.slow
def test_the_presets_answer_in_llama_cpp_as_they_do_here(tmp_path, monkeypatch):
    need_llama_cpp()
    # Their tokenizer is refused, for spaces that are no part of any answer: prompts are written without them here.
    monkeypatch.setattr(writing, "_check_tokenizer", lambda split: "smollm")
    model = build_model(nano())
    language, mmproj = written(model, tmp_path, "float32")
    granvit, asks, ours, texts = GranViT(model), [], [], []
    for picture, file, region in pictures(PICTURES, tmp_path):
        view = model.view(picture.size)
        questions = [*granvit.box_questions(view, [region.box]), ask_box(region.text)]
        ours += granvit.answer([ImageQuestions(picture, view, questions)], 12)[0]
        for question in questions:
            asks.append((as_llama_cpp_needs_it(rendered(model, question)), file))
            texts.append((asks[-1][0].split("<__media__>")[1], model.dialog.ask(question)))
    theirs, ids = ask_llama_cpp(language, mmproj, asks, 12, [text for text, _ in texts])
    assert ids == [expected for _, expected in texts]
    agree = [a == b.strip() for a, b in zip(ours, theirs, strict=True)]
    print(f"{sum(agree)} of {len(agree)} answers are the same")
    assert len(set(ours)) > PICTURES  # or it would say the same of all
    assert np.mean(agree) >= 0.95, [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b.strip()]


# --- a Llama ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def smollm2():
    """The shipped encoder before SmolLM2, by a projector that has learned nothing."""
    need_llama_cpp()
    return assemble(ASSETS / "nano-encoder", real_language(), Settings("int1000"))


@pytest.fixture(scope="module")
def its_files(smollm2, tmp_path_factory):
    return written(smollm2, tmp_path_factory.mktemp("smollm2"), "float16")


@pytest.mark.slow
def test_smollm2_says_the_same_words_in_llama_cpp(smollm2, its_files):
    said = ("What is the capital of France?", "Write one sentence about the sea.", "Count from 1 to 12.")
    prompts = [f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n" for text in said]
    tokenizer, ours = smollm2.processor.tokenizer, []
    half = {n: t.half().float() for n, t in smollm2.llava.state_dict().items() if t.ndim > 1}
    smollm2.llava.load_state_dict(half, strict=False)  # as the file has them
    for prompt in prompts:
        ids = torch.tensor([tokenizer(prompt).input_ids])
        made = smollm2.llava.generate(input_ids=ids, max_new_tokens=20, do_sample=False)
        ours.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
    theirs, ids = ask_llama_cpp(its_files[0], None, [(prompt, None) for prompt in prompts], 20, TEXTS)
    assert theirs == ours and ours[0] == "The capital of France is Paris."
    assert ids == [tokenizer.encode(text) for text in TEXTS]


@pytest.mark.slow
def test_smollm2_answers_about_pictures_in_llama_cpp_as_it_does_here(smollm2, its_files, tmp_path):
    granvit, asks, ours = GranViT(smollm2), [], []
    for number, (picture, file, region) in enumerate(pictures(PICTURES, tmp_path)):
        view = smollm2.view(picture.size)
        question = ask_box(region.text) if number % 2 else granvit.box_questions(view, [region.box])[0]
        ours += granvit.answer([ImageQuestions(picture, view, [question])], 12)[0]
        asks.append((rendered(smollm2, question), file))
    theirs, _ = ask_llama_cpp(*its_files, asks, 12)
    agree = [a == b.strip() for a, b in zip(ours, theirs, strict=True)]
    print(f"{sum(agree)} of {len(agree)} answers are the same")
    assert np.mean(agree) >= 0.9, [(a, b) for a, b in zip(ours, theirs, strict=True) if a != b.strip()]
