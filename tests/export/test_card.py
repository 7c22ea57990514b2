"""The model card: what it tells of recipe, data, scores and licence, and that damaged facts are named."""

import json
import re

import pytest
import yaml
from helpers.tiny_model import make_model
from safetensors.torch import load_file

from granvit.corpus.synthetic.scenes import SOURCES
from granvit.errors import CheckpointError, ExportError
from granvit.evaluate.scores_log import Scored, line_of
from granvit.export.facts import read_source
from granvit.export.licences import licence_of
from granvit.export.llava import export
from granvit.loading.run_folder import checkpoint_id

RECIPE = {
    "name": "tiny",
    "encoder": "/home/me/encoder",
    "language": "nobody/language",
    "seed": 3,
    "processes": 1,
    "stages": [
        {
            "kind": "stage1",
            "name": "",
            "loop": {"steps": 1200, "batch_size": 8, "accumulate": 4, "lr": 1e-5},
            "sample": {"questions": {"global": 0.2, "bbox2caption": 1.0}},
        }
    ],
}
DEMO = {
    "before": {"locate": {"acc50": 0.1, "parse_rate": 0.5, "count": 1234.0}},
    "baseline": {"locate": {"acc50": 0.04}},
    "stage1": {"locate": {"acc50": 0.2, "parse_rate": 0.9, "count": 1234.0}},
    "stage2": {"locate": {"acc50": 0.3333, "parse_rate": 0.95, "count": 1234.0}},
    "seconds": 12.0,
}
EVAL = {
    "facts": {"Model": "/home/me/run", "Limit": "100 images of each"},
    "scores": {**DEMO["stage2"], "refcoco-testA": {"acc50": 0.5, "count": 10}},
    "intervals": {"locate": {"acc50": [0.3, 0.4]}},
    "baseline": DEMO["baseline"],
}


def test_the_card_states_the_images_of_a_step_over_all_processes_and_every_weight(tmp_path):
    model = make_model("llama")  # whose head is a matrix of its own
    run = run_folder(tmp_path / "run", model)
    for processes, stated in ((2, "64"), (1, "32"), (None, "32 a process")):
        facts = {name: value for name, value in {**RECIPE, "processes": processes}.items() if value is not None}
        (run / "recipe.json").write_text(json.dumps(facts))
        card = (export(run, tmp_path / str(processes)).folder / "README.md").read_text()
        assert f"| stage1 | 1,200 | {stated} | 1e-05 |" in card
    weights = load_file(tmp_path / "2/model.safetensors")
    language = sum(w.numel() for n, w in weights.items() if n.startswith("language_model.")) / 1e6
    encoder = sum(w.numel() for n, w in weights.items() if n.startswith("vision_tower.")) / 1e6
    assert f"32 wide, {language:.1f} M parameters" in card and f"32 wide, {encoder:.1f} M parameters" in card
    layers = {n.split("layers.")[1].split(".")[0] for n in weights if "language_model.model.layers." in n}
    assert f"| Language model | llama, {len(layers)} layers," in card


def run_folder(folder, model):
    model.save(folder / "checkpoint")
    (folder / "recipe.json").write_text(json.dumps(RECIPE))
    (folder / "data.json").write_text(json.dumps([{"images": 5000, "weight": 0.5, "shards": ["ab" * 32] * 5}]))
    (folder / "metrics.json").write_text(json.dumps(DEMO))
    return folder


def test_the_card_tells_recipe_data_scores_and_licence(model, tmp_path):
    run = run_folder(tmp_path / "run", model)
    (tmp_path / "eval.json").write_text(json.dumps(EVAL))
    export(run, tmp_path / "a", licence="apache-2.0")
    export(run, tmp_path / "b", "encoder", metrics=tmp_path / "eval.json")
    card, other = ((tmp_path / name / "README.md").read_text() for name in "ab")
    assert card.startswith("---\nlicense: apache-2.0\nlibrary_name: transformers\npipeline_tag: image-text-to-text\n")
    assert "Recipe `tiny`: encoder `encoder`, language model `nobody/language`, seed 3." in card
    assert "| stage1 | 1,200 | 32 | 1e-05 | global, bbox2caption |" in card
    assert "| 5,000 | 0.5 | abababababab abababababab abababababab and 2 more |" in card
    assert "| find what a phrase describes | Acc@0.5 | 1,234 | 33.3% | 10.0% | 4.0% |" in card
    assert "| find what a phrase describes | answers that are a box | 1,234 | 95.0% | 50.0% | – |" in card
    assert "None is stated" not in card and "fall into 16 bins" in card
    assert "/home/me" not in card + other and "\n\n\n\n" not in card + other
    assert "| find what a phrase describes | Acc@0.5 | 1,234 | 33.3% (30.0% to 40.0%) | – | 4.0% |" in other
    assert "| refcoco-testA | Acc@0.5 | 10 | 50.0% | – | – |" in other
    assert "None is stated" in other and "\n\nLimit: 100 images of each.\n\n| Task" in other
    assert other.startswith("---\nlibrary_name: transformers\npipeline_tag: image-feature-extraction\n")


