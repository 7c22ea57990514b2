"""Can a language model look up, by its box, what a picture holds? Asked with the picture written out in words.

    python benchmarks/lookup.py DIR [--codecs int1000 decimal] [--objects 2 4] [--images 40]
    python benchmarks/lookup.py DIR --states [--codecs int1000 decimal] [--questions 1200]
    python benchmarks/lookup.py DIR --copies [--questions 200]
    python benchmarks/lookup.py RUN --pictures [--objects 2 4] [--images 40]

Stage 1 keeps the language model frozen, so the encoder can only say things that this model knows how to look up. Here
it gets the best that an encoder could say: in place of the picture a line for each region, its box in the codec and its
text, and then the paper's question. The answer is right when, of the texts of the picture's regions (Bbox2Caption) or
of their boxes (Caption2Bbox), the likeliest is that of the region that is asked for; chance is one in their number.

A model near chance has no link between the digits of a box and a place in its context. Stage 1 must then make that link
out of the features alone, which takes far more pictures than it takes with a model that looks up readily.

`--states` asks for the half of the link that needs no picture: does the model know, where it begins to answer, which
box it was asked about? Of a third of the questions the box is predicted from the state there, by a ridge regression on
the others; printed is the explained variance of each side, layer by layer. Where it is high, an encoder has something
to match its patches to.

`--copies` asks whether the model treats location tokens as words at all: it reads eight pairs of a word and a token,
then one of the words; the answer is right when of the eight tokens the likeliest is the one that stood behind that word
(an induction head's work; chance is an eighth). Asked with words in the tokens' place, with the location tokens as they
start (`granvit.model.locations`), and with embeddings drawn as words lie: their mean, and what they differ by in random
mixtures.

`--pictures` asks a trained model, a run or a checkpoint, in the same way, with the picture itself and in its own codec:
how often the right one of the picture's own texts is the likeliest tells reading the box from reading the picture.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from granvit.bootstrap import ratios
from granvit.coordinates import Codec, get_codec
from granvit.corpus.synthetic.synthesize import LazySynthetic, make
from granvit.images import decode
from granvit.loading.run_folder import checkpoint_of
from granvit.model.assemble import assemble
from granvit.model.locations import rows_of
from granvit.model.region_model import RegionModel
from granvit.model.settings import Settings
from granvit.nano.models import nano_encoder
from granvit.questions import Exchange, box_exchange, caption_exchange
from granvit.regions import RegionImage

# Pictures that are drawn to have as many regions as asked are looked for among so many times more.
_DRAWN = 20
_SEED = 23
# Of --copies: so many words are read with a token each, and the tokens are those of this codec.
_PAIRS = 8
_CELLS = "cell:24"


def written(record: RegionImage, codec: Codec) -> tuple[list[list[float]], list[str], str]:
    """The regions' relative boxes (x1, y1, x2, y2), their texts, and both as lines."""
    sides = np.tile([record.width, record.height], 2)
    boxes = [(np.asarray(region.box) / sides).tolist() for region in record.regions]
    texts = [region.text for region in record.regions]
    return boxes, texts, "".join(f"{codec.encode(box)}: {text}\n" for box, text in zip(boxes, texts, strict=True))


@torch.no_grad()
def in_words(model: RegionModel, context: str) -> Tensor:
    """The embeddings (1, T, hidden) of what stands before a question, a text in the picture's place."""
    ids = model.dialog.prefix(0) + model.dialog.plain.encode([model.dialog.plain.places(context)])[0]
    embeds: Tensor = model.llava.get_input_embeddings()(torch.tensor([ids]))
    return embeds


@torch.no_grad()
def in_pixels(model: RegionModel, picture: bytes) -> Tensor:
    """The embeddings (1, T, hidden) of what stands before a question about a picture."""
    ids = torch.tensor([model.dialog.prefix_ids])
    embeds: Tensor = model.llava.get_input_embeddings()(ids)
    shown = model.embed(model.show(decode(picture)))
    return embeds.masked_scatter((ids == model.dialog.image_token)[..., None], shown)


