import numpy as np
import pytest
import torch
from helpers.tiny_model import collate, make_model, make_samples

from granvit.model.distill import distillation_loss
from granvit.model.locations import patch_fourier_features
from granvit.model.packing import Sample
from granvit.nano.language_warmup import LanguageWarmup
from granvit.nano.symbolic import Grid
from granvit.train.stages.adapt import Adapt
from granvit.train.stages.finetune import Finetune
from granvit.train.stages.pretrain import Pretrain

TOWER, PROJECTOR, LANGUAGE = (
    "model.vision_tower.",
    "model.multi_modal_projector.",
    ("model.language_model.", "lm_head."),
)


@pytest.fixture
def model():
    return make_model("llama")


def batch_of(model, crops=2):
    return collate(model, make_samples(model, (3, 2), crops=crops))


def symbolic_batch(model, counts=(3, 2)):
    rng = np.random.default_rng(0)
    samples = []
    for sample in make_samples(model, counts):
        grid = Grid(rng.integers(0, 16, 20), rng.integers(20, 200, 20), rng.random(20).astype(np.float32))
        samples.append(Sample(sample.id, sample.branches, extra=grid))
    return collate(model, samples)


def backward(stage, batch):
    """The gradients of the loss as the loop forms it, by parameter name."""
    terms, counts = stage(batch), batch.counts
    sum(t.weight * t.total / max(1, counts[t.count]) for t in terms.values()).backward()
    return {n: p.grad for n, p in stage.model.named_parameters() if p.grad is not None}


def weights_without_gradient(stage, gradients, *parts):
    """Which weights of these parts got no gradient, or one of zeros (biases of keys have none by nature)."""
    names = [n for n, _ in stage.model.named_parameters() if n.startswith(parts) and n.endswith("weight")]
    assert len(names) > 1
    return [n for n in names if n not in gradients or gradients[n].abs().max() == 0]


# --- what trains -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("distill", [0.0, 1.0])
def test_stage_1_reaches_all_of_encoder_and_projector_and_nothing_of_the_language_model(model, distill):
    stage = Pretrain(model, distill_weight=distill)
    gradients = backward(stage, batch_of(model))
    missing = weights_without_gradient(stage, gradients, TOWER, PROJECTOR)
    assert missing == ["model.vision_tower.post_layernorm.weight"]  # behind the features
    assert not any(n.startswith(LANGUAGE) for n in gradients)


def test_stage_1_without_captions_still_trains_the_encoder_by_distillation(model):
    stage = Pretrain(model)
    stage(batch_of(model))["distill"].total.backward()
    gradients = {n: p.grad for n, p in stage.model.named_parameters() if p.grad is not None}
    assert weights_without_gradient(stage, gradients, TOWER) == ["model.vision_tower.post_layernorm.weight"]
    assert not any(n.startswith((PROJECTOR, *LANGUAGE)) for n in gradients)


@pytest.mark.parametrize("make", [Adapt, Finetune])
def test_stage_2_reaches_projector_and_language_model_and_nothing_of_the_encoder(model, make):
    stage = make(model)
    gradients = backward(stage, batch_of(model))
    assert weights_without_gradient(stage, gradients, PROJECTOR, *LANGUAGE) == []
    assert not any(n.startswith(TOWER) for n in gradients)


def test_finetune_with_the_encoder_reaches_everything(model):
    stage = Finetune(model, train_encoder=True)
    gradients = backward(stage, batch_of(model))
    assert weights_without_gradient(stage, gradients, TOWER, PROJECTOR, *LANGUAGE) == [
        "model.vision_tower.post_layernorm.weight"
    ]


def test_warmup_reaches_the_language_model_alone(model):
    stage = LanguageWarmup(model)
    gradients = backward(stage, symbolic_batch(model))
    assert weights_without_gradient(stage, gradients, *LANGUAGE) == []
    assert not any(n.startswith((TOWER, PROJECTOR)) for n in gradients)
    assert stage.place.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("make", "trained"),
    [
        (Pretrain, (TOWER, PROJECTOR)),
        (Adapt, (PROJECTOR, *LANGUAGE)),
        (Finetune, (PROJECTOR, *LANGUAGE)),
        (LanguageWarmup, LANGUAGE),
    ],
)
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_step_leaves_what_is_frozen_bit_identical(kind, make, trained):
    model = make_model(kind)
    stage = make(model)
    stage.train()
    before = {n: p.detach().clone() for n, p in stage.model.named_parameters()}
    optimizer = torch.optim.SGD([p for p in stage.parameters() if p.requires_grad], lr=0.1)
    backward(stage, symbolic_batch(model) if make is LanguageWarmup else batch_of(model))
    optimizer.step()
    moved = {n for n, p in stage.model.named_parameters() if not torch.equal(p, before[n])}
    assert len(moved) > 3 and all(n.startswith(trained) for n in moved)


def saved_in_tower(stage, batch):
    """How many tensors autograd keeps for backward while the tower runs."""
    inside, saved = [False], []

    def pack(tensor):
        if inside[0]:
            saved.append(tensor)
        return tensor

    tower = stage.tower
    tower.get_submodule("embeddings").register_forward_pre_hook(lambda *_: inside.__setitem__(0, True))
    tower.get_submodule("encoder").register_forward_hook(lambda *_: inside.__setitem__(0, False))
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        stage(batch)
    return len(saved)


