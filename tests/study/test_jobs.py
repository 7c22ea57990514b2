"""Which jobs a study is made of, what they share, and by what a result is known to be theirs."""

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from helpers.tiny_study import tiny_study

from granvit.errors import GranvitError
from granvit.nano.study import nano_longer, nano_smollm2, nano_study
from granvit.study.arms import PAPER_ARM, paper_study
from granvit.study.definition import Arm, Comparison, Series
from granvit.study.jobs import Data, jobs_of, remaining_work, stretched
from granvit.train.recipes import ablations as by
from granvit.train.stages.config import AdaptConfig, ContrastConfig, FinetuneConfig, PretrainConfig

PARTS = Path("parts")
DATA = Data(96, "drawn")


def jobs(*arms, seeds=1, data=DATA, **changes):
    study = tiny_study(PARTS, 3, arms)
    return {job.name: job for job in jobs_of(replace(study, **changes), seeds, data)}


def test_equal_first_stages_are_shared_and_others_are_not():
    found = jobs(
        *(Arm("tuned", "", by.encoder_trained), Arm("alone", "", by.stage_1_alone)),
        *(Arm("other", "", by.other_order), Arm("bare", "", by.without_distillation)),
        seeds=2,
    )
    folder = found["stage1.seed0"].shared_folder
    assert folder is not None and folder.startswith("stage1-")
    assert found["tuned.seed0"].shared_folder == found["alone.seed0"].shared_folder == folder
    assert found["tuned.seed1"].shared_folder not in (None, folder)
    assert found["other.seed0"].shared_folder == found["initial.seed0"].shared_folder != folder
    assert found["bare.seed0"].shared_folder is None
    assert (found["alone.seed0"].shared, found["tuned.seed0"].shared) == (1, 1)


def test_seeds_change_weights_and_samples_of_every_stage_and_nothing_else():
    first, second = jobs(seeds=2)["stage1.seed0"], jobs(seeds=2)["stage1.seed1"]
    differing = {name for name in first.settings if first.settings[name] != second.settings[name]}
    assert differing == {"seed", "stages.0.loop.seed", "stages.1.loop.seed"}
    seeds = [stage.loop.seed for job in (first, second) for stage in job.recipe.stages]
    assert len(set(seeds)) == 4


def test_what_decides_changes_the_identity_and_what_does_not_does_not():
    base = jobs()["stage1.seed0"]
    longer = replace(tiny_study(PARTS).measuring, held_out=7)
    assert jobs(measuring=longer)["stage1.seed0"].identity != base.identity
    assert jobs(data=Data(96, "other"))["stage1.seed0"].identity != base.identity
    assert jobs(title="another", seconds={"stage1": 1.0})["stage1.seed0"].identity == base.identity

    def quicker(recipe):
        changed = by.unchanged(recipe)
        changed.stages[0].loop.save_every, changed.stages[0].loop.log_every = 7, 9
        return changed

    assert jobs(Arm("quicker", "", quicker))["quicker.seed0"].identity == base.identity


def test_a_share_of_the_images_is_the_arms_own():
    found = jobs(Arm("eighth", "", share=1 / 8))
    assert found["eighth.seed0"].images == 12
    assert found["eighth.seed0"].identity != found["stage1.seed0"].identity
    assert found["eighth.seed0"].shared == 0


def test_arithmetic_is_matched_by_what_departs_from_the_reference():
    reference = jobs()["stage1.seed0"].recipe
    globals_only = by.global_only(reference)
    # The second stage is the reference's own and stays: 3 x 10 of 120 are left for 3 steps of 5 and factor 6.
    found = stretched(globals_only, reference, [5.0, 10.0], wanted=120.0)
    assert [stage.loop.steps for stage in found.stages] == [18, 3]
    # One that departs in nothing gets longer as a whole.
    found = stretched(by.initial(reference), reference, [10.0], wanted=120.0)
    assert [stage.loop.steps for stage in found.stages] == [12]
    with pytest.raises(GranvitError, match="takes more arithmetic"):
        stretched(globals_only, reference, [5.0, 100.0], wanted=120.0)


def test_stages_in_common_take_their_time_once():
    made = list(jobs(Arm("alone", "", by.stage_1_alone)).values())
    study = replace(tiny_study(PARTS, 3), seconds={"stage1": 1.0, "stage2": 1.0, "measure": 5.0})
    # Three steps of two images a stage.
    assert remaining_work(study, made) == [11.0, 17.0, 5.0]