@torch.no_grad()
def answer_losses(model: RegionModel, prefix: Tensor, exchanges: Sequence[Exchange]) -> NDArray[np.float64]:
    """Nats per answer token of each exchange (N,), every one asked right behind the prefix (1, T, hidden)."""
    dialog, llava = model.dialog, model.llava
    branches = dialog.branches(exchanges)
    cache = DynamicCache(config=llava.config.text_config)
    llava.model.language_model(inputs_embeds=prefix, past_key_values=cache)
    cache.batch_repeat_interleave(len(branches))
    longest = max(len(branch.ids) for branch in branches)
    ids = torch.full((len(branches), longest), dialog.pad_token)
    targets = torch.full((len(branches), longest), -100)
    for row, branch in enumerate(branches):
        start, end = branch.answer_start, len(branch.ids)
        ids[row, :end] = torch.tensor(branch.ids)
        targets[row, start - 1 : end - 1] = torch.tensor(branch.ids[start:])
    # Padding stands behind all that is scored, where causal attention does not look.
    hidden = llava.model.language_model(input_ids=ids, past_key_values=cache).last_hidden_state
    losses = cross_entropy(llava.lm_head(hidden).transpose(1, 2), targets, reduction="none")
    return np.asarray((losses.sum(1) / (targets >= 0).sum(1)).tolist())


def chosen(model: RegionModel, record: RegionImage, codec: Codec, locate: bool) -> NDArray[np.int64]:
    """For each of the record's regions (N,) the one whose text, or box, is the likeliest answer.

    The picture is shown where the record has one, and is else written out.
    """
    boxes, texts, context = written(record, codec)
    prefix = in_words(model, context) if record.image is None else in_pixels(model, record.image)
    exchange = box_exchange if locate else caption_exchange
    right = [exchange(box, text, codec) for box, text in zip(boxes, texts, strict=True)]
    every = [replace(asked, answer=answered.answer) for asked in right for answered in right]
    return answer_losses(model, prefix, every).reshape(len(right), len(right)).argmin(axis=1)


def pictures(count: int, objects: int, side: int, drawn: bool) -> list[RegionImage]:
    """Scenes of the embedded corpus that show as many objects, all of them called otherwise; `side` is in pixels."""
    scenes = LazySynthetic(count * _DRAWN, _SEED, side, 0.0, (objects, objects))
    fit = (i for i in range(len(scenes)) if len({region.text for region in scenes[i].regions}) == objects)
    found = [i for i in fit if len(scenes[i].regions) == objects][:count]
    return [make(i, _SEED, side, 0.0, (objects, objects)) if drawn else scenes[i] for i in found]


@torch.no_grad()
def answer_states(model: RegionModel, boxes: NDArray[np.float64], codec: Codec) -> Tensor:
    """The states (N, layers + 1, hidden) that the first answer token is predicted from, of N relative boxes (N, 4)."""
    dialog, language = model.dialog, model.llava.model.language_model
    branches = dialog.branches([caption_exchange(box, "x", codec) for box in boxes])
    states = []
    for branch in branches:
        ids = torch.tensor([dialog.prefix(0) + branch.ids[: branch.answer_start]])
        layers = language(input_ids=ids, output_hidden_states=True).hidden_states
        states.append(torch.stack([layer[0, -1] for layer in layers]))
    return torch.stack(states).float()


def explained(states: Tensor, wanted: Tensor, ridge: float = 300.0) -> NDArray[np.float64]:
    """The explained variance (D,) of `wanted` (N, D) by linear maps of states (N, hidden), on the last third of both.

    `ridge` is the weight of the penalty where states and targets have unit variance.
    """
    learned = 2 * len(states) // 3
    states = (states - states[:learned].mean(0)) / (states[:learned].std(0) + 1e-6)
    wanted = (wanted - wanted[:learned].mean(0)) / wanted[:learned].std(0)
    known = states[:learned]
    weights = torch.linalg.solve(known.T @ known + ridge * torch.eye(known.shape[1]), known.T @ wanted[:learned])
    left = (states[learned:] @ weights - wanted[learned:]).square().mean(0)
    return np.asarray((1 - left / wanted[learned:].var(0)).tolist())


def print_states(language: str, codecs: Sequence[str], questions: int) -> None:
    rng = np.random.default_rng(0)
    sides = rng.uniform(0.1, 0.4, (questions, 2))
    corners = rng.uniform(0, 1 - sides)
    boxes = np.concatenate([corners, corners + sides], axis=1)
    print(f"{'codec':10}{'layer':>6}{'x1':>8}{'y1':>8}{'x2':>8}{'y2':>8}")
    for name in codecs:
        states = answer_states(assemble(nano_encoder(), language, Settings(name)), boxes, get_codec(name))
        for layer in range(0, states.shape[1], 3):
            found = explained(states[:, layer], torch.from_numpy(boxes).float())
            print(f"{name:10}{layer:>6}" + "".join(f"{max(0.0, value):>8.2f}" for value in found), flush=True)


