from collections import Counter

import numpy as np
import pytest
import torch
from helpers.tiny_model import make_model

from granvit.model import generate
from granvit.model.generate import greedy, greedy_answers
from granvit.questions import ask_box, ask_caption, ask_global

LONGEST = 12


@pytest.fixture(params=["qwen2", "llama"])
def model(request):
    return make_model(request.param, seed=4)


def pictures(model, count, seed=0):
    shape = (count, model.canvas, model.canvas, 3)
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8))


def questions_of(model, counts, seed=0):
    """For each image so many questions, of all kinds and lengths."""
    rng = np.random.default_rng(seed)
    asked = [
        ask_global(),
        ask_box("a red star and two blue rings"),
        ask_caption([0.1, 0.2, 0.8, 0.9], model.codec),
        ask_box("tea"),
        ask_caption([0.5, 0.1, 0.6, 0.3], model.codec),
    ]
    return [[model.dialog.ask(asked[i]) for i in rng.permutation(5)[:count]] for count in counts]


def stock(model, pixels, question, longest=LONGEST):
    """One `generate` call of plain transformers for one question."""
    ids = torch.tensor([model.dialog.prefix_ids + question])
    output = model.llava.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        pixel_values=model.normalise(pixels[None]),
        max_new_tokens=longest,
        do_sample=False,
    )
    answer = output[0, ids.shape[1] :].tolist()
    end = model.dialog.end_token
    return answer[: answer.index(end)] if end in answer else answer


def end_with(model, token):
    model.dialog.end_token = token
    model.llava.generation_config.eos_token_id = token


def test_answers_are_those_of_stock_generate(model):
    canvases, questions = pictures(model, 3), questions_of(model, (4, 1, 5))
    endless = [row for rows in greedy(model, canvases, questions, LONGEST) for row in rows]
    # The token at which most answers end, at different steps.
    stops = Counter({t: len({r.index(t) for r in endless if t in r}) for r in endless for t in r})
    end_with(model, stops.most_common(1)[0][0])

    answers = greedy(model, canvases, questions, LONGEST)

    lengths = {len(row) for rows in answers for row in rows}
    assert len(lengths) >= 3, "the answers should end at different steps"
    expected = [[stock(model, c, q) for q in asked] for c, asked in zip(canvases, questions, strict=True)]
    assert answers == expected


def test_probabilities_are_those_of_stock_generate(model):
    """Of every token that is chosen, the end's among them where there is one, whatever else is asked beside."""
    canvases, questions = pictures(model, 2), questions_of(model, (3, 2))
    endless = [row for rows in greedy(model, canvases, questions, LONGEST) for row in rows]
    end_with(model, Counter(t for row in endless for t in set(row[1:])).most_common(1)[0][0])
    answers = greedy_answers(model, canvases, questions, LONGEST)
    ended = 0
    for canvas, asked, row in zip(canvases, questions, answers, strict=True):
        for question, said in zip(asked, row, strict=True):
            ids = torch.tensor([model.dialog.prefix_ids + question])
            stock = model.llava.generate(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                pixel_values=model.normalise(canvas[None]),
                max_new_tokens=LONGEST,
                do_sample=False,
                return_dict_in_generate=True,
                output_logits=True,
            )
            chosen = stock.sequences[0, ids.shape[1] :]
            shares = [logits[0].softmax(-1)[token] for logits, token in zip(stock.logits, chosen, strict=True)]
            assert said.probabilities == pytest.approx(torch.stack(shares).tolist(), abs=1e-5)
            ended += len(said.probabilities) > len(said.tokens)
    assert 0 < ended < 5


@pytest.mark.parametrize("longest", [1, 2])
def test_answers_are_cut_at_the_longest(model, longest):
    canvases, questions = pictures(model, 1), questions_of(model, (3,))
    end_with(model, -1)
    answers = greedy(model, canvases, questions, longest)
    assert answers == [[stock(model, canvases[0], q, longest) for q in questions[0]]]
    assert [len(row) for row in answers[0]] == [longest] * 3


