from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers.tiny_model import make_model
from PIL import Image
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from granvit.coordinates import get_codec
from granvit.model import forward
from granvit.model.forward import AnswerLoss, image_token_norm, project, scale_projector


@pytest.fixture(scope="module")
def model():
    return make_model()


def logits_and_labels(model, count=40):
    torch.manual_seed(0)
    tokenizer = model.processor.tokenizer
    first = tokenizer.convert_tokens_to_ids("<loc0000>")
    labels = torch.cat([torch.randint(0, first, (count,)), first + torch.randint(0, 16, (count,))])
    return torch.randn(2 * count, len(tokenizer)), labels[torch.randperm(2 * count)], first


def loss_of(model, smoothing):
    return AnswerLoss(model.processor.tokenizer, model.codec, smoothing)


def test_no_smoothing_is_plain_cross_entropy(model):
    logits, labels, _ = logits_and_labels(model)
    plain = F.cross_entropy(logits, labels, reduction="sum")
    for smoothing in (0.0, 1e-3):
        torch.testing.assert_close(loss_of(model, smoothing)(logits, labels), plain)
    assert abs(loss_of(model, 1.0)(logits, labels) - plain) > 1


@pytest.mark.parametrize("smoothing", [0.0, 0.5, 3.0])
def test_every_answer_token_weighs_one_whatever_the_smoothing(model, smoothing):
    _, labels, _ = logits_and_labels(model)
    uniform = torch.zeros(len(labels), len(model.processor.tokenizer))
    expected = len(labels) * np.log(uniform.shape[1])
    assert loss_of(model, smoothing)(uniform, labels).item() == pytest.approx(expected, rel=1e-5)


def test_smoothed_target_by_hand(model):
    logits, _, first = logits_and_labels(model)
    log_probs = F.log_softmax(logits[0], -1)[first : first + 16]
    gauss = torch.tensor([np.exp(-((i - 3) ** 2) / (2 * 1.5**2)) for i in range(16)], dtype=torch.float32)
    expected = -(gauss / gauss.sum() * log_probs).sum()
    torch.testing.assert_close(loss_of(model, 1.5)(logits[:1], torch.tensor([first + 3])), expected)


def test_one_bin_off_costs_less_than_five(model):
    _, _, first = logits_and_labels(model)
    loss, labels = loss_of(model, 1.0), torch.tensor([first + 8])

    def at(bin_):
        logits = torch.zeros(1, len(model.processor.tokenizer))
        logits[0, first + bin_] = 8
        return loss(logits, labels).item()

    assert at(7) == pytest.approx(at(9))
    assert at(8) < at(9) < at(13)


def test_a_cell_is_smoothed_over_those_around_it_and_a_size_over_sizes():
    model = make_model("qwen2", codec="cell:5")
    tokens = model.codec.tokens
    ids = model.processor.tokenizer.convert_tokens_to_ids(tokens)
    targets = loss_of(model, 1.0).get_buffer("targets")

    def of(token):
        return dict(zip(tokens, targets[tokens.index(token)].tolist(), strict=True))

    cell, size = of("<cell0012>"), of("<wide02>")
    assert cell["<cell0011>"] == pytest.approx(cell["<cell0007>"])
    assert cell["<cell0012>"] > cell["<cell0011>"] > cell["<cell0006>"] > 0
    assert sum(cell[token] for token in tokens[:25]) == pytest.approx(1) and cell["<cell0004>"] < cell["<cell0006>"]
    assert size["<wide01>"] == pytest.approx(size["<wide03>"])
    assert size["<wide02>"] > size["<wide01>"] > size["<wide00>"] > 0
    assert sum(size[token] for token in tokens[25:30]) == pytest.approx(1) and size["<high02>"] == 0
    assert ids == list(range(ids[0], ids[0] + 35))


def test_codecs_without_bins_are_not_smoothed(model):
    logits, labels, _ = logits_and_labels(model)
    decimal = AnswerLoss(model.processor.tokenizer, get_codec("decimal"), 2.0)
    torch.testing.assert_close(decimal(logits, labels), F.cross_entropy(logits, labels, reduction="sum"))


def test_scattered_location_tokens_are_refused():
    tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda tokens: [3 * i for i in range(len(tokens))])
    with pytest.raises(ValueError, match="contiguous"):
        AnswerLoss(tokenizer, get_codec("loc:16"), 1.0)


def test_a_batch_of_words_alone_and_of_places_alone(model):
    logits, labels, first = logits_and_labels(model)
    loss = loss_of(model, 1.0)
    words = labels < first
    parts = loss(logits[words], labels[words]) + loss(logits[~words], labels[~words])
    torch.testing.assert_close(parts, loss(logits, labels))