@torch.no_grad()
def copied(model: RegionModel, tokens: Tensor, questions: int) -> NDArray[np.float64]:
    """Whether, behind a word that is read again, that token is the likeliest of all (N, hidden) read that followed it
    before: (questions, 1), 0 or 1."""
    rng = np.random.default_rng(_SEED)
    embeddings, known = own_embeddings(model), np.array(whole_words(model))
    first = embeddings[model.dialog.prefix(0)[:1]]
    hits = []
    for _ in range(questions):
        words = embeddings[rng.choice(known, _PAIRS, replace=False)]
        behind = tokens[rng.choice(len(tokens), _PAIRS, replace=False)]
        asked = int(rng.integers(_PAIRS))
        read = torch.cat([first, torch.stack([words, behind], 1).flatten(0, 1), words[asked][None]])
        state = model.llava.model.language_model(inputs_embeds=read[None]).last_hidden_state[0, -1]
        hits.append([float((behind @ state).argmax() == asked)])
    return np.array(hits)


def own_embeddings(model: RegionModel) -> Tensor:
    """Those that the language model had before its codec's tokens came: (V, hidden)."""
    embeddings: Tensor = model.llava.get_input_embeddings().weight.detach()
    return embeddings[: rows_of(model.processor.tokenizer, model.codec).start]


def whole_words(model: RegionModel) -> list[int]:
    """The tokens that are a space and letters."""
    texts = (model.processor.tokenizer.decode([i]) for i in range(len(own_embeddings(model))))
    return [i for i, text in enumerate(texts) if text[:1] == " " and text[1:].isalpha()]


def as_words(words: Tensor, count: int) -> Tensor:
    """Embeddings (count, hidden) drawn around the mean of words (V, hidden), in the directions that these differ by."""
    differences = words - words.mean(0)
    drawn = torch.randn(count, len(words), generator=torch.Generator().manual_seed(_SEED)) @ differences
    return words.mean(0) + drawn * (differences.std() / drawn.std())


def print_copies(language: str, questions: int) -> None:
    model = assemble(nano_encoder(), language, Settings(_CELLS))
    rows = rows_of(model.processor.tokenizer, model.codec)
    embeddings: Tensor = model.llava.get_input_embeddings().weight.detach()
    words = embeddings[whole_words(model)]
    print(f"{'behind each word':32}right of {_PAIRS}")
    started, drawn = embeddings[rows.start : rows.stop], as_words(words, len(rows))
    for name, tokens in {"a word": words, "a location token": started, "drawn as words lie": drawn}.items():
        hits = copied(model, tokens, questions)
        (found,) = ratios(hits, np.ones_like(hits))
        assert found is not None
        print(f"{name:32}{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("language", help="a language model: a folder, a hub name or a GGUF file; a run for --pictures")
    parser.add_argument("--codecs", nargs="+", default=["int1000", "decimal"])
    parser.add_argument("--objects", type=int, nargs="+", default=[2, 4], help="regions of a picture")
    parser.add_argument("--images", type=int, default=40)
    parser.add_argument("--states", action="store_true", help="what its states say of the box, in place of the above")
    parser.add_argument("--pictures", action="store_true", help="asks a trained model about the pictures themselves")
    parser.add_argument("--copies", action="store_true", help="whether it copies location tokens as it does words")
    parser.add_argument("--questions", type=int, help="of --states (1200) and --copies (200)")
    options = parser.parse_args()
    if options.states:
        return print_states(options.language, options.codecs, options.questions or 1200)
    if options.copies:
        return print_copies(options.language, options.questions or 200)
    print(f"{'codec':10}{'regions':>8}{'chance':>9}  {'Bbox2Caption':24}{'Caption2Bbox':24}")
    if options.pictures:
        models = [RegionModel.load(checkpoint_of(options.language))]
    else:
        models = [assemble(nano_encoder(), options.language, Settings(name)) for name in options.codecs]
    for model in models:
        codec, name = model.codec, model.settings.codec
        for objects in options.objects:
            columns = []
            for locate in (False, True):
                hits = []
                for record in pictures(options.images, objects, model.canvas, options.pictures):
                    hits.append([float((chosen(model, record, codec, locate) == np.arange(objects)).sum())])
                (found,) = ratios(hits, [[objects]] * len(hits))
                assert found is not None
                columns.append(f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]")
            print(f"{name:10}{objects:>8}{1 / objects:>9.1%}  {columns[0]:24}{columns[1]:24}", flush=True)


if __name__ == "__main__":
    main()
