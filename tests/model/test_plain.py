"""What others wrote is plain text, whatever control tokens it spells, in every kind of tokenizer."""

import json
import pickle

import pytest
from helpers.tiny_model import TEXTS
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from granvit.coordinates import get_codec
from granvit.errors import GranvitError
from granvit.model.dialog import CHATML, LLAMA3, Dialog, PlainText
from granvit.nano.models import train_tokenizer
from granvit.questions import ask_box, ask_caption, box_exchange, caption_exchange, global_exchange

CODEC = get_codec("loc:16")
BOX = [0.1, 0.2, 0.6, 0.9]
# As in tokenizer.json of Qwen2 and Llama 3.
SPLIT = r"""(?i:'s|'t|'re)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
ALPHABET = pre_tokenizers.ByteLevel.alphabet()


def byte_level(*, normalizer=None, **model):
    raw = Tokenizer(models.BPE(**model))
    if normalizer is not None:
        raw.normalizer = normalizer
    raw.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(SPLIT), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(TEXTS, trainers.BpeTrainer(vocab_size=300, initial_alphabet=ALPHABET, show_progress=False))
    return raw


def wrapped(raw, special, template, end, added=()):
    """The tokenizer with its control tokens, and the same one without any."""
    bare = Tokenizer.from_str(raw.to_str())
    raw.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in [*special, "<image>"]])
    raw.add_tokens([*added, *(AddedToken(t, normalized=False) for t in CODEC.tokens)])
    full = PreTrainedTokenizerFast(tokenizer_object=raw, eos_token=end, pad_token=end, chat_template=template)
    return full, bare


def preset():
    full = train_tokenizer(TEXTS, 280, CODEC)
    split = json.loads(full.backend_tokenizer.to_str())
    split["added_tokens"] = [t for t in split["added_tokens"] if not t["content"].startswith("<")]
    return full, Tokenizer.from_str(json.dumps(split))


def qwen2():
    added = [AddedToken("<tool_call>", normalized=False), AddedToken("<think>", normalized=True)]
    marks = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    return wrapped(byte_level(normalizer=normalizers.NFC()), marks, CHATML, "<|im_end|>", added)


def llama3():
    marks = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    full, bare = wrapped(byte_level(ignore_merges=True), marks, LLAMA3, "<|eot_id|>")
    begin = ("<|begin_of_text|>", full.convert_tokens_to_ids("<|begin_of_text|>"))
    full.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin_of_text|> $A", special_tokens=[begin]
    )
    return full, bare


def sentencepiece():
    """Control tokens among the model's own words, a space put before every stretch, runs of spaces as added tokens."""
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<unk>", "<s>", "</s>", "[INST]"],
        initial_alphabet=ALPHABET,
        show_progress=False,
    )
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    raw.train_from_iterator(TEXTS, trainer)
    split = json.loads(raw.to_str())
    split["added_tokens"] = []
    raw = Tokenizer.from_str(json.dumps(split))
    added = [AddedToken("  ", normalized=False), AddedToken("   ", normalized=False)]
    full, bare = wrapped(raw, ["<unk>", "<s>", "</s>", "[INST]"], CHATML.replace("<|im_end|>", "</s>"), "</s>", added)
    bare.add_tokens(added)
    assert bare.token_to_id("  ") != full.convert_tokens_to_ids("  ")  # other ids, the same places
    return full, bare


MAKES = {"preset": preset, "qwen2": qwen2, "llama3": llama3, "sentencepiece": sentencepiece}
MADE = {name: make() for name, make in MAKES.items()}
DIALOGS = {name: Dialog(full, "<image>", 4) for name, (full, _) in MADE.items()}


def controls(tokenizer):
    """The ids of what may not come out of a text."""
    added = tokenizer.added_tokens_decoder.items()
    return {i for i, t in added if t.content[0] in "<[" and t.content != "<unk>"}  # what any text may hold


def by_bare(bare, text):
    return [bare.id_to_token(i) for i in bare.encode(text, add_special_tokens=False).ids]


def spelled(name):
    """Texts with control tokens of a tokenizer in them, whole, cut and put together."""
    marks = [t.content for t in MADE[name][0].added_tokens_decoder.values()]
    return st.lists(st.one_of(st.sampled_from(marks), st.text(max_size=5), st.sampled_from("<>|[] \n"))).map("".join)


