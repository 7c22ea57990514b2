"""Steps on a device that is not there; what each of them takes, or why it fails, as one line of JSON."""

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._dynamo.utils import counters

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from sizes import make_model, make_samples  # noqa: E402

from granvit.model import attention  # noqa: E402
from granvit.model.forward import compiled, recomputed  # noqa: E402
from granvit.model.packing import Batch, pack  # noqa: E402
from granvit.model.region_model import RegionModel  # noqa: E402
from granvit.train.fake import Allocated, device_of, fake_step, faked, plain_step  # noqa: E402
from granvit.train.optimizer import make_optimizer  # noqa: E402
from granvit.train.stages.adapt import Adapt  # noqa: E402
from granvit.train.stages.base import AnsweringStage  # noqa: E402
from granvit.train.stages.finetune import Finetune  # noqa: E402
from granvit.train.stages.pretrain import Pretrain  # noqa: E402

TEXTS = ["a small red star", "a large blue ring"] * 20
STAGES = {
    "pretrain": lambda model: Pretrain(model),
    "pretrain without teacher": lambda model: Pretrain(model, distill_weight=0.0),
    "adapt": lambda model: Adapt(model),
    "finetune": lambda model: Finetune(model, train_encoder=True),
    "no crop in the batch": lambda model: Pretrain(model),
}


def model_of(size: Any) -> RegionModel:
    return make_model(size, TEXTS, "meta" if size == "paper" else "cpu")


def batch_of(
    model: RegionModel, size: str, stage: str, images: int = 4, regions: int = 6, max_tokens: int | None = None
) -> Batch:
    crops = 0 if stage in ("adapt", "finetune", "no crop in the batch") else 2
    samples = make_samples(model, TEXTS, images, regions, stage == "adapt", crops, 512 if size == "paper" else 64)
    return pack(samples, model.dialog.prefix_ids, model.dialog.image_token, model.dialog.pad_token, max_tokens)


