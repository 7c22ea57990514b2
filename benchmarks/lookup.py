"""Can a language model look up, by its box, what a picture holds? Asked with the picture written out in words.

    python benchmarks/lookup.py DIR [--codecs int1000 decimal] [--objects 2 4] [--images 40]

Stage 1 keeps the language model frozen, so the encoder can only say things that this model knows how to look up. Here
it gets the best that an encoder could say: in place of the picture a line for each region, its box in the codec and its
text, and then the paper's question. The answer is right when, of the texts of the picture's regions (Bbox2Caption) or
of their boxes (Caption2Bbox), the likeliest is that of the region that is asked for; chance is one in their number.

A model near chance has no link between the digits of a box and a place in its context. Stage 1 must then make that link
out of the features alone, which takes far more pictures than it takes with a model that looks up readily.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.functional import cross_entropy
from transformers import DynamicCache

from granvit.bootstrap import ratios
from granvit.coordinates import Codec, get_codec
from granvit.corpus.synthetic.synthesize import LazySynthetic
from granvit.model.assemble import assemble
from granvit.model.region_model import RegionModel
from granvit.model.settings import Settings
from granvit.nano.models import nano_encoder
from granvit.questions import Exchange, box_exchange, caption_exchange
from granvit.regions import RegionImage

# Pictures that are drawn to have as many regions as asked are looked for among so many times more.
_DRAWN = 20


def written(record: RegionImage, codec: Codec) -> tuple[list[list[float]], list[str], str]:
    """The regions' relative boxes (x1, y1, x2, y2), their texts, and both as lines."""
    sides = np.tile([record.width, record.height], 2)
    boxes = [(np.asarray(region.box) / sides).tolist() for region in record.regions]
    texts = [region.text for region in record.regions]
    return boxes, texts, "".join(f"{codec.encode(box)}: {text}\n" for box, text in zip(boxes, texts, strict=True))


@torch.no_grad()
def answer_losses(model: RegionModel, context: str, exchanges: Sequence[Exchange]) -> NDArray[np.float64]:
    """Nats per answer token of each exchange (N,), every one asked right behind the context."""
    dialog, llava = model.dialog, model.llava
    prefix = dialog.prefix(0) + dialog.plain.encode([dialog.plain.places(context)])[0]
    branches = dialog.branches(exchanges)
    cache = DynamicCache(config=llava.config.text_config)
    llava.model.language_model(input_ids=torch.tensor([prefix]), past_key_values=cache)
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
    """For each of the record's regions (N,) the one whose text, or box, is the likeliest answer."""
    boxes, texts, context = written(record, codec)
    exchange = box_exchange if locate else caption_exchange
    right = [exchange(box, text, codec) for box, text in zip(boxes, texts, strict=True)]
    every = [replace(asked, answer=answered.answer) for asked in right for answered in right]
    return answer_losses(model, context, every).reshape(len(right), len(right)).argmin(axis=1)


def pictures(count: int, objects: int) -> list[RegionImage]:
    """Scenes of the embedded corpus that show as many objects, all of them called otherwise."""
    scenes = LazySynthetic(count * _DRAWN, 23, 160, 0.0, (objects, objects))
    fit = (scene for scene in (scenes[i] for i in range(len(scenes))) if len(scene.regions) == objects)
    found = [scene for scene in fit if len({region.text for region in scene.regions}) == objects]
    return found[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("language", help="a language model: a folder, a hub name or a GGUF file")
    parser.add_argument("--codecs", nargs="+", default=["int1000", "decimal"])
    parser.add_argument("--objects", type=int, nargs="+", default=[2, 4], help="regions of a picture")
    parser.add_argument("--images", type=int, default=40)
    options = parser.parse_args()
    print(f"{'codec':10}{'regions':>8}{'chance':>9}  {'Bbox2Caption':24}{'Caption2Bbox':24}")
    for name in options.codecs:
        codec = get_codec(name)
        model = assemble(nano_encoder(), options.language, Settings(name))
        for objects in options.objects:
            columns = []
            for locate in (False, True):
                hits = []
                for record in pictures(options.images, objects):
                    hits.append([float((chosen(model, record, codec, locate) == np.arange(objects)).sum())])
                (found,) = ratios(hits, [[objects]] * len(hits))
                assert found is not None
                columns.append(f"{found.value:.1%} [{found.low:.1%}, {found.high:.1%}]")
            print(f"{name:10}{objects:>8}{1 / objects:>9.1%}  {columns[0]:24}{columns[1]:24}", flush=True)


if __name__ == "__main__":
    main()