def test_the_card_of_a_bare_checkpoint_says_what_is_not_known(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "out")
    card = (tmp_path / "out/README.md").read_text()
    for unknown in ("No recipe was found", "Nothing is recorded", "No scores were found", "None is stated"):
        assert unknown in card


@pytest.mark.parametrize("name", ["recipe.json", "data.json", "metrics.json"])
@pytest.mark.parametrize(("content", "said"), [("{", "damaged: Expecting property name"), ("3", "expected a JSON")])
def test_damaged_facts_are_named(model, tmp_path, name, content, said):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / name).write_text(content)
    with pytest.raises(CheckpointError, match=f"{re.escape(str(tmp_path / name))}: {said}"):
        read_source(tmp_path)


def test_scores_that_are_not_there_are_named(tmp_path):
    with pytest.raises(CheckpointError, match="eval.json: no such file"):
        read_source(tmp_path, tmp_path / "eval.json")


@pytest.mark.parametrize(
    "content", [{}, {"scores": {}}, {"scores": {"t": {"count": 3}}}, {"differences": [1]}, {"a": {}}]
)
def test_a_file_of_scores_without_any_is_refused(tmp_path, content):
    (tmp_path / "eval.json").write_text(json.dumps(content))
    with pytest.raises(
        CheckpointError, match="eval.json: no scores are in it; a scores.json that `granvit eval --out`"
    ):
        read_source(tmp_path, tmp_path / "eval.json")


def changed(content, place, value):
    """A copy of JSON with another value at a place, or without it."""
    copy = json.loads(json.dumps(content))
    *outer, last = place
    inner = copy
    for name in outer:
        inner = inner[name]
    if value is None:
        del inner[last]
    else:
        inner[last] = value
    return copy


DATA = [{"images": 5000, "weight": 0.5, "shards": ["ab" * 32]}]


@pytest.mark.parametrize(
    ("name", "content", "place", "value", "said"),
    [
        ("recipe.json", RECIPE, ["name"], None, "name is missing"),
        ("recipe.json", RECIPE, ["encoder"], 3, "encoder is 3"),
        ("recipe.json", RECIPE, ["seed"], "x", 'seed is "x"'),
        ("recipe.json", RECIPE, ["processes"], 1.5, "processes is 1.5"),
        ("recipe.json", RECIPE, ["stages"], {}, "stages is {}"),
        ("recipe.json", RECIPE, ["stages", 0], 1, r"stages\[0\] is 1"),
        ("recipe.json", RECIPE, ["stages", 0, "kind"], None, r"stages\[0\].kind is missing"),
        ("recipe.json", RECIPE, ["stages", 0, "loop", "steps"], "many", r'stages\[0\].loop.steps is "many"'),
        ("recipe.json", RECIPE, ["stages", 0, "loop", "lr"], None, r"stages\[0\].loop.lr is missing"),
        ("recipe.json", RECIPE, ["stages", 0, "loop", "lr"], "fast", r'stages\[0\].loop.lr is "fast"'),
        ("recipe.json", RECIPE, ["stages", 0, "sample", "questions"], 1, r"stages\[0\].sample.questions is 1"),
        ("recipe.json", RECIPE, ["stages", 0, "lora"], {"rank": 4}, r"stages\[0\].lora.targets is missing"),
        ("recipe.json", {**RECIPE, "init": "x"}, ["init"], [], r"init is \[\]"),
        ("data.json", DATA, [0], 3, r"\[0\] is 3"),
        ("data.json", DATA, [0, "images"], "5", r'\[0\].images is "5"'),
        ("data.json", DATA, [0, "weight"], [], r"\[0\].weight is \[\]"),
        ("data.json", DATA, [0, "shards"], [1], r"\[0\].shards is not a list of texts"),
        ("metrics.json", DEMO, ["stage2", "locate"], 1, "stage2.locate is 1"),
        ("metrics.json", DEMO, ["stage2", "locate", "count"], None, "stage2.locate.count is missing"),
        ("metrics.json", DEMO, ["stage2", "locate", "acc50"], "high", 'stage2.locate.acc50 is "high"'),
        ("metrics.json", DEMO, ["stage2", "locate", "acc50"], 10**400, "stage2.locate.acc50 is 10000"),
        ("metrics.json", DEMO, ["before", "locate"], [], r"before.locate is \[\]"),
        ("metrics.json", DEMO, ["baseline"], 1, "baseline is 1"),
        ("metrics.json", EVAL, ["scores"], [], r"scores is \[\]"),
        ("metrics.json", EVAL, ["facts"], [], r"facts is \[\]"),
        ("metrics.json", EVAL, ["facts", "Limit"], 3, "facts.Limit is 3"),
        ("metrics.json", EVAL, ["intervals", "locate", "acc50"], [0.5], r"intervals.locate.acc50 is \[0.5\]"),
        ("metrics.json", EVAL, ["intervals", "locate", "acc50"], [0.5, "x"], 'intervals.locate.acc50 is "x"'),
    ],
)
def test_a_damaged_fact_is_named_with_its_file(tmp_path, name, content, place, value, said):
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / name).write_text(json.dumps(content))
    read_source(tmp_path)
    (tmp_path / name).write_text(json.dumps(changed(content, place, value)))
    with pytest.raises(CheckpointError, match=f"^{re.escape(str(tmp_path / name))}: damaged: {said}") as caught:
        read_source(tmp_path)
    assert "\n" not in str(caught.value)


