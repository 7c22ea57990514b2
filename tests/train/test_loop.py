import dataclasses
import json
import math
import os
import shutil
import signal
import time
from dataclasses import replace

import pytest
import torch
from helpers.tiny_stage import Corpus, TinyStage, collate, make_feed, prepare
from safetensors.torch import load_file

from granvit.errors import CheckpointError, GranvitError
from granvit.model.packing import Branch, Sample, pack
from granvit.train import checkpoint
from granvit.train.feed import LEFT_OUT, Feed, FeedError, Reject
from granvit.train.loop import LoopConfig, NonFiniteLoss, train
from granvit.train.stages.base import Stage, Term

CONFIG = LoopConfig(steps=8, batch_size=4, lr=0.01, log_every=1, trackers=(), warmup_steps=2, weight_decay=0.1)


def run(run_dir, stage=None, feed=None, config=CONFIG, **options):
    feed = feed or make_feed(config.batch_size, seed=config.seed, prefetch=0)
    return train(stage or TinyStage(dropout=0.0), feed, config, run_dir, device="cpu", **options)


def test_four_micro_batches_of_four_are_a_batch_of_sixteen(tmp_path):
    one, four = TinyStage(dropout=0.0), TinyStage(dropout=0.0)
    whole = run(tmp_path / "one", one, config=replace(CONFIG, batch_size=16))
    cut = run(tmp_path / "four", four, config=replace(CONFIG, batch_size=4, accumulate=4))
    assert sum(four.seen[:4], []) == one.seen[0]
    for name, curve in whole.history.items():
        assert cut.history[name] == [(step, pytest.approx(value, rel=1e-6, abs=1e-6)) for step, value in curve]
    for name, weight in one.model.state_dict().items():
        assert torch.allclose(four.model.state_dict()[name], weight, atol=1e-6), name


def test_a_step_is_that_of_the_mean_over_tokens_and_crops(tmp_path):
    """The loop against plain torch on the same batches."""
    config = replace(CONFIG, steps=3, accumulate=2, warmup_steps=0, weight_decay=0.0, clip_norm=0.5)
    stage, plain = TinyStage(dropout=0.0), TinyStage(dropout=0.0)
    result = run(tmp_path, stage, config=config)
    optimizer = torch.optim.AdamW(plain.parameters(), lr=0.01, weight_decay=0.0)
    feed = make_feed(4, prefetch=0)
    for step in range(3):
        batches = [next(feed), next(feed)]
        tokens, crops = (sum(b.counts[k] for b in batches) for k in ("answer_tokens", "crops"))
        terms = [plain(b) for b in batches]
        loss = sum(t["caption"].total for t in terms) / tokens + 0.5 * sum(t["distill"].total for t in terms) / crops
        optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + math.cos(math.pi * step / 3)) / 2
        optimizer.step()
        assert result.history["loss"][step] == (step + 1, pytest.approx(loss.item(), rel=1e-6))
        assert result.history["grad_norm"][step][1] == pytest.approx(norm.item(), rel=1e-5)
    for name, weight in plain.model.state_dict().items():
        assert torch.allclose(stage.model.state_dict()[name], weight, atol=1e-6), name


def test_one_seed_gives_one_run_bit_for_bit(tmp_path):
    first, second, other = (
        run(tmp_path / str(i), TinyStage(), make_feed(4, prefetch=i), config=replace(CONFIG, seed=seed)).history
        for i, seed in enumerate((0, 0, 1))
    )
    assert first == second
    assert first["loss"] != other["loss"], "dropout draws from the seed"


def test_bfloat16_is_near_float32_and_keeps_the_weights_in_float32(tmp_path):
    stage = TinyStage(dropout=0.0)
    full = run(tmp_path / "full").history["loss"]
    half = run(tmp_path / "half", stage, config=replace(CONFIG, precision="bf16")).history["loss"]
    assert half != full
    assert [value for _, value in half] == pytest.approx([value for _, value in full], rel=0.02)
    assert {p.dtype for p in stage.parameters()} == {torch.float32}
    with pytest.raises(CheckpointError, match="precision was 'bf16'"):
        run(tmp_path / "half")


def test_it_learns(tmp_path):
    losses = [value for _, value in run(tmp_path, config=replace(CONFIG, steps=60)).history["caption"]]
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])