def test_a_frozen_tower_keeps_no_graph(model):
    batch = batch_of(model)
    assert saved_in_tower(Adapt(model), batch) == 0
    assert saved_in_tower(Finetune(model), batch) == 0
    assert saved_in_tower(Finetune(model, train_encoder=True), batch) > 20
    assert saved_in_tower(Pretrain(model, distill_weight=0), batch) > 20


# --- the losses ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [lambda m: Pretrain(m, distill_weight=0), Adapt, Finetune])
def test_the_loss_of_a_packed_batch_is_that_of_its_questions_one_by_one(model, make):
    stage = make(model)
    samples = make_samples(model, (3, 2))
    (packed,) = stage(collate(model, samples)).values()
    alone = 0.0
    for sample in samples:
        for branch in sample.branches:
            (term,) = stage(collate(model, [Sample(sample.id, [branch], sample.pixels)])).values()
            alone += term.total.item()
    assert packed.count == "answer_tokens"
    assert packed.total.item() == pytest.approx(alone, rel=1e-5)


def test_distillation_compares_the_crop_with_its_place_in_the_image(model):
    stage = Pretrain(model, distill_weight=0.5)
    batch = batch_of(model)
    term = stage(batch)["distill"]
    assert (term.count, term.weight) == ("crops", 0.5)
    total = 0.0
    with torch.no_grad():
        for crop, box, image in zip(batch.crops, batch.crop_boxes, batch.crop_image, strict=True):
            target = model.features(crop[None]).unflatten(1, (4, 4))  # the teacher starts as the student
            student = model.features(batch.pixels[image][None])
            total += distillation_loss(target, student, box[None], torch.tensor([0]), 16).item()
    assert term.total.item() == pytest.approx(total, rel=1e-4)


def test_a_batch_without_crops_has_the_same_terms(model):
    stage = Pretrain(model)
    terms = stage(batch_of(model, crops=0))
    assert list(terms) == list(stage(batch_of(model))) == ["caption", "distill"]
    assert terms["distill"].total.item() == 0
    assert list(Pretrain(model, distill_weight=0)(batch_of(model))) == ["caption"]


def test_symbolic_images_are_sums_of_word_embeddings(model):
    stage = LanguageWarmup(model, noise=0)
    batch = symbolic_batch(model)
    words = model.llava.get_input_embeddings().weight
    expected = stage.place(patch_fourier_features(4)).repeat(2, 1)
    grids = batch.extra
    for patch, word, weight in zip(grids.patches, grids.words, grids.weights, strict=True):
        expected[patch] = expected[patch] + weight * words[word]
    torch.testing.assert_close(stage.symbolic_embeds(batch), expected.reshape(2, 16, -1))


def test_noise_is_measured_in_word_embeddings(model):
    batch = symbolic_batch(model)
    stage = LanguageWarmup(model, noise=0)
    clean = stage.symbolic_embeds(batch)
    stage.noise = 2.0
    torch.manual_seed(0)
    noise = stage.symbolic_embeds(batch) - clean
    assert (noise.std() / model.llava.get_input_embeddings().weight.std()).item() == pytest.approx(2, rel=0.1)


# --- the teacher and other state -------------------------------------------------------------------------------------


def test_the_teacher_moves_by_after_step_alone(model):
    stage = Pretrain(model, alpha=0.75)
    first = {n: t.clone() for n, t in stage.extra_state().items()}
    backward(stage, batch_of(model))
    torch.optim.SGD([p for p in stage.parameters() if p.requires_grad], lr=0.1).step()
    assert all(torch.equal(t, first[n]) for n, t in stage.extra_state().items())
    stage.after_step()
    student = stage.tower.state_dict()
    assert not torch.equal(student["embeddings.patch_embedding.weight"], first["embeddings.patch_embedding.weight"])
    for name, tensor in stage.extra_state().items():
        torch.testing.assert_close(tensor, 0.75 * first[name] + 0.25 * student[name])
    assert not any(p.requires_grad for p in stage.teacher.parameters())


@pytest.mark.parametrize("make", [Pretrain, LanguageWarmup])
def test_extra_state_round_trip(model, make):
    stage = make(model)
    with torch.no_grad():
        for tensor in stage.extra_state().values():
            tensor.add_(torch.randn_like(tensor))
    kept = {n: t.clone() for n, t in stage.extra_state().items()}
    other = make(make_model("llama", seed=9))
    assert {n: t.shape for n, t in other.extra_state().items()} == {n: t.shape for n, t in kept.items()}
    other.load_extra_state(kept)
    assert kept and all(torch.equal(t, kept[n]) for n, t in other.extra_state().items())
    assert not any(p.requires_grad for n, p in other.named_parameters() if n.startswith("teacher"))


def test_stages_without_state_have_none(model):
    for stage in (Adapt(model), Finetune(model), Pretrain(model, distill_weight=0)):
        assert stage.extra_state() == {}
        stage.load_extra_state({})
