"""The smallest complete experiment: minutes on two CPU cores.

    granvit demo                          both stages on the embedded corpus, with evaluation and a report
    granvit train nano --corpus DIR       the same on a corpus of your own
    granvit train nano-paper              stage 2 in the paper's plain form (see `nano_paper`)
    granvit train nano-language           make the shipped language model again (about an hour)
    granvit train nano-own --corpus DIR   for a corpus of your own, with text (see `nano_own`)
    granvit train nano-encoder            make the shipped encoder again (a good hour)
    granvit train nano-reader             make the shipped encoder that reads again (half an hour)

The encoders (5 layers, 160 wide, 16-pixel patches on a 160-pixel canvas) and the language model (4 layers, 128 wide,
one token per coordinate bin) are the shipped ones, which `nano_encoder_recipe`, `nano_reader` and `nano_language` made
from nothing.
"""

from __future__ import annotations

from dataclasses import replace

from granvit.model.settings import Settings
from granvit.nano.config import EncoderWarmupConfig, LanguageWarmupConfig, WordMapSample
from granvit.questions import Task
from granvit.train.config import CachingLoop, CroppedSample, LoopConfig, SampleConfig
from granvit.train.recipes.base import EmbeddedCorpus, Recipe, cpu_precision
from granvit.train.stages.config import AdaptConfig, PretrainConfig

BINS = 80
_PRECISION = cpu_precision()
SETTINGS = Settings(codec=f"loc:{BINS}", frame="image", fit="letterbox")


def _warmup(
    name: str,
    loop: LoopConfig,
    noise: float,
    blur: float,
    subphrases: float = 0.0,
    locate: float = 1.0,
    smear: float = 0.0,
) -> LanguageWarmupConfig:
    questions: dict[Task, float] = {"global": 0.3, "bbox2caption": 1.0, "caption2bbox": locate}
    sample = SampleConfig(questions, subphrases=subphrases)
    return LanguageWarmupConfig(sample, loop, smoothing=1.0, noise=noise, blur=blur, smear=smear, name=name)


def nano_language() -> Recipe:
    """`LanguageWarmup` of the shipped language model, on symbolic images of the embedded corpus.

    First it learns to read what a box holds. Then all three questions, and parts of phrases ("red star" where there
    is but one), without which a small model is slow to learn that a phrase is a conjunction. Last the images are
    blurred: from blurred images alone it had not learned to read after 800 steps.
    """
    reading = LoopConfig(
        steps=600,
        batch_size=32,
        lr=2e-3,
        min_lr_ratio=0.7,
        warmup_steps=100,
        weight_decay=0.05,
        betas=(0.9, 0.98),
        precision=_PRECISION,
        save_every=300,
    )
    clear = replace(reading, steps=900, min_lr_ratio=0.5, warmup_steps=20, seed=1)
    # Of all words the first that tells objects apart, the colour, is learned last; places outweigh it in the loss.
    again = replace(clear, steps=400, lr=1e-3, min_lr_ratio=0.02, seed=3)
    last = replace(again, steps=500, seed=4)
    smeared = replace(again, steps=350, lr=1.5e-3, seed=5)
    blurred = replace(clear, steps=700, lr=1.2e-3, min_lr_ratio=0.02, seed=2)
    return Recipe(
        name="nano-language",
        encoder="nano-untrained",
        language="nano-untrained",
        settings=SETTINGS,
        corpus=EmbeddedCorpus(train=200_000, val=200, seed=7),
        stages=[
            _warmup("reading", reading, noise=0.3, blur=0.0, locate=0.0),
            _warmup("clear", clear, noise=0.3, blur=0.0, subphrases=1.0),
            _warmup("blurred", blurred, noise=0.5, blur=1.0, subphrases=0.3, locate=0.4),
            _warmup("again", again, noise=0.4, blur=0.5, locate=0.15),
            _warmup("last", last, noise=0.4, blur=0.7, locate=0.1),
            _warmup("smeared", smeared, noise=0.4, blur=0.4, subphrases=0.3, locate=0.8, smear=1.0),
        ],
    )


def nano_encoder_recipe() -> Recipe:
    """`EncoderWarmup` of the shipped encoder: which words belong to a picture of one or two objects.

    From random weights stage 1 stands still for hundreds of steps, as long as no patch looks different from the next;
    the paper starts from SigLIP2, which has seen billions of pictures with their captions. Most pictures of the web
    show one thing, as these do; scenes of many are left for stage 1. The first stage learns colours and patterns, the
    second the rest of the patterns and a little of the shapes, which no single patch shows.
    """
    first = LoopConfig(
        steps=5000,
        batch_size=16,
        lr=1e-3,
        min_lr_ratio=0.02,
        warmup_steps=200,
        weight_decay=0.02,
        betas=(0.9, 0.98),
        precision=_PRECISION,
        save_every=500,
    )
    words = WordMapSample({"bbox2caption": 1.0})
    return Recipe(
        name="nano-encoder",
        encoder="nano-untrained",
        language="nano",
        settings=SETTINGS,
        corpus=EmbeddedCorpus(train=40_000, val=200, documents=0.05, objects=(1, 2), seed=3),
        stages=[
            EncoderWarmupConfig(words, first),
            EncoderWarmupConfig(words, replace(first, seed=1), name="again"),
        ],
    )