# --- the scores of a run ---------------------------------------------------------------------------------------------


def logged(folder, *places):
    """A log with lines of these (stage, step, end, questions' digest, Acc@0.5)."""
    rows = [
        Scored(*place, {"locate": {"acc50": value, "count": 1234.0}}, {"locate": {"acc50": 0.04}}, 1.0, [])
        for *place, value in places
    ]
    (folder / "scores.jsonl").write_text("".join(map(line_of, rows)))


def test_the_card_has_the_scores_that_the_run_noted_of_the_exported_step(tmp_path, model):
    run = run_folder(tmp_path / "run", model)
    (run / "metrics.json").unlink()
    first, last = ("before", 0, True, "q", 0.1), ("stage1", 1200, True, "q", 0.3)
    logged(run, first, ("stage1", 600, False, "q", 0.2), last)
    card = (export(run, tmp_path / "out").folder / "README.md").read_text()
    told = "From the run's `scores.jsonl`: 1,234 questions, asked after step 1,200 of stage1, which is this checkpoint."
    assert f"On held-out pictures. {told} A small sample, to watch a run by.\n" in card
    assert "| find what a phrase describes | Acc@0.5 | 1,234 | 30.0% | 10.0% | 4.0% |" in card
    # The model of before was asked something else.
    logged(run, ("before", 0, True, "other", 0.1), last)
    assert "| Acc@0.5 | 1,234 | 30.0% | – | 4.0% |" in card_of(run, tmp_path / "b")
    # A stage that was asked after it, not within it, has no step of its own in the log.
    logged(run, first, ("stage1", 0, True, "q", 0.3))
    assert "asked after step 1,200 of stage1, which is this checkpoint" in card_of(run, tmp_path / "c")


def test_scores_of_another_step_are_said_to_be(tmp_path, model):
    run = run_folder(tmp_path / "run", model)
    (run / "metrics.json").unlink()
    logged(run, ("before", 0, True, "q", 0.1), ("stage1", 600, False, "q", 0.2))
    other = "asked after step 600 of stage1, and not of this checkpoint, which is that after step 1,200 of stage1"
    assert other in card_of(run, tmp_path / "a")
    logged(run, ("before", 0, True, "q", 0.1))
    card = card_of(run, tmp_path / "b")
    assert "asked before the run, and not of this checkpoint, which is that after step 1,200" in card
    assert "| Acc@0.5 | 1,234 | 10.0% | – | 4.0% |" in card


def test_of_a_run_that_gets_another_stage_the_checkpoint_is_that_of_the_last_that_ended(tmp_path, model):
    run = run_folder(tmp_path / "run", model)
    again = {**RECIPE["stages"][0], "name": "again"}
    (run / "recipe.json").write_text(json.dumps({**RECIPE, "stages": [RECIPE["stages"][0], again]}))
    (run / "stage1" / "model").mkdir(parents=True)
    logged(run, ("stage1", 1200, True, "q", 0.3), ("again", 600, False, "q", 0.5))
    card = card_of(run, tmp_path / "out")
    assert "asked after step 1,200 of stage1, which is this checkpoint" in card and "| 30.0% |" in card


def test_the_best_model_of_a_stage_has_the_scores_of_its_step(tmp_path, model):
    run = run_folder(tmp_path / "run", model)
    logged(run, ("stage1", 600, False, "q", 0.4), ("stage1", 1200, True, "q", 0.3))
    model.save(run / "stage1" / "best")
    (run / "stage1" / "best" / "score.json").write_text('{"score": "locate.acc50", "value": 0.4, "step": 600}')
    model.save(run / "stage1" / "model")
    best, end = (card_of(run / "stage1" / name, tmp_path / name) for name in ("best", "model"))
    assert "asked after step 600 of stage1, which is this checkpoint" in best and "| 40.0% |" in best
    assert "asked after step 1,200 of stage1, which is this checkpoint" in end and "| 30.0% |" in end


