import io

import numpy as np
import pytest
from PIL import Image

from granvit.corpus.check import verify
from granvit.corpus.synthetic.rendered_text import is_rendered_text, render_text
from granvit.corpus.synthetic.synthesize import LazySynthetic, make, synthesize

SIZE = 160


def test_print_is_the_same_for_the_same_arguments():
    assert render_text(3, 5, SIZE) == render_text(3, 5, SIZE)
    assert len({render_text(seed, index, SIZE).image for seed in (0, 1) for index in (0, 1)}) == 4


def test_every_region_is_a_letter_of_a_word_in_its_place():
    letters = set()
    for index in range(40):
        record = render_text(0, index, SIZE)
        assert Image.open(io.BytesIO(record.image)).size == (SIZE, SIZE) == (record.width, record.height)
        for region in record.regions:
            x1, y1, x2, y2 = region.box
            assert 0 <= x1 < x2 <= SIZE and 0 <= y1 < y2 <= SIZE
            assert len(region.text) == 1 and region.text.strip() and region.kind == "text"
            letters.add(region.text)
    assert letters >= set("ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789aeiou.,:/-")


@pytest.mark.parametrize("index", range(8))
def test_ink_lies_in_the_boxes_of_letters(index, monkeypatch):
    monkeypatch.setattr("granvit.corpus.synthetic.rendered_text._worn", lambda picture, rng: picture)
    record = render_text(1, index, SIZE)
    grey = np.asarray(Image.open(io.BytesIO(record.image)).convert("L"), float)
    paper = np.median(grey)
    inked = grey < paper - 0.5 * (paper - grey.min())
    boxed = np.zeros_like(inked)
    for region in record.regions:
        x1, y1, x2, y2 = region.box
        boxed[max(0, int(y1) - 1) : int(y2) + 2, max(0, int(x1) - 1) : int(x2) + 2] = True
        assert inked[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))].any(), region
    # Letters cut by more than half at the picture's edge have ink and no box.
    assert inked[boxed].sum() > 0.85 * inked.sum() > 0


def test_a_share_of_the_embedded_corpus_is_print(tmp_path):
    made = synthesize(tmp_path / "it", 20, 4, 64, documents=0.2, prints=0.5, workers=1, progress=False)
    sources = [record.source for record in made]
    assert [source == "synthetic-print" for source in sources] == [is_rendered_text(4, i, 0.5) for i in range(20)]
    assert 4 < sources.count("synthetic-print") < 16 and len(set(sources)) > 2 and verify(tmp_path / "it") == []
    assert made[3].image == make(3, 4, 64, 0.2, prints=0.5).image
    lazy = LazySynthetic(20, 4, 64, 0.2, prints=0.5)
    for i, record in enumerate(made):
        assert lazy[i].image is None and [r.text for r in lazy[i].regions] == [r.text for r in record.regions]
        boxes, stored = ([r.box for r in one.regions] for one in (lazy[i], record))
        np.testing.assert_allclose(boxes, stored, atol=1e-3)


def test_without_print_the_embedded_corpus_is_as_it_was():
    assert make(3, 5, 64, 0.5, prints=0.0) == make(3, 5, 64, 0.5)
