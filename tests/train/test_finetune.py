"""Fine-tuning: what a record's conversations become, a run from a checkpoint, and the loss it is held to."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_model import make_model
from helpers.tiny_recipe import SOURCES

from granvit.cli.app import main
from granvit.cli.evaluate import Loss
from granvit.corpus.store import Corpus, CorpusWriter, Subset
from granvit.corpus.synthetic.synthesize import make
from granvit.errors import GranvitError
from granvit.evaluate.losses import held_out_losses
from granvit.evaluate.region_tasks import region_images, region_tasks
from granvit.model.forward import answer_logits, project
from granvit.model.packing import IGNORE
from granvit.model.region_model import RegionModel
from granvit.questions import SHORT_ANSWER, TASKS, global_exchange
from granvit.regions import RegionImage, Turn
from granvit.train.build import build_model, counted, counted_words
from granvit.train.config import CachingLoop, ConversationSample, LoopConfig, SampleConfig
from granvit.train.debug.first_batch import draw_batch
from granvit.train.feed import CUT_ANSWER, CUT_CONVERSATION, LEFT_OUT, Feed, Reject, lost
from granvit.train.prepare import Prepare
from granvit.train.recipes.base import FROM_INIT, Recipe
from granvit.train.recipes.finetune import finetune
from granvit.train.recipes.saved import read_stage
from granvit.train.run import run_recipe
from granvit.train.stages.config import AdaptConfig, FinetuneConfig

EVERY = dict.fromkeys(TASKS, 1.0)


def talk(*texts, system=None):
    turns = [Turn(("user", "assistant")[i % 2], text) for i, text in enumerate(texts)]
    return turns if system is None else [Turn("system", system), *turns]


def alone(name="alone", *said):
    said = said or (talk("Hi", "tea"), talk("Ho", "red", "?", "star"))
    return RegionImage(name, None, 0, 0, [], conversations=list(said))


def seen(number=0, *said):
    record = make(number, seed=1, size=64, documents=0.0)
    return replace(record, conversations=list(said) or [talk("What?", "a star")])


def prepared(model, record, **settings):
    return Prepare(model, ConversationSample(EVERY, **settings))(record, np.random.default_rng(0))


def test_conversations_stand_beside_the_questions():
    model = make_model()
    record = seen(0, talk("What?", "a star"), talk("And?", "tea", "So?", "two"))
    sample = prepared(model, record)
    plain = Prepare(model, SampleConfig(EVERY))(record, np.random.default_rng(0))
    assert sample.branches[: len(plain.branches)] == plain.branches  # what is drawn for these is what it was
    assert [branch.task for branch in sample.branches[len(plain.branches) :]] == ["conversation"] * 2
    assert sample.branches[-2:] == model.dialog.conversations(record.conversations, pictured=True)


def test_a_record_without_a_picture_is_its_conversations():
    model = make_model()
    sample = prepared(model, alone())
    assert sample.text_only and sample.pixels is None and len(sample.branches) == 2
    assert sample.branches == model.dialog.conversations(alone().conversations, pictured=False)
    with pytest.raises(Reject, match="this stage learns from images"):
        Prepare(model, SampleConfig(EVERY))(alone(), np.random.default_rng(0))
    with pytest.raises(Reject, match="no conversation was drawn"):
        prepared(model, alone(), conversations=0.0)


def test_what_a_row_or_the_limit_has_no_room_for_is_counted():
    model = make_model()
    late = talk("long " * 40, "tea")
    sample = prepared(model, alone("a", talk("Hi", "tea"), late), max_conversation=40)
    assert (len(sample.branches), sample.left_out) == (1, 1)
    with pytest.raises(Reject, match="first answer begins behind sample.max_conversation tokens"):
        prepared(model, alone("a", late), max_conversation=40)
    many = alone("a", *[talk(f"{n}?", "tea") for n in range(9)])
    assert len(prepared(model, many, max_conversations=4).branches) == 4
    row = sum(len(b.ids) for b in prepared(model, many).branches)
    fitted = prepared(model, many, max_tokens=row - 1) if row - 1 > len(model.dialog.prefix_ids) else None
    assert fitted is None or (len(fitted.branches), fitted.left_out) == (8, 1)


def test_a_picture_that_is_spoken_of_by_its_sides_is_not_mirrored():
    model = make_model()
    record = replace(seen(0, talk("Where?", "On the left.")), regions=[], caption=None)
    assert np.array_equal(prepared(model, record, mirror=1.0).pixels, prepared(model, record).pixels)
    other = replace(record, conversations=[talk("Where?", "There.")])
    assert not np.array_equal(prepared(model, other, mirror=1.0).pixels, prepared(model, other).pixels)


def test_a_window_shows_a_part_of_which_nobody_spoke():
    model = make_model()
    sample = prepared(model, seen(), windows=1.0, window_side=(0.3, 0.4))
    assert "conversation" not in [branch.task for branch in sample.branches]


def test_the_feed_mixes_them_and_the_first_batch_is_drawn():
    model = make_model()
    records = [seen(0), alone("a"), seen(1), alone("b"), alone("c", talk("long " * 400, "tea"))]
    prepare = Prepare(model, ConversationSample(EVERY, max_conversation=60, max_tokens=600))
    with Feed([(records, 1.0)], prepare, prepare.collate, batch_size=4, seed=0, prefetch=0) as feed:
        batch = next(feed)
        next(feed)
        assert sorted(batch.ids) == sorted({record.id for record in records[:4]}) and len(batch.pixels) == 2
        assert len(batch.input_ids) < 4
        assert list(feed.rejected.values()) != [] and LEFT_OUT not in feed.rejected
    picture = draw_batch(model, batch)
    assert picture.width > 400 and picture.height > 400


def test_an_epoch_counts_what_a_stage_learns_from(tmp_path):
    """Stages 1 and 2 leave conversations without an image out: an epoch is of the images alone."""
    records = [seen(n) for n in range(6)] + [alone(f"a{n}") for n in range(10)]
    with CorpusWriter(tmp_path / "corpus", rows_per_shard=5) as writer:
        for record in records:
            writer.write(record)
    corpus = Corpus(tmp_path / "corpus")
    assert corpus.without_image() == set(range(6, 16))
    assert counted([(corpus, 1.0)]) == counted([(records, 1.0)]) == (6, 10)
    assert counted([(Subset(corpus, [0, 5, 6, 7, 15]), 1.0), (corpus, 1.0)]) == (8, 13)
    assert counted_words([(corpus, 1.0)]) == "6 to train on and 10 conversations without one"
    loop = LoopConfig(steps=0, batch_size=2, first_batch=False, trackers=())
    for stage, steps in (
        (AdaptConfig(SampleConfig(EVERY), CachingLoop(**vars(loop))), 3),
        (FinetuneConfig(ConversationSample(EVERY), loop), 8),
        (FinetuneConfig(ConversationSample(EVERY, conversations=0.0), loop, name="silent"), 3),
    ):
        assert stage.resolved(6, 1, text_only=10).loop.steps == steps
        make_model().save(tmp_path / "init")
        recipe = Recipe("tiny", FROM_INIT, FROM_INIT, make_model().settings, [stage])
        run_recipe(recipe, tmp_path / stage.folder, [(corpus, 1.0)], init=tmp_path / "init", device="cpu")
        rows = [json.loads(row) for row in (tmp_path / stage.folder / stage.folder / "history.jsonl").open()]
        assert rows[-1]["step"] == steps


def test_conversations_without_an_image_are_no_images_a_second():
    model = make_model()
    prepare = Prepare(model, ConversationSample(EVERY))
    batch = prepare.collate([prepare(record, np.random.default_rng(0)) for record in (seen(0), alone("a"), alone("b"))])
    assert (batch.counts["images"], len(batch.ids)) == (1, 3)


def test_ends_that_are_cut_are_counted(tmp_path):
    model = make_model()
    records = [seen(0, talk("What?", "a star " * 30)), seen(1, talk("What?", "tea"))]
    limits = {"max_answer": 4, "max_conversation": 40}
    whole, prepare = (Prepare(model, ConversationSample(EVERY, **said)) for said in ({"max_answer": 4096}, limits))
    samples = [prepare(record, np.random.default_rng(0)) for record in records]
    longer = [prepare_one(whole, record) for record in records]
    cut = Counter(
        CUT_CONVERSATION if long.task == "conversation" else CUT_ANSWER
        for sample, all_of in zip(samples, longer, strict=True)
        for short, long in zip(sample.branches, all_of.branches, strict=True)
        if len(short.ids) < len(long.ids)
    )
    assert cut[CUT_CONVERSATION] == 1 < cut[CUT_ANSWER]
    assert sum((Counter(lost(sample)) for sample in samples), Counter()) == cut
    assert not any(lost(sample) for sample in longer)
    with Feed([(records, 1.0)], prepare, prepare.collate, batch_size=2, seed=0) as feed:
        feed.quarantine = tmp_path / "quarantine.jsonl"
        next(feed)
        assert feed.rejected == cut
        assert not feed.quarantine.exists() or not feed.quarantine.read_text()  # they are trained on
        state = feed.state()
        next(feed)
    with Feed([(records, 1.0)], prepare, prepare.collate, batch_size=2, seed=0) as again:
        again.restore(state)
        assert again.rejected == cut
        next(again)
        assert again.rejected == feed.rejected == cut + cut
    _, left_out = held_out_losses(model, records, sample=ConversationSample(EVERY, **limits), progress=False)
    assert left_out == cut


def test_an_answer_that_just_fits_is_not_cut():
    """With the token that ends it."""
    dialog, exchange = make_model().dialog, global_exchange("a star")
    whole = dialog.branch(exchange)
    length = len(whole.ids) - whole.answer_start
    assert dialog.branch(exchange, length) == whole and not whole.cut
    short = dialog.branch(exchange, length - 1)
    assert short.cut and short.ids == whole.ids[:-1]


def prepare_one(prepare, record):
    return prepare(record, np.random.default_rng(0))


def parts(tmp_path):
    model = make_model()
    model.save(tmp_path / "init" / "checkpoint")
    records = [seen(n, talk("What?", f"star {n}"), talk("Hi", "tea", "Ho", "red")) for n in range(6)]
    with CorpusWriter(tmp_path / "corpus") as writer:
        for n, record in enumerate([*records, alone("a"), alone("b")]):
            writer.write(replace(record, split="val" if n in (5, 7) else "train"))
    return model


COMMAND = ["--stages.0.loop.steps", "2", "--stages.0.loop.batch-size", "2", "--stages.0.images-per-step", "4"]


@pytest.mark.parametrize("train_encoder", [False, True])
def test_a_run_from_a_checkpoint(tmp_path, train_encoder, monkeypatch, capsys):
    before = parts(tmp_path)
    monkeypatch.chdir(tmp_path)
    more = ["--stages.0.train-encoder"] if train_encoder else []
    rate = ["--stages.0.loop.lr", "1e-2", "--stages.0.loop.warmup-steps", "0"]
    args = ["train", "finetune", "--init", "init", "--corpus", "corpus", "--out", "run", *COMMAND, *more, *rate]
    with pytest.raises(SystemExit, match="0"):
        main(args)
    after = RegionModel.load(tmp_path / "run/checkpoint")
    assert after.settings == before.settings
    recipe = json.loads((tmp_path / "run/recipe.json").read_text())
    assert recipe["settings"]["codec"] == before.settings.codec and recipe["encoder"] == FROM_INIT
    moved = {}
    for part in ("vision_tower", "multi_modal_projector", "language_model"):
        one, other = (list(getattr(model.llava.model, part).parameters()) for model in (before, after))
        moved[part] = any(not torch.equal(p, q) for p, q in zip(one, other, strict=True))
    assert moved == {"vision_tower": train_encoder, "multi_modal_projector": True, "language_model": True}
    # The loss on what is held out, as the command tells it.
    assert Loss(tmp_path / "run", tmp_path / "corpus", out=tmp_path / "loss.json").run() == 0
    told = json.loads((tmp_path / "loss.json").read_text())["losses"]
    assert told["conversation"]["questions"] == 4 and told["all"]["tokens"] > told["conversation"]["tokens"]
    assert "conversation" in capsys.readouterr().out


def test_it_goes_on_from_a_model_and_from_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit):
        main(["train", "finetune"])
    assert "finetune goes on from a trained model" in capsys.readouterr().err
    assert not list(tmp_path.rglob("*.parquet"))  # no corpus is drawn for nothing
    with pytest.raises(GranvitError, match="finetune goes on from a trained model: .* with --init"):
        build_model(finetune())
    stage = finetune().stages[0]
    assert read_stage(json.loads(json.dumps(stage.facts())), "x") == stage
    assert (stage.images_per_step, stage.epochs, stage.loop.lr, stage.train_encoder) == (128, 1.0, 2e-5, False)


def test_batches_of_conversations_alone_train_too(tmp_path):
    recipe = finetune()
    stage = FinetuneConfig(
        ConversationSample(EVERY), LoopConfig(steps=2, batch_size=2, lr=1e-2, first_batch=True), train_encoder=True
    )
    make_model().save(tmp_path / "init")
    records = [alone("a"), alone("b")]
    model = run_recipe(
        replace(recipe, stages=[stage]), tmp_path / "run", [(records, 1.0)], init=tmp_path / "init", device="cpu"
    )
    assert all(torch.isfinite(p).all() for p in model.llava.parameters())


def test_the_held_out_loss_is_that_of_each_question_alone():
    model = make_model()
    model.llava.eval()
    records = [seen(0), alone("a"), *SOURCES[0][0][:2], seen(3, talk("A?", "b", "C?", "d"))]
    losses, left_out = held_out_losses(model, records, batch=3, progress=False)
    totals: dict[str, list[float]] = {}
    with torch.no_grad():
        for record in records:
            sample = prepared(model, record, max_regions=32, max_answer=256)
            for branch in sample.branches:
                batch = Prepare(model, ConversationSample(EVERY)).collate([replace(sample, branches=[branch])])
                embeds = torch.zeros(0, model.image_tokens, model.llava.config.text_config.hidden_size)
                if batch.pixels is not None:
                    embeds = project(model.llava, model.features(batch.pixels))
                logits, labels = answer_logits(model.llava, batch, embeds)
                found = F.cross_entropy(logits, labels, reduction="none").tolist()
                assert len(found) == int((batch.labels != IGNORE).sum())
                totals.setdefault(branch.task, []).extend(found)
                totals.setdefault("all", []).extend(found)
    assert left_out == {} and losses.keys() == totals.keys()
    for kind, expected in totals.items():
        assert losses[kind].tokens == len(expected)
        assert losses[kind].loss.value == pytest.approx(np.mean(expected), abs=1e-4)
    assert losses["conversation"].questions == 4
    assert losses["all"].loss.low is not None
    tiles = [replace(record, id=f"page@{n},0,48") for n, record in enumerate(records)]  # drawn together
    of_tiles, _ = held_out_losses(model, tiles, batch=3, progress=False)
    assert of_tiles["all"].loss == (pytest.approx(losses["all"].loss.value), None, None)
    with pytest.raises(GranvitError, match="nothing to evaluate: 1 x nothing to ask"):
        held_out_losses(model, [replace(seen(0), conversations=[], regions=[], caption=None)], progress=False)


def test_the_first_questions_of_conversations_are_asked():
    record = seen(0, talk("What?", "a star", "And?", "tea"), talk("Who?", "me", system="Be short."))
    [image] = region_images([record, alone()], region_tasks(["answer"]), 8)
    assert [(item.asked, item.truth) for item in image.items] == [("What?", ["a star"]), ("Be short.\n\nWho?", ["me"])]
    assert SHORT_ANSWER not in image.items[0].asked