def test_the_order_of_questions_and_company_change_nothing(model):
    canvases, questions = pictures(model, 2), questions_of(model, (3, 2))
    answers = greedy(model, canvases, questions, LONGEST)
    turned = greedy(model, canvases.flip(0), [q[::-1] for q in questions[::-1]], LONGEST)
    assert [rows[::-1] for rows in turned[::-1]] == answers
    assert greedy(model, canvases[1:], [questions[1][:1]], LONGEST) == [answers[1][:1]]


def test_an_answer_may_be_empty_and_an_image_without_questions(model):
    canvases, questions = pictures(model, 3), questions_of(model, (2, 0, 1))
    first = greedy(model, canvases, questions, 1)[0][0][0]
    end_with(model, first)
    answers = greedy(model, canvases, questions, LONGEST)
    assert [len(rows) for rows in answers] == [2, 0, 1] and answers[0][0] == []
    assert answers[2] == [stock(model, canvases[2], questions[2][0])]
    assert greedy(model, canvases, [[], [], []], LONGEST) == [[], [], []]


def test_every_image_is_encoded_once(model):
    seen = []
    tower = model.llava.model.vision_tower
    handle = tower.get_submodule("embeddings").register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    greedy(model, pictures(model, 3), questions_of(model, (5, 2, 4)), 3)
    handle.remove()
    assert seen == [3]


def test_no_answer_depends_on_what_else_is_asked(model, monkeypatch):
    """Every word has a twin that is a rounding error less likely: which of the two wins must not hang on the batch."""
    head = model.llava.lm_head.forward
    noise = torch.Generator()

    def twins(hidden):
        logits = head(hidden)
        logits[:, 1::2] = logits[:, ::2][:, : logits[:, 1::2].shape[1]]
        noise.manual_seed(len(logits))  # rounding as kernels do it: another one for each batch size
        return logits + 1e-6 * torch.rand(logits.shape, generator=noise)

    monkeypatch.setattr(model.llava.lm_head, "forward", twins)
    canvases, questions = pictures(model, 3), questions_of(model, (4, 1, 5))
    together = greedy(model, canvases, questions, LONGEST)
    alone = [
        [greedy(model, canvas[None], [[question]], LONGEST)[0][0] for question in asked]
        for canvas, asked in zip(canvases, questions, strict=True)
    ]
    assert together == alone
    image_by_image = [greedy(model, c[None], [q], LONGEST)[0] for c, q in zip(canvases, questions, strict=True)]
    assert image_by_image == alone
    assert any(word % 2 for rows in alone for row in rows for word in row)  # twins do win


@pytest.mark.parametrize(("rows", "mask"), [(1, 1 << 26), (3, 1 << 26), (256, 4_000), (256, 1)])
def test_questions_in_parts_get_the_answers_they_get_together(model, monkeypatch, rows, mask):
    """Of one picture and of several, by number and by length; every picture is prefilled once, but for ties."""
    canvases, questions = pictures(model, 2), questions_of(model, (7, 4))
    together = greedy(model, canvases, questions, LONGEST)
    monkeypatch.setattr(generate, "_MASK", mask)
    monkeypatch.setattr(generate, "_near_tie", lambda logits, largest: torch.zeros(len(logits), dtype=torch.bool))
    prefill, counts = generate._prefill, []
    monkeypatch.setattr(
        generate, "_prefill", lambda m, pixels, *rest: counts.append(len(pixels)) or prefill(m, pixels, *rest)
    )
    assert greedy(model, canvases, questions, LONGEST, rows) == together and counts == [2]


def test_parts_are_bounded_by_number_and_by_mask():
    short, long = [0] * 10, [0] * 4000
    assert list(generate._parts([short] * 600, 100, 256)) == [range(256), range(256, 512), range(512, 600)]
    # 4000 x 4100 entries a row: four rows fit into the mask, with short ones among them or without.
    parts = list(generate._parts([long] * 5 + [short] * 3, 100, 256))
    assert parts == [range(4), range(4, 8)]
    assert list(generate._parts([[0] * 9000, short], 100, 256)) == [range(1), range(1, 2)]