def test_frozen_parts_stay_and_after_step_runs(tmp_path):
    stage, before = TinyStage(), TinyStage()
    run(tmp_path, stage, config=replace(CONFIG, steps=1, min_lr_ratio=1.0))
    assert torch.equal(stage.model.frozen.weight, before.model.frozen.weight)
    assert not torch.equal(stage.model.encoder[0].weight, before.model.encoder[0].weight)
    moved = before.average.lerp(stage.model.encoder[0].weight.detach(), 0.1)
    assert torch.equal(stage.average, moved)


@pytest.mark.parametrize("saved, log_every", [(3, 1), (5, 4), (4, 3)])
def test_resume_goes_on_bit_for_bit_even_between_two_lines(tmp_path, saved, log_every):
    config = replace(CONFIG, steps=11, accumulate=2, log_every=log_every, save_every=saved)
    whole = run(tmp_path / "whole", TinyStage(), config=config).history
    cut = tmp_path / "cut"

    class Killed(TinyStage):
        def after_step(self):
            super().after_step()
            self.taken = getattr(self, "taken", 0) + 1
            if self.taken == saved + 2:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(cut, Killed(), config=config)
    assert run(cut, TinyStage(seed=5), config=config).history == whole
    assert (cut / "history.jsonl").read_text() == (tmp_path / "whole" / "history.jsonl").read_text()
    steps = [json.loads(line)["step"] for line in (cut / "history.jsonl").read_text().splitlines()]
    assert steps == [*range(log_every, 11, log_every), 11]


def test_a_finished_run_is_not_taken_again(tmp_path):
    first = run(tmp_path)
    again = TinyStage(seed=9)
    assert run(tmp_path, again).history == first.history
    assert not again.seen
    with pytest.raises(GranvitError, match="step_00000008"):
        run(tmp_path, resume=False)


def test_a_run_killed_before_its_first_checkpoint_starts_over(tmp_path):
    (tmp_path / "history.jsonl").write_text('{"step": 1, "loss": 9.0}\n')
    assert [step for step, _ in run(tmp_path).history["loss"]] == list(range(1, 9))
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 8


def test_a_resume_with_another_recipe_data_or_history_is_refused(tmp_path):
    config = replace(CONFIG, save_every=4)
    run(tmp_path, config=config, recipe={"corpus": "a"})
    run(tmp_path, config=replace(config, save_every=1, log_every=2), recipe={"corpus": "a"})
    with pytest.raises(CheckpointError, match="corpus was 'a' there and is 'b'"):
        run(tmp_path, config=config, recipe={"corpus": "b"})
    with pytest.raises(CheckpointError, match="lr was 0.01"):
        run(tmp_path, config=replace(config, lr=0.1), recipe={"corpus": "a"})
    with pytest.raises(CheckpointError, match="feed: seed is 0"):
        run(tmp_path, feed=make_feed(4, seed=3), config=config, recipe={"corpus": "a"})
    path = tmp_path / "history.jsonl"
    whole = path.read_text().splitlines(keepends=True)
    for line in ("{\n", "[]\n", '{"loss": 1}\n', '{"step": "1"}\n'):
        path.write_text("".join([whole[0], line, *whole[2:]]))
        with pytest.raises(CheckpointError, match="history.jsonl: line 2"):
            run(tmp_path, config=config, recipe={"corpus": "a"})
    (tmp_path / "history.jsonl").write_text("")
    with pytest.raises(CheckpointError, match="history.jsonl: has 0 lines"):
        run(tmp_path, config=config, recipe={"corpus": "a"})


@pytest.mark.parametrize("steps, every, kept", [(8, 0, [8]), (8, 3, [6, 8]), (8, 4, [4, 8])])
def test_checkpoints_come_when_due_and_at_the_end(tmp_path, steps, every, kept):
    run(tmp_path, config=replace(CONFIG, steps=steps, save_every=every))
    assert sorted(int(f.name[5:]) for f in (tmp_path / "checkpoints").iterdir()) == kept


