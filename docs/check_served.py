"""Ask a server and granvit the same questions of the same pictures, and compare the answers.

    python docs/check_served.py ADDRESS CHECKPOINT PICTURE... [--model NAME] [--llama-cpp] [--tokens N]

ADDRESS is that of an OpenAI-compatible server with the exported model, such as http://127.0.0.1:8000/v1; CHECKPOINT is
the run or checkpoint that was exported. Of each picture the middle is asked about, and then looked for. The exit status
is 1 where an answer differs.
"""

from __future__ import annotations

import argparse
import base64
import io

import numpy as np
from openai import OpenAI, OpenAIError
from PIL import Image

from granvit.errors import GranvitError
from granvit.export.card import line_break
from granvit.images import open_picture
from granvit.predict import GranViT, ImageQuestions
from granvit.questions import ask_box


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("address")
    parser.add_argument("checkpoint")
    parser.add_argument("pictures", nargs="+")
    parser.add_argument("--model", help="the model's name at the server; the only one that it lists by default")
    parser.add_argument("--llama-cpp", action="store_true", help="send squares, and a line break before questions")
    parser.add_argument("--tokens", type=int, default=32, help="the longest answer")
    given = parser.parse_args()
    granvit = GranViT.load(given.checkpoint)
    server = OpenAI(base_url=given.address, api_key="none")
    name = given.model or only_model(server)
    total = same = 0
    for path in given.pictures:
        picture = open_picture(path)
        view = granvit.model.view(picture.size)
        middle = np.array([*picture.size, *picture.size]) * [0.25, 0.25, 0.75, 0.75]
        questions = granvit.box_questions(view, middle)
        described = granvit.answer([ImageQuestions(picture, view, questions)], given.tokens)[0][0]
        questions.append(ask_box(described or "the largest thing"))
        ours = granvit.answer([ImageQuestions(picture, view, questions)], given.tokens)[0]
        sent = view.apply(picture, granvit.model.fill) if given.llama_cpp else picture
        for question, expected in zip(questions, ours, strict=True):
            text = "\n" + question if given.llama_cpp and line_break(granvit.model) else question
            answer = ask(server, name, sent, text, given.tokens)
            total += 1
            same += answer == expected
            if answer != expected:
                print(f"{path}: {question}\n  granvit: {expected}\n  server:  {answer}")
    print(f"{same} of {total} answers are the same")
    return int(same < total)


def only_model(server: OpenAI) -> str:
    """The name of the one model that a server lists; with none or several on its list it must be named.

    `transformers serve` lists the models of the hub's cache, which a folder that it was given is not among.
    """
    listed = [model.id for model in server.models.list().data or []]
    if len(listed) != 1:
        there = ", ".join(listed) or "none (transformers serve: give it the folder that it was started with)"
        raise SystemExit(f"--model NAME is needed: the server lists {there}")
    return listed[0]


def ask(server: OpenAI, name: str, picture: Image.Image, question: str, tokens: int) -> str:
    file = io.BytesIO()
    picture.save(file, "PNG")
    url = "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()
    content = [{"type": "image_url", "image_url": {"url": url}}, {"type": "text", "text": question}]
    reply = server.chat.completions.create(
        model=name,
        messages=[{"role": "user", "content": content}],  # type: ignore[list-item, misc]
        temperature=0,
        max_tokens=tokens,
    )
    return (reply.choices[0].message.content or "").strip()


if __name__ == "__main__":
    try:
        raise SystemExit(main())
    except (GranvitError, OSError, OpenAIError) as error:
        raise SystemExit(f"check_served: {' '.join(str(error).split())}") from None