# --- in pieces -------------------------------------------------------------------------------------------------------


def states_and_head(model, dtype=torch.float64):
    _, labels, _ = logits_and_labels(model)
    head = torch.nn.Linear(16, len(model.processor.tokenizer), bias=False, dtype=dtype)
    return torch.randn(len(labels), 16, dtype=dtype, requires_grad=True), head, labels


@pytest.mark.parametrize("smoothing", [0.0, 1.5])
@pytest.mark.parametrize("rows", [1, 7, 79, 80])
def test_pieces_give_loss_and_gradients_of_the_whole(model, monkeypatch, smoothing, rows):
    loss = loss_of(model, smoothing)
    states, head, labels = states_and_head(model, torch.float32)
    results = []
    for size in (1 << 28, 4 * head.out_features * rows):
        monkeypatch.setattr(forward, "CHUNK_BYTES", size)
        states.grad = head.weight.grad = None
        total = loss.of_states(head, states, labels)
        total.backward()
        results.append((total.detach(), states.grad, head.weight.grad))
    for ours, whole in zip(*results, strict=True):
        assert (ours - whole).abs().max() <= 1e-6 * whole.abs().max()
    torch.testing.assert_close(results[0][0], loss(head(states), labels).detach())


@pytest.mark.parametrize("trained", [True, False])
def test_pieces_never_keep_the_logits_of_the_whole(model, monkeypatch, trained):
    loss = loss_of(model, 1.0)
    states, head, labels = states_and_head(model)
    head.requires_grad_(trained)

    def largest(rows):
        monkeypatch.setattr(forward, "CHUNK_BYTES", 4 * head.out_features * rows)
        saved, made = [0], [0]

        class Made(TorchDispatchMode):
            def __torch_dispatch__(self, func, types, args=(), kwargs=None):
                result = func(*args, **(kwargs or {}))
                made.extend(t.numel() for t in tree_leaves(result) if isinstance(t, torch.Tensor))
                return result

        def pack(tensor):
            saved.append(tensor.numel())
            return tensor

        with Made():
            with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
                total = loss.of_states(head, states, labels)
            total.backward()
        return max(saved), max(made)

    logits = len(labels) * head.out_features
    assert largest(len(labels)) == (logits, logits)
    kept, made = largest(8)
    # Between the passes states, weights and labels are kept; within them one piece's logits, or a weight's gradient.
    assert kept <= max(states.numel(), head.weight.numel())
    assert made <= max(8 * head.out_features, head.weight.numel()) < logits / 4


def test_no_answers_cost_nothing(model):
    states, head, labels = states_and_head(model)
    assert loss_of(model, 1.0).of_states(head, states[:0], labels[:0]) == 0


def test_location_tokens_in_the_middle_of_a_vocabulary():
    """Words before and after them, the very next ones too, are words."""
    tokenizer = SimpleNamespace(convert_tokens_to_ids=lambda tokens: [10 + i for i in range(len(tokens))])
    smooth = AnswerLoss(tokenizer, get_codec("loc:16"), 1.0)
    logits = torch.randn(4, 40, generator=torch.Generator().manual_seed(0))
    words = torch.tensor([0, 9, 26, 39])
    torch.testing.assert_close(smooth(logits, words), F.cross_entropy(logits, words, reduction="sum"))
    for place in (10, 25):
        assert (
            abs(smooth(logits[:1], torch.tensor([place])) - F.cross_entropy(logits[:1], torch.tensor([place]))) > 0.01
        )


def test_a_projector_is_scaled_to_the_size_of_word_embeddings():
    model = make_model()
    features = torch.randn(2, 16, 32, generator=torch.Generator().manual_seed(0))
    words = model.llava.get_input_embeddings().weight.std()
    with torch.no_grad():
        model.llava.model.multi_modal_projector.linear_2.weight.mul_(37)
        assert project(model.llava, features).std() > 5 * words
        scale_projector(model.llava, features)
        assert project(model.llava, features).std() == pytest.approx(words.item(), rel=0.01)
    assert image_token_norm(model.llava, features) == pytest.approx(1, rel=0.05)


def test_pixels_are_normalised_as_the_stock_image_processor_does():
    model = make_model()
    pixels = np.random.default_rng(0).integers(0, 256, (model.canvas, model.canvas, 3), dtype=np.uint8)
    stock = model.processor.image_processor(Image.fromarray(pixels), return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(model.normalise(torch.from_numpy(pixels)[None]), stock, rtol=0, atol=1e-6)