def test_a_nonfinite_loss_stops_and_names_step_and_samples(tmp_path):
    feed = make_feed(4, prefetch=0)
    ids = [next(feed).ids for _ in range(6)]
    poisoned = ids[5][2]
    stage = TinyStage(dropout=0.0, poison=poisoned)
    clean = TinyStage(dropout=0.0)
    run(tmp_path / "clean", clean, config=replace(CONFIG, steps=2, accumulate=2, min_lr_ratio=1.0, warmup_steps=0))
    config = replace(CONFIG, steps=4, accumulate=2, min_lr_ratio=1.0, warmup_steps=0)
    with pytest.raises(NonFiniteLoss, match=f"step 3: .*caption.*{poisoned}"):
        run(tmp_path, stage, config=config)
    left = json.loads((tmp_path / "nonfinite" / "batch.json").read_text())
    assert left["step"] == 3 and left["ids"] == [ids[4:6]] and left["metrics"]["caption"] == "inf"
    weights = load_file(tmp_path / "nonfinite" / "student.safetensors")
    for name, weight in weights.items():
        assert torch.equal(weight, clean.model.state_dict()[name]), "the student as it was before the step"
    left = json.loads((tmp_path / "nonfinite" / "ranks.json").read_text())
    assert len(left) == 1 and left[0]["feed"]["position"] == 16, "where the step began"
    assert checkpoint.latest(tmp_path) is None


def test_a_nonfinite_gradient_alone_stops_too(tmp_path):
    class Steep(TinyStage):
        def forward(self, batch):
            terms = super().forward(batch)
            terms["caption"].total = terms["caption"].total + (self.model.encoder[0].weight * 0).sum().sqrt()
            return terms

    with pytest.raises(NonFiniteLoss, match="step 1: .*grad_norm"):
        run(tmp_path, Steep())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_finishes_the_step_and_saves(tmp_path, number):
    class Signalled(TinyStage):
        def forward(self, batch):
            if len(self.seen) == 4:
                os.kill(os.getpid(), number)
            return super().forward(batch)

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as exit_:
        run(tmp_path, Signalled(dropout=0.0))
    assert exit_.value.code == 128 + number
    assert checkpoint.latest(tmp_path).name == "step_00000005"
    assert signal.getsignal(number) == before
    assert run(tmp_path).history == run(tmp_path / "whole").history


def test_an_error_in_a_sample_ends_the_run_with_its_name(tmp_path):
    def broken(record, rng):
        raise ZeroDivisionError("no size")

    with pytest.raises(FeedError, match="sample 'r[0-9]+': ZeroDivisionError: no size"):
        run(tmp_path, feed=Feed([(Corpus(), 1.0)], broken, collate, 4, 0))


def test_rejected_records_are_listed_in_the_run(tmp_path):
    def picky(record, rng):
        if record.id == "r7":
            raise Reject("no regions")
        return prepare(record, rng)

    run(tmp_path, feed=Feed([(Corpus(), 1.0)], picky, collate, 4, 0), config=replace(CONFIG, steps=10))
    assert json.loads((tmp_path / "quarantine.jsonl").read_text()) == {"id": "r7", "reason": "no regions"}


def test_what_was_left_out_is_counted_over_the_whole_run(tmp_path):
    def picky(record, rng):
        sample = prepare(record, rng)
        return dataclasses.replace(sample, left_out=3) if record.id == "r7" else sample

    cut = replace(CONFIG, steps=10, save_every=5)
    reported = [
        run(tmp_path / name, feed=Feed([(Corpus(), 1.0)], picky, collate, 4, 0), config=config).left_out
        for name, config in (("whole", cut), ("again", cut), ("again", cut))
    ]
    assert (
        reported[0] == reported[1] == reported[2]
        and list(reported[0]) == [LEFT_OUT]
        and reported[0][LEFT_OUT] % 3 == 0 < reported[0][LEFT_OUT]
    )
    row = json.loads((tmp_path / "whole" / "quarantine.jsonl").read_text())
    assert row == {"id": "r7", "reason": LEFT_OUT}


