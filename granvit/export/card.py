"""The model card of an export: what it is, how to load it, how it was made, how good it is and what it can't do."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jinja2

from granvit.export.facts import ExportSource, KnownScores
from granvit.export.licences import Licence
from granvit.export.older_names import OLDEST
from granvit.loading.checkpoint_files import read_json
from granvit.loading.run_folder import CHECKPOINT
from granvit.model.adapter import BASE, CONFIG, is_adapter
from granvit.model.dialog import CHATML, LLAMA3
from granvit.model.provenance import drawn_alone
from granvit.model.region_model import RegionModel, stock_classes
from granvit.page import percent
from granvit.questions import BBOX2CAPTION, CAPTION2BBOX, GLOBAL

# Metrics and tasks as `granvit eval` and the demo name them, in words for people.
_METRICS = {
    "rouge_l": "ROUGE-L",
    "exact": "exact",
    "cer": "character errors (less is better)",
    "wer": "word errors (less is better)",
    "acc50": "Acc@0.5",
    "acc75": "Acc@0.75",
    "miou": "mean IoU",
    "parse_rate": "answers that are a box",
}
_TASKS = {
    "describe": "say what is in a box",
    "locate": "find what a phrase describes",
    "read": "transcribe the text in a box",
    "locate_text": "find a line of text",
    "caption": "describe the whole picture",
}
# Kinds of stages that leave the language model as it was.
_LANGUAGE_FROZEN = ("stage1", "encoder")
# What llama.cpp calls the chat templates that are written here.
_TEMPLATES = {CHATML: "chatml", LLAMA3: "llama3"}
# So many of the sources that it learned from are named.
_SOURCES_NAMED = 20


def write_card(
    path: Path,
    model: RegionModel,
    source: ExportSource,
    form: str,
    name: str,
    licence: Licence | None,
    left_out: list[str],
) -> None:
    """Write README.md for an export of the form "llava", "encoder", "gguf" or "adapter"."""
    settings, vision, text = model.settings, model.llava.config.vision_config, model.llava.config.text_config
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("granvit", "assets/templates"),
        autoescape=False,  # Markdown
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    recipe = source.recipe
    base = read_json(source.checkpoint / BASE)["weights"] if form == "adapter" else {}
    page = environment.get_template("card.md.j2").render(
        form=form,
        name=name,
        licence=licence,
        settings=settings,
        stock=stock_classes(settings)[1].__name__,
        layer=model.llava.config.vision_feature_layer,
        skipped=int(model.llava.config.vision_feature_select_strategy == "default"),
        registers=getattr(vision, "num_register_tokens", 0),
        codec=model.codec,
        canvas=model.canvas,
        patch=model.patch,
        tower=type(model.llava.model.vision_tower).__name__,
        vision=vision,
        text=text,
        millions={
            "encoder": _millions(model.llava.model.vision_tower),
            "language": _millions(model.llava.model.language_model, model.llava.lm_head),
        },
        precision=str(model.llava.dtype).removeprefix("torch."),
        newline=line_break(model),
        mean=model.processor.image_processor.image_mean,
        questions={"global": GLOBAL, "before": BBOX2CAPTION[0], "after": BBOX2CAPTION[1], "find": CAPTION2BBOX},
        recipe=recipe,
        batches=[_batch(recipe, stage["loop"]) for stage in recipe["stages"]] if recipe else [],
        oldest=OLDEST,
        parts={part: _public(recipe[part]) for part in ("encoder", "language")} if recipe else {},
        init=_public(recipe["init"]) if recipe and recipe.get("init") is not None else "",
        data=source.data,
        sources=None if model.sources is None else sorted(model.sources)[:_SOURCES_NAMED],
        more_sources=max(0, len(model.sources or ()) - _SOURCES_NAMED),
        drawn=drawn_alone(model.sources),
        scores=_rows(source.scores) if source.scores else [],
        told=source.scores.told if source.scores else "",
        circumstances=source.scores.circumstances if source.scores else {},
        left_out=left_out,
        fits=_fits(recipe, text) if form == "gguf" else None,
        template=_TEMPLATES.get(model.processor.chat_template),
        adapters=_adapters(source),
        base=base,
        base_adapted=CONFIG in base,
    )
    path.write_text(page, encoding="utf-8")


def _fits(recipe: dict[str, Any] | None, text: Any) -> dict[str, str] | None:
    """Which GGUF "file" of the published language model does as well, and of which "model" if any of its files does.

    None where the run trained the language model, if only its location tokens, or it was never published.

    Runs that went on from a checkpoint don't know how that came about, and those of before don't know whether they did.
    """
    if recipe is None or recipe.get("init", "unknown") is not None:
        return None
    learns = ("train_language", "train_locations")
    if any(s["kind"] not in _LANGUAGE_FROZEN or any(s.get(name) for name in learns) for s in recipe["stages"]):
        return None
    if hasattr(text, "dequantized_from"):
        return {"file": str(text.dequantized_from).rpartition(" (")[0], "model": ""}
    name = recipe["language"]
    published = "/" in name and not Path(name).is_absolute() and not Path(name).exists()
    return {"file": f"{name.rpartition('/')[2]}.gguf", "model": name} if published else None


def _adapters(source: ExportSource) -> list[dict[str, Any]]:
    """Of each stage with LoRA its "stage", "rank" and "targets"; of a bare checkpoint what its adapter tells."""
    stages = source.recipe["stages"] if source.recipe else []
    found = [
        {"stage": stage["name"] or stage["kind"], "rank": stage["lora"]["rank"], "targets": stage["lora"]["targets"]}
        for stage in stages
        if stage.get("lora")
    ]
    if not found and is_adapter(source.checkpoint):
        found = [{"stage": "", "rank": read_json(source.checkpoint / CONFIG)["r"], "targets": []}]
    return found


def _millions(*modules: Any) -> str:
    """What modules hold, a weight that they share counted once."""
    weights = {id(p): p.numel() for module in modules for p in module.parameters()}
    return f"{sum(weights.values()) / 1e6:.1f} M"


def _batch(recipe: Mapping[str, Any], loop: Mapping[str, Any]) -> str:
    """Images a step, over all processes; runs of before did not write down how many those were."""
    mine = loop["batch_size"] * loop["accumulate"]
    return f"{mine * recipe['processes']:,}" if "processes" in recipe else f"{mine:,} a process"


def line_break(model: RegionModel) -> bool:
    """Whether the chat template puts a line break between picture and question; llama.cpp leaves it out."""
    content = [{"type": "image"}, {"type": "text", "text": "?"}]
    text = model.processor.apply_chat_template([{"role": "user", "content": content}], tokenize=False)
    return str(text).split(model.processor.image_token)[1].startswith("\n")


def _public(part: str) -> str:
    """A part's name for others to read: of a path of this machine its end, of a run's checkpoint the run's name."""
    path = Path(part)
    if not path.is_absolute() and not path.exists():
        return part
    return path.parent.name if path.name == CHECKPOINT and path.parent.name else path.name


def _rows(known: KnownScores) -> list[dict[str, str]]:
    """Score with its interval, score before training and best constant answer of each task and metric."""

    def beside(table: Mapping[str, Mapping[str, Any]], task: str, metric: str) -> Any:
        return table.get(task, {}).get(metric)

    rows = []
    for task, scores in known.values.items():
        for metric, value in scores.items():
            if metric == "count":
                continue
            interval = beside(known.intervals, task, metric)
            others = (beside(table, task, metric) for table in (known.before, known.baseline))
            before, constant = ("–" if v is None else percent(v) for v in others)
            rows.append(
                {
                    "task": _TASKS.get(task, task),
                    "metric": _METRICS.get(metric, metric),
                    "count": f"{int(scores['count']):,}",
                    "score": percent(value) + (" ({} to {})".format(*map(percent, interval)) if interval else ""),
                    "before": before,
                    "constant": constant,
                }
            )
    return rows
