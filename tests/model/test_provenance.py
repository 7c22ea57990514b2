"""What a checkpoint learned from: kept with it, handed on, and believed only where all of it is known."""

import json
from dataclasses import replace

import pytest
from helpers.tiny_model import make_model
from helpers.tiny_recipe import save_parts, tiny_recipe

from granvit.corpus.derive import training_part
from granvit.corpus.store import Corpus, CorpusWriter
from granvit.corpus.synthetic.scenes import SOURCES
from granvit.corpus.synthetic.synthesize import LazySynthetic, make, synthesize
from granvit.errors import CheckpointError
from granvit.model.provenance import drawn_alone, joined, read_sources
from granvit.model.region_model import RegionModel
from granvit.train.build import build_model, learned_from
from granvit.train.run import run_recipe


@pytest.fixture(scope="module")
def corpora(tmp_path_factory):
    """Drawn pictures, and the same ones under the name of a photographer."""
    folder = tmp_path_factory.mktemp("corpora")
    drawn = synthesize(folder / "drawn", 8, 1, 64, 0.4, workers=1, progress=False)
    with CorpusWriter(folder / "photos") as writer:
        for i in range(len(drawn)):
            writer.write(replace(drawn[i], source="photos"))
    return drawn, Corpus(folder / "photos")


def test_the_sources_of_drawn_records_are_those_that_are_named():
    records = [
        make(i, 0, 64, documents, prints=prints) for i in range(12) for documents, prints in ((1, 0), (0, 0), (0, 1))
    ]
    assert {record.source for record in records} == SOURCES


def test_drawn_alone_needs_pictures_that_are_all_known_to_be_drawn():
    assert drawn_alone(frozenset({"synthetic-scene"})) and drawn_alone(SOURCES)
    for sources in (None, frozenset(), frozenset({"photos"}), SOURCES | {"photos"}, frozenset({""})):
        assert not drawn_alone(sources)


def test_what_is_not_known_stays_so():
    a, b = frozenset({"a"}), frozenset({"b"})
    assert joined(a, b) == {"a", "b"} and joined() == frozenset() and joined(a, None) is None


def test_a_checkpoint_keeps_its_sources_and_an_old_one_has_none(tmp_path):
    model = make_model()
    model.sources = frozenset({"photos", "synthetic-scene"})
    model.save(tmp_path)
    assert RegionModel.load(tmp_path).sources == model.sources
    (tmp_path / "provenance.json").unlink()
    old = RegionModel.load(tmp_path)
    assert old.sources is None
    old.save(tmp_path / "again")
    assert RegionModel.load(tmp_path / "again").sources is None


@pytest.mark.parametrize("content", ["[1]", "{", '{"sources": "photos"}', '{"sources": [1]}', "{}"])
def test_a_damaged_file_is_named(tmp_path, content):
    (tmp_path / "provenance.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"provenance\.json"):
        read_sources(tmp_path)


def test_what_a_run_learns_from(corpora):
    drawn, photos = corpora
    assert learned_from([(drawn, 1.0)]) == {r.source for r in drawn.records()} <= SOURCES
    assert learned_from([(training_part(drawn), 1.0), (photos, 0.5)]) == learned_from([(drawn, 1.0)]) | {"photos"}
    assert learned_from([(LazySynthetic(8, 0, 64, 0.5), 1.0)]) == SOURCES
    assert learned_from([([make(0, 0, 64, 0.0)], 1.0)]) is None


def test_training_adds_to_what_a_checkpoint_knows(corpora, tmp_path):
    drawn, photos = corpora
    recipe = tiny_recipe(save_parts(tmp_path / "parts"), steps=1)
    recipe.stages = recipe.stages[1:]
    run_recipe(recipe, tmp_path / "first", [(drawn, 1.0)], device="cpu")
    first = RegionModel.load(tmp_path / "first" / "checkpoint").sources
    assert drawn_alone(first)
    run_recipe(recipe, tmp_path / "second", [(photos, 1.0)], init=tmp_path / "first" / "checkpoint", device="cpu")
    assert RegionModel.load(tmp_path / "second" / "checkpoint").sources == first | {"photos"}
    # A transfer takes the encoder of a checkpoint, and with it what that has seen.
    recipe.encoder = str(tmp_path / "second" / "checkpoint")
    assert build_model(recipe).sources == first | {"photos"}
    (tmp_path / "second" / "checkpoint" / "provenance.json").unlink()
    assert build_model(recipe).sources is None
    run_recipe(recipe, tmp_path / "third", [(drawn, 1.0)], init=tmp_path / "second" / "checkpoint", device="cpu")
    assert RegionModel.load(tmp_path / "third" / "checkpoint").sources is None
    written = json.loads((tmp_path / "first" / "checkpoint" / "provenance.json").read_text())
    assert written == {"sources": sorted(first)}