def test_what_does_not_fit_together_is_refused(tmp_path):
    with pytest.raises(ValueError, match="batches of 3"):
        run(tmp_path, feed=make_feed(3))
    with pytest.raises(ValueError, match="rank 1 of 2, this is rank 0 of 1"):
        run(tmp_path, feed=make_feed(4, rank=1, world_size=2))
    with pytest.raises(ValueError, match="muon needs whole matrices"):
        run(tmp_path, config=replace(CONFIG, optimizer="muon", parallel="fsdp"))
    with pytest.raises(ValueError, match="no matrix of a transformer block trains in stage 'tiny'"):
        run(tmp_path, config=replace(CONFIG, optimizer="muon"))

    class Outside(TinyStage):
        def __init__(self):
            super().__init__()
            self.probe = torch.nn.Linear(2, 2)

    with pytest.raises(ValueError, match="probe.weight trains, but"):
        run(tmp_path, Outside())

    class Fickle(TinyStage):
        def forward(self, batch):
            terms = super().forward(batch)
            return terms if len(self.seen) % 2 else {"caption": terms["caption"]}

    with pytest.raises(ValueError, match="gave the terms"):
        run(tmp_path, Fickle(), config=replace(CONFIG, accumulate=2))


def test_speed_and_data_wait_are_measured(tmp_path):
    result = run(tmp_path)
    assert 0 < result.data_wait < 1 and result.seconds > 0 and result.regions_per_second > 0


def test_tensorboard_has_every_step_once_after_a_resume(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = replace(CONFIG, trackers=("tensorboard",), save_every=3)

    class Killed(TinyStage):
        def after_step(self):
            super().after_step()
            if len(self.seen) == 5:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, Killed(dropout=0.0), config=config)
    time.sleep(1.1)  # files of one second are read in the order of a counter's digits, 10 before 9
    result = run(tmp_path, config=config)
    (folder,) = {file.parent for file in tmp_path.rglob("events.out.tfevents.*")}
    events = EventAccumulator(str(folder)).Reload()
    logged = [(e.step, e.value) for e in events.Scalars("loss")]
    assert logged == [(step, pytest.approx(value)) for step, value in result.history["loss"]]
    assert "regions_per_second" in events.Tags()["scalars"]


def test_a_tracker_that_is_not_known_is_one_line(tmp_path):
    with pytest.raises(GranvitError, match="loop.trackers 'mlflow': known are tensorboard, wandb"):
        run(tmp_path, config=replace(CONFIG, trackers=("mlflow",)))


class LlavaStage(Stage):
    """Answer tokens through a stock LLaVA with random weights."""

    name = "llava"

    def __init__(self):
        from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig

        super().__init__()
        torch.manual_seed(0)
        vision = SiglipVisionConfig(
            hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
        )
        text = Qwen2Config(
            vocab_size=32,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=True,
        )
        config = LlavaConfig(
            vision_config=vision,
            text_config=text,
            image_token_index=0,
            vision_feature_layer=-1,
            vision_feature_select_strategy="full",
        )
        config._attn_implementation = "sdpa"
        self.model = LlavaForConditionalGeneration(config)
        self.model.model.vision_tower.requires_grad_(False)

    def forward(self, batch):
        logits = self.model(
            input_ids=batch.input_ids,
            pixel_values=batch.pixels.permute(0, 3, 1, 2) / 127.5 - 1,
            attention_mask=batch.mask(),
            position_ids=batch.position_ids,
        ).logits
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), reduction="sum")
        return {"caption": Term(loss, "answer_tokens")}


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_a_stock_llava_trains_saves_and_resumes(tmp_path, optimizer):
    def questions(record, rng):
        branches = [Branch(rng.integers(3, 9, 4).tolist(), 2, "global") for _ in range(2)]
        return Sample(record.id, branches, rng.integers(0, 256, (8, 8, 3), dtype="uint8"))

    def feed():
        return Feed([(Corpus(), 1.0)], questions, lambda s: pack(s, [1, 0, 0, 0, 0], 0, 2), 4, 0, prefetch=0)

    groups = {"multi_modal_projector": 2.0}
    config = replace(CONFIG, steps=5, save_every=3, optimizer=optimizer, optimizer_groups=groups)
    stage = LlavaStage()
    whole = run(tmp_path / "whole", stage, feed(), config)
    assert whole.history["loss"][-1][1] < whole.history["loss"][0][1]
    cut = tmp_path / "cut"
    run(cut, LlavaStage(), feed(), replace(config, save_every=1))
    shutil.rmtree(cut / "checkpoints" / "step_00000005")
    fresh = LlavaStage()
    torch.nn.init.normal_(fresh.model.lm_head.weight)
    assert run(cut, fresh, feed(), config).history == whole.history
    assert all(torch.equal(a, b) for a, b in zip(fresh.parameters(), stage.parameters(), strict=True))