def test_scores_of_another_checkpoint_are_said_to_be(tmp_path, model):
    run = run_folder(tmp_path / "run", model)
    mine, other = checkpoint_id(run)[:16], "0" * 16
    for digest, said in (
        (mine, "1,244 questions."),
        (other, f"questions, asked of another checkpoint (sha256 {other}) than"),
    ):
        facts = {**EVAL["facts"], "Checkpoint": f"sha256 {digest}"}
        (tmp_path / "eval.json").write_text(json.dumps({**EVAL, "facts": facts}))
        card = (export(run, tmp_path / digest, metrics=tmp_path / "eval.json").folder / "README.md").read_text()
        assert "From `eval.json` of `granvit eval`: 1,244 questions" in card and said in card


def test_a_damaged_log_of_scores_is_named(tmp_path, model):
    run = run_folder(tmp_path / "run", model)
    (run / "scores.jsonl").write_text("{}\n")
    with pytest.raises(CheckpointError, match="scores.jsonl: line 1 is not what was written"):
        read_source(run)
    logged(run, ("stage1", 1200, True, "q", 0.3))
    for content, said in ((changed(RECIPE, ["stages"], []), "stages is empty"), ([], "its content is \\[\\]")):
        (run / "recipe.json").write_text(json.dumps(content))
        with pytest.raises(CheckpointError, match=f"recipe.json: damaged: {said}|recipe.json: expected a JSON object"):
            read_source(run)


# --- where it comes from, and its licence ----------------------------------------------------------------------------


def test_the_card_tells_what_data_sets_it_learned_from(tmp_path, model):
    for name, sources, said in (
        ("unknown", None, "Which data sets their records come from is not recorded."),
        ("known", frozenset({"coco", "my`own"}), "are of: `coco`, `my'own`.\n"),
        ("many", frozenset(f"set{n:02}" for n in range(25)), "`set19` and 5 more."),
        (
            "drawn",
            frozenset(SOURCES),
            "All of them are pictures that granvit drew: it has never seen a photo or a scan.",
        ),
    ):
        model = make_model()
        model.sources = sources
        run = run_folder(tmp_path / name, model)
        card = card_of(run, tmp_path / f"{name}-out")
        assert said in card and ("that granvit drew" in card) == (name == "drawn")


def test_the_card_tells_what_a_run_went_on_from(tmp_path, model):
    run = run_folder(tmp_path / "run", model)
    (run / "recipe.json").write_text(
        json.dumps({**RECIPE, "encoder": "init", "init": "/home/me/runs/first/checkpoint"})
    )
    card = card_of(run, tmp_path / "out")
    assert "Recipe `tiny`, seed 3; it went on from `first`, a model trained before" in card
    assert "encoder `init`" not in card and "/home/me" not in card


def card_of(source, out, **options):
    return (export(source, out, **options).folder / "README.md").read_text()


def test_a_licence_is_one_that_the_hub_knows(tmp_path, checkpoint):
    assert card_of(checkpoint, tmp_path / "a", licence="Apache-2.0").startswith(
        "---\nlicense: apache-2.0\nlibrary_name"
    )
    named = {"licence_name": "my-licence-1.0", "licence_link": "https://example.org/licence"}
    card = card_of(checkpoint, tmp_path / "b", licence="other", **named)
    front = yaml.safe_load(card.split("---")[1])
    assert [front[f"license{end}"] for end in ("", "_name", "_link")] == ["other", *named.values()]
    assert "[my-licence-1.0](https://example.org/licence), as stated by" in card


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["apache2"], "--license 'apache2': the hub knows no such licence; did you mean apache-2.0"),
        (
            ["gpl-3.0-only"],
            "did you mean .*gpl-3.0.*any other is --license other --license-name NAME --license-link URL",
        ),
        (["mine: yes\nx: y"], "the hub knows no such licence"),
        ([""], "the hub knows no such licence"),
        (["other"], "--license other: --license-name is missing"),
        (["other", "mine"], "--license other: --license-link is missing"),
        (["other", 'a"\nb', "https://a.b"], "--license-name .* is expected"),
        (["other", "mine", "see below"], "--license-link 'see below': an address"),
        (["mit", "mine"], "--license-name 'mine': only with --license other"),
        ([None, None, "https://a.b"], "--license-link 'https://a.b': only with --license other"),
    ],
)
def test_a_licence_that_nobody_knows_is_refused(tmp_path, given, said):
    with pytest.raises(ExportError, match=said) as caught:
        licence_of(*given)
    assert "\n" not in str(caught.value)
    with pytest.raises(ExportError, match=said):  # before anything is read or written
        export(
            tmp_path / "none",
            tmp_path / "out",
            **dict(zip(("licence", "licence_name", "licence_link"), given, strict=False)),
        )
