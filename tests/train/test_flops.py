import pytest
import torch
from helpers.tiny_encoders import TOWERS, make_encoder
from helpers.tiny_model import TEXTS, collate, make_language, make_model, make_samples, whole_mask
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from granvit.coordinates import get_codec
from granvit.model.assemble import assemble
from granvit.model.encoders import Encoder
from granvit.model.region_model import Settings
from granvit.nano.models import train_tokenizer
from granvit.train.stages.adapt import Adapt
from granvit.train.stages.finetune import Finetune
from granvit.train.stages.pretrain import Pretrain
from granvit.train.timing import peak_flops, peak_of

STAGES = {
    "stage1": lambda model: Pretrain(model),
    "stage1 without teacher": lambda model: Pretrain(model, distill_weight=0),
    "stage2": lambda model: Adapt(model),
    "finetune all": lambda model: Finetune(model, train_encoder=True),
}


def counted_by_torch(stage, batch) -> float:
    """What torch dispatches with the whole mask; SDPA as plain products, whose backward pass costs just twice."""
    with whole_mask(), FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        sum(term.total for term in stage(batch).values()).backward()
    return counter.get_total_flops()


def hidden_pairs(model, batch) -> float:
    """The arithmetic of the pairs that the mask forbids, which plain SDPA computes and throws away."""
    config = model.llava.config.text_config
    forbidden = batch.mask().numel() - int(batch.mask().sum())
    return 3 * 4 * forbidden * config.hidden_size * config.num_hidden_layers


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("kind", ["qwen2", "llama"])
def test_a_step_needs_what_torch_counts_less_what_the_mask_hides(name, kind):
    model = make_model(kind)
    batch = collate(model, make_samples(model, (3, 2), crops=2), max_tokens=400)
    assert len(batch.input_ids) == 1 and batch.padding == 0
    stage = STAGES[name](model).train()
    ours = stage.flops(batch)
    assert ours == pytest.approx(counted_by_torch(stage, batch) - hidden_pairs(model, batch), rel=0.02)


@pytest.mark.parametrize("kind", [kind for kind in TOWERS if kind != "naflex"])
def test_every_family_of_encoders(kind):
    tokenizer = train_tokenizer(TEXTS, 280, get_codec("loc:16"))
    encoder = Encoder.of(make_encoder(kind))
    model = assemble(encoder, (make_language("qwen2", tokenizer), tokenizer), Settings("loc:16"), 0)
    batch = collate(model, make_samples(model, (3,), crops=2))
    stage = Pretrain(model).train()
    torch_flops = counted_by_torch(stage, batch) - hidden_pairs(model, batch)
    assert stage.flops(batch) == pytest.approx(torch_flops, rel=0.03)


def test_the_parts_are_those_of_the_step():
    model = make_model("qwen2")
    batch = collate(model, make_samples(model, (3, 2), crops=2))
    stage1, stage2 = Pretrain(model).step_flops.parts(batch), Adapt(model).step_flops.parts(batch)
    assert sum(stage1.values()) == pytest.approx(Pretrain(model).flops(batch))
    assert stage1["teacher"] > 0 == stage2["teacher"]
    assert stage1["encode"] == stage2["encode"]
    frozen, trained = stage1["language"], stage2["language"]
    assert frozen == trained, "forward costs the same"
    # A frozen language model hands gradients through, a trained one makes its own besides.
    encoder_backward = 2 * stage1["encode"]
    assert stage1["backward"] < encoder_backward + 1.5 * (frozen + stage1["head"])
    assert stage2["backward"] > 1.9 * (trained + stage2["head"])


def test_padding_and_siblings_cost_nothing():
    model = make_model("qwen2")
    samples = make_samples(model, (3, 1))
    stage = Adapt(model)
    alone = sum(stage.flops(collate(model, [sample])) for sample in samples)
    together = collate(model, samples)
    assert together.padding > 0 and stage.flops(together) == alone
    assert stage.flops(collate(model, samples, max_tokens=400)) == alone


@pytest.mark.parametrize(
    "name, tflops",
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
        ("NVIDIA GeForce GTX 1080", None),
    ],
)
def test_peaks_go_by_the_devices_name(name, tflops):
    assert peak_of(name) == (tflops and tflops * 1e12)


def test_a_cpu_has_no_peak():
    assert peak_flops(torch.device("cpu")) is None