@pytest.mark.parametrize("name", MAKES)
def test_every_added_token_is_text_in_what_others_wrote(name):
    (full, bare), dialog = MADE[name], DIALOGS[name]
    for i in controls(full):
        for text in ("{}", "a {} mug", "a{}b", "{0}{0}", " {}\n"):
            said = text.format(full.convert_ids_to_tokens(i))
            (ids,) = dialog.plain.encode([said])
            assert not controls(full) & set(ids)
            tokens = [full.convert_ids_to_tokens(t) for t in ids]
            assert tokens == by_bare(bare, said)
            for exchange in (global_exchange(said), caption_exchange(BOX, said, CODEC)):
                branch = dialog.branch(exchange)
                assert branch.ids[branch.answer_start :] == [*ids, dialog.end_token]
            asked = dialog.branch(box_exchange(BOX, said, CODEC))
            template = dialog.ask(ask_box("x"))
            assert controls(full) & set(asked.ids[: asked.answer_start]) == controls(full) & set(template)
            assert [t for t in asked.ids if t == dialog.image_token] == []


@pytest.mark.parametrize("name", MAKES)
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_no_text_can_spell_a_control_token(name, data):
    (full, bare), dialog = MADE[name], DIALOGS[name]
    said = data.draw(spelled(name))
    (ids,) = dialog.plain.encode([said])
    assert not controls(full) & set(ids)
    assert [full.convert_ids_to_tokens(t) for t in ids] == by_bare(bare, said)


@pytest.mark.parametrize("name", MAKES)
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_a_text_without_control_tokens_is_what_the_tokenizer_makes_of_it(name, data):
    full, dialog = MADE[name][0], DIALOGS[name]
    said = data.draw(st.one_of(st.text(), st.text("ab rst.\n  "), st.sampled_from(TEXTS)))
    marks = [full.convert_ids_to_tokens(i) for i in controls(full)]
    if any(mark in said for mark in marks):
        return
    for exchange in (
        global_exchange(said),
        caption_exchange(BOX, said, CODEC),
        box_exchange(BOX, said, CODEC),
    ):
        branch = dialog.branch(exchange)
        content = [{"type": "image"}, {"type": "text", "text": exchange.question}]
        rendered = full.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
        )
        before, after = rendered.split("<image>")
        assert branch.ids[: branch.answer_start] == full.encode(after, add_special_tokens=False)
        answer = full.encode(exchange.answer, add_special_tokens=False)
        assert branch.ids[branch.answer_start :] == [*answer, dialog.end_token]
        assert dialog.prefix_ids == full.encode(before, add_special_tokens=False) + [dialog.image_token] * 4


@pytest.mark.parametrize("name", MAKES)
def test_location_tokens_are_tokens_where_the_codec_wrote_them(name):
    full, dialog = MADE[name][0], DIALOGS[name]
    places = [full.convert_tokens_to_ids(f"<loc{bin:04d}>") for bin in (1, 3, 9, 14)]
    assert [i for i in dialog.ask(ask_caption(BOX, CODEC)) if i in places] == places
    answered = dialog.branch(box_exchange(BOX, "a <loc0001> star", CODEC))
    assert [i for i in answered.ids if i in places] == places
    assert answered.ids[answered.answer_start :] == [*places, dialog.end_token]


@pytest.mark.parametrize("name", MAKES)
def test_a_conversation_holds_the_templates_control_tokens_only(name):
    full, dialog = MADE[name][0], DIALOGS[name]
    marks = " ".join(t.content for t in full.added_tokens_decoder.values())

    def conversation(first, second):
        said = [{"type": "image"}, {"type": "text", "text": first}]
        return [{"role": "user", "content": said}, {"role": "user", "content": [{"type": "text", "text": second}]}]

    tame = dialog.converse(conversation("what?", "and?"), [4])
    hostile = dialog.converse(conversation(marks, marks), [4])
    assert [i for i in hostile if i in controls(full)] == [i for i in tame if i in controls(full)]
    assert tame.count(dialog.image_token) == 4
    one = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "what?"}]}]
    assert dialog.converse(one, [4]) == dialog.prefix_ids + dialog.ask("what?")


def test_another_process_makes_the_same_tokens():
    dialog = DIALOGS["qwen2"]
    exchange = caption_exchange(BOX, "a <|im_end|> star", CODEC)
    assert pickle.loads(pickle.dumps(dialog)).branch(exchange) == dialog.branch(exchange)


def test_a_lone_surrogate_is_reported_with_what_stands_around_it():
    with pytest.raises(GranvitError, match=r"'red \\udcff star' is not valid Unicode"):
        DIALOGS["qwen2"].plain.encode(["red \udcff star"])


def test_a_tokenizer_that_cannot_read_a_mark_as_text_says_so():
    pieces = [("<unk>", 0.0), ("</s>", -1.0), *((c, -9.0) for c in "</s>ab▁")]
    raw = Tokenizer(models.Unigram(list(dict(reversed(pieces)).items())[::-1], unk_id=0))
    raw.add_special_tokens(["</s>"])
    plain = PlainText(PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="</s>"))
    with pytest.raises(GranvitError, match="reads a control token in the plain text 'a</s>b'"):
        plain.encode(["a</s>b"])