def _by_muon(steps: int, batch_size: int) -> LoopConfig:
    """How parts that learn by Muon are trained: all of the blocks at six times the rate of the rest.

    That is the blocks' matrices, which are Muon's, and their norms and biases, which are AdamW's.
    """
    return LoopConfig(
        steps=steps,
        batch_size=batch_size,
        optimizer="muon",
        lr=1e-3,
        optimizer_groups={"layers": 6.0},
        min_lr_ratio=0.02,
        warmup_steps=50,
        weight_decay=0.05,
        betas=(0.9, 0.98),
        precision=_PRECISION,
    )


def nano_reader() -> Recipe:
    """`EncoderWarmup` of the shipped encoder that reads: which letter is in which patch of rendered text.

    By Muon, with which it learns far faster than with AdamW (docs/experiments.md). A tenth of the pictures are scenes,
    whose words it learns likewise.
    """
    loop = replace(_by_muon(steps=3000, batch_size=16), warmup_steps=100, save_every=500)
    sample = WordMapSample({"bbox2caption": 1.0}, max_regions=1, word_map=True)
    return Recipe(
        name="nano-reader",
        encoder="nano-untrained",
        language="nano",
        settings=SETTINGS,
        corpus=EmbeddedCorpus(train=24_000, val=200, documents=0.0, prints=0.9, seed=11),
        stages=[EncoderWarmupConfig(sample, loop)],
    )


def nano() -> Recipe:
    """Both stages, in minutes: `granvit demo`, or `granvit train nano --corpus DIR`.

    Stage 1 is the paper's (Global + Bbox2Caption, distillation with lambda 1 and alpha 0.9), but that the teacher sees
    one crop a picture (its first region's, at 64 pixels), that Global is asked of a fifth of the pictures, and that the
    projector learns slower. Stage 2 departs from the paper in two ways, because a language model of
    a million parameters forgets what a billion parameters keep: a tenth of the Bbox2Caption questions stay in the
    mixture, and labels are smoothed over location bins. `nano_paper` is the plain form.
    """
    return Recipe(
        name="nano",
        encoder="nano",
        language="nano",
        settings=SETTINGS,
        corpus=EmbeddedCorpus(train=12_000, documents=0.1),
        stages=[
            PretrainConfig(
                CroppedSample({"global": 0.2, "bbox2caption": 1.0}, crops=1, crop_size=64),
                LoopConfig(
                    steps=900,
                    batch_size=16,
                    lr=1e-3,
                    min_lr_ratio=0.02,
                    warmup_steps=50,
                    weight_decay=0.02,
                    betas=(0.9, 0.98),
                    # At five times the rate its output's RMS grew to 160 times that of word embeddings: stage 1 still
                    # read well, but stage 2 hardly learned to locate (docs/method.md). So it is 12 times.
                    optimizer_groups={"multi_modal_projector": 0.3},
                    precision=_PRECISION,
                ),
            ),
            AdaptConfig(
                SampleConfig({"global": 0.2, "bbox2caption": 0.1, "caption2bbox": 1.0}),
                CachingLoop(
                    steps=320,
                    batch_size=16,
                    lr=8e-4,
                    min_lr_ratio=0.02,
                    warmup_steps=20,
                    betas=(0.9, 0.98),
                    precision=_PRECISION,
                ),
                smoothing=1.0,
            ),
        ],
    )


def nano_paper() -> Recipe:
    """`nano` with stage 2 in the paper's plain form: Global + Caption2Bbox only, plain cross-entropy."""
    recipe = nano()
    recipe.name = "nano-paper"
    adapt = recipe.stages[1]
    assert isinstance(adapt, AdaptConfig)
    adapt.sample.questions, adapt.smoothing = {"global": 1.0, "caption2bbox": 1.0}, 0.0
    return recipe


def nano_own() -> Recipe:
    """`nano` for a corpus of your own: `make demo CORPUS=DIR`, or `granvit train nano-own --corpus DIR`.

    It starts from the encoder that reads, and both parts first learn what the corpus is made of: the encoder which
    letters and words lie in which patch, the language model the corpus's words, on symbolic images; by Muon, with
    which small models learn to read far sooner. Images with text are shown in windows of some hundred pixels, where
    letters are as large as patches. All questions are asked in stage 2, since real corpora are small.
    """
    recipe = nano()
    recipe.name, recipe.encoder, recipe.text_tile = "nano-own", "nano-reader", 100
    sample = WordMapSample({"bbox2caption": 1.0}, word_map=True)
    patches = EncoderWarmupConfig(sample, _by_muon(steps=1200, batch_size=32), name="patches")
    words = _warmup("words", _by_muon(steps=2000, batch_size=16), noise=0.3, blur=0.1, locate=1.0)
    recipe.stages = [patches, words, *recipe.stages]
    for stage in recipe.stages:
        stage.sample.windows, stage.sample.window_kind, stage.sample.window_side = 1.0, "text", (0.5, 0.75)
        stage.sample.max_regions, stage.sample.max_answer, stage.sample.mirror = 12, 32, 0.5
    recipe.stages[2].loop.steps, recipe.stages[3].loop.steps = 1200, 1200
    recipe.stages[3].loop.lr = 5e-4
    recipe.stages[3].sample.questions = {"global": 0.3, "bbox2caption": 1.0, "caption2bbox": 1.0}
    return recipe