def test_each_change_is_what_it_says():
    base = tiny_study(PARTS, 3).base()
    kinds = {
        by.initial: [AdaptConfig],
        by.stage_1_alone: [PretrainConfig],
        by.contrast: [ContrastConfig, AdaptConfig],
        by.merged: [PretrainConfig],
        by.other_order: [AdaptConfig, PretrainConfig],
        by.encoder_trained: [PretrainConfig, FinetuneConfig],
    }
    for function, expected in kinds.items():
        assert [type(stage) for stage in function(base).stages] == expected, function.__name__
    merged = by.merged(base).stages[0]
    assert merged.train_language and merged.loop.steps == 6 and merged.sample.questions["caption2bbox"] == 1
    assert by.global_only(base).stages[0].sample.questions == {"global": 1.0}
    assert by.encoder_trained(base).stages[1].train_encoder
    assert by.both_directions(base).stages[0].sample.questions["caption2bbox"] == 1
    assert by.regions_at_most(base, 1).stages[0].sample.max_regions == 1
    assert base.stages[0].sample.questions == {"global": 1.0, "bbox2caption": 1.0}, "the base itself is not changed"


def test_the_shipped_studies_are_sound():
    nano = jobs_of(nano_study(), 3, Data(2400, "embedded"))
    assert len({job.name for job in nano}) == len(nano) == 3 * len(nano_study().arms)
    # The same training under two names would be trained twice, but for arms that only share a stage.
    assert len({job.identity for job in nano}) == len(nano)
    images = {job.arm.name: sum(s.loop.steps * s.loop.batch_size for s in job.recipe.stages) for job in nano}
    full = images[PAPER_ARM]
    short = {"initial", "stage1-alone"}
    assert {name for name, count in images.items() if count != full} == short
    longer = nano_longer()
    assert longer.comparisons and set(longer.comparisons) < set(nano_study().comparisons), "named before as well"
    steps = {a: s.loop.steps * s.loop.batch_size for a, s in zip("12", longer.base().stages, strict=True)}
    before = {a: s.loop.steps * s.loop.batch_size for a, s in zip("12", nano_study().base().stages, strict=True)}
    assert (steps["1"], steps["2"]) == (6 * before["1"], 4 * before["2"]), "as its docstring says"
    paper = jobs_of(paper_study(), 1, Data(1_000_000, "own"))
    assert {s.loop.batch_size * s.loop.accumulate for job in paper for s in job.recipe.stages} == {256}


def test_the_study_through_a_pretrained_language_model_trains_none_of_it():
    study = nano_smollm2()
    made = {job.arm.name: job.recipe.stages for job in jobs_of(study, 1, Data(2400, "embedded"))}
    assert made["initial"] == []
    assert {name: [type(stage) for stage in stages] for name, stages in made.items() if stages} == {
        "contrast": [ContrastConfig],
        **dict.fromkeys(("global-only", "no-distillation", PAPER_ARM), [PretrainConfig]),
    }
    assert made["no-distillation"][0].distill_weight == 0 < made[PAPER_ARM][0].distill_weight
    assert not any(getattr(stage, "train_language", False) for stages in made.values() for stage in stages)


def test_parts_on_the_disk_are_known_by_what_they_are(tmp_path):
    for name in ("one", "copy", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")
        (tmp_path / name / "model.safetensors").write_bytes(b"weights" if name != "other" else b"weightz")
    (tmp_path / "model.gguf").write_bytes(b"GGUF")

    def identity(language):
        study = tiny_study(PARTS, 3)
        study = replace(study, base=lambda base=study.base: replace(base(), language=str(language)))
        job = jobs_of(study, 1, DATA)[0]
        return job.identity, job.settings["language"]

    assert identity(tmp_path / "one") == identity(tmp_path / "copy")
    assert identity(tmp_path / "one")[0] != identity(tmp_path / "other")[0]
    assert str(tmp_path) not in identity(tmp_path / "one")[1] + identity(tmp_path / "model.gguf")[1]
    assert identity("someone/some-model")[1] == "someone/some-model"


def test_mistakes_in_a_study_are_named():
    with pytest.raises(GranvitError, match="no such arm; it has initial, stage1"):
        tiny_study(PARTS).chosen(["nope"])
    with pytest.raises(GranvitError, match="arm 'stage1': a name of its own"):
        tiny_study(PARTS, arms=(Arm("stage1", "twice"),))
    with pytest.raises(GranvitError, match=r"a name of its own, of a-z"):
        tiny_study(PARTS, arms=(Arm("../up", "out of the folder"),))
    bad = Comparison("?", "initial", "nope", "describe", "better", "")
    with pytest.raises(GranvitError, match="names no arm: nope"):
        replace(tiny_study(PARTS), comparisons=(bad,))
    with pytest.raises(GranvitError, match="names no arm: nope"):
        replace(tiny_study(PARTS), series=(Series("s", (("1", "nope"),)),))
    with pytest.raises(GranvitError, match="no measure wit"):
        replace(tiny_study(PARTS), comparisons=(replace(bad, second="stage1", measure="wit"),))
    with pytest.raises(GranvitError, match="arm bad: .*alpha"):
        jobs(Arm("bad", "", partial(by.distilled_by, alpha=2.0)))
    with pytest.raises(GranvitError, match="--seeds 0"):
        jobs(seeds=0)