def all_stages(size: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, make in STAGES.items():
        for precision in ("bf16",) if size == "paper" else ("fp32", "bf16"):
            stage = shallow(name) if size == "paper" else make(model_of(size)).train()
            memory = fake_step(stage, batch_of(stage.region_model, size, name), "gpu", precision == "bf16")
            found[f"{size} {name} {precision}"] = [memory.weights, memory.between, memory.peak]
    return found


def real_peak(stage: AnsweringStage, batch: Batch) -> int:
    """What a real step on the CPU allocates at most, weights included."""
    optimizer = make_optimizer(stage, 1e-5, 0.0, (0.9, 0.999), {})
    allocated = Allocated("cpu")
    allocated.take(stage.parameters(), stage.buffers())
    allocated.take([tensor for tensor in vars(batch).values() if isinstance(tensor, Tensor)])
    for _ in range(2):
        with allocated:
            plain_step(stage, batch, optimizer)
    return allocated.peak


def on_cpu() -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in ("pretrain", "adapt"):
        model = make_model("nano", TEXTS, "cpu")
        batch = batch_of(model, "nano", name, images=16)
        real = real_peak(STAGES[name](model).train(), batch)
        found[f"memory of {name}"] = fake_step(STAGES[name](model).train(), batch, "cpu").peak, real
    stage = shallow("adapt")
    every = {id(p): p for p in stage.parameters()}.values()
    counts = sum(p.numel() for p in every), sum(p.numel() for p in every if p.requires_grad)
    memory = fake_step(stage, batch_of(stage.region_model, "paper", "adapt"), "gpu", bf16=True)
    return {**found, "bytes of adapt": ([memory.weights, memory.between, memory.peak], *counts)}


def failure(stage: AnsweringStage, batch: Batch) -> str:
    try:
        fake_step(stage, batch, "gpu", bf16=True, steps=1)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "nothing"


def wrong() -> dict[str, Any]:
    model = make_model("nano", TEXTS, "cpu")
    found: dict[str, Any] = {}

    def shifted(llava: Any, features: Tensor) -> Tensor:
        return llava.model.multi_modal_projector(features) + torch.ones(features.shape[1], 1)

    with patch("granvit.train.stages.pretrain.project", shifted):
        found["a tensor made on the CPU"] = failure(Pretrain(model).train(), batch_of(model, "nano", "pretrain"))
    whole = attention.attend

    def careless(module: Any, query: Tensor, *args: Any, **options: Any) -> Any:
        with patch.object(Tensor, "to", lambda tensor, *_: tensor):  # queries stay as rotary embeddings left them
            return whole(module, query.float(), *args, **options)

    with patch.dict(attention.AttentionInterface._global_mapping, {attention.PACKED: careless}):
        found["queries of another type"] = failure(Adapt(model).train(), batch_of(model, "nano", "adapt"))
    with patch.object(Adapt, "answers", lambda self, batch, embeds: float(embeds.sum())):
        found["a number read back from the device"] = failure(Adapt(model).train(), batch_of(model, "nano", "adapt"))
    return found


# Images, regions of each, and what a row holds.
BATCHES = ((2, 3, None), (6, 5, 2560), (4, 12, None), (2, 20, None), (7, 2, 3840))


def shallow(name: str) -> AnsweringStage:
    """A stage at the paper's widths, of two blocks each: alike blocks are compiled once."""
    stage = STAGES[name](model_of("paper")).train()
    encoders = [stage.tower, *([stage.teacher.tower] if getattr(stage, "teacher", None) else [])]
    for body in (
        *(getattr(tower, "vision_model", tower).encoder for tower in encoders),
        stage.model.model.language_model,
    ):
        body.layers = body.layers[:2]
    return stage


def graphs(name: str, backend: str, recompute: bool = False) -> list[int]:
    """How many graphs were made after each of five batches; a break in a block, or one more after two, fails."""
    torch._dynamo.reset()
    counters.clear()
    stage = shallow(name)
    target, autocast = device_of("gpu", bf16=True)
    batches, made = [batch_of(stage.region_model, "paper", name, *shape) for shape in BATCHES], []
    recompiling = torch._dynamo.config.patch(error_on_recompile=True)
    with faked(stage, target) as fake_batch, ExitStack() as stack:
        stack.enter_context(compiled(stage, backend=backend, fullgraph=True))
        if recompute:
            stack.enter_context(recomputed([stage.tower, stage.model.model.language_model]))
        for number, batch in enumerate(batches):
            if number == 2:
                stack.enter_context(recompiling)
            with autocast:
                terms = stage(fake_batch(batch))
            torch.stack([term.total.float() for term in terms.values()]).sum().backward()
            made.append(counters["stats"]["unique_graphs"])
    return made


def compiled_eagerly() -> dict[str, Any]:
    whole = attention.attend

    def interrupted(*args: Any, **options: Any) -> Any:
        torch._dynamo.graph_break()
        return whole(*args, **options)

    with patch.dict(attention.AttentionInterface._global_mapping, {attention.PACKED: interrupted}):
        broken = graphs_or_error("adapt")
    return {"a break": broken, **{name: graphs(name, "eager") for name in ("pretrain", "adapt")}}


def compiled_with_backward() -> dict[str, Any]:
    whole = attention.visible

    def numbered(codes: Tensor, *others: Tensor) -> Any:
        visible, positions = whole(codes, *others), tuple(range(codes.shape[1]))
        return lambda row, head, query, key: visible(row, head, query, key) & (key < len(positions))

    with patch.object(attention, "visible", numbered):
        recompiled = graphs_or_error("adapt")
    names = ("pretrain", "adapt", "finetune")
    found: dict[str, Any] = {f"{name}, backward traced": graphs(name, "aot_eager") for name in names}
    again = graphs("pretrain", "aot_eager", recompute=True)
    return found | {"pretrain, recomputed": again, "a mask of one length": recompiled}


def graphs_or_error(name: str) -> str:
    try:
        return f"no error: {graphs(name, 'eager')}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    parts = {
        "nano": lambda: all_stages("nano"),
        "paper": lambda: all_stages("paper"),
        "cpu": on_cpu,
        "wrong": wrong,
        "eager": compiled_eagerly,
        "aot_eager": compiled_with_backward,
    }
    result: dict[str, Any] = {}
    for part in sys.argv[1:]:
        result.update(parts[part]())
    print(json.dumps(result))
