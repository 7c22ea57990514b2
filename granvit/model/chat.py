"""Chat templates that show an image, for language models whose own template knows only text."""

from __future__ import annotations

from granvit.errors import GranvitError

_PARTS = (
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>\n' }}{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}"
)

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    + _PARTS
    + "{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

LLAMA3 = (
    "{{ '<|begin_of_text|>' }}{% for message in messages %}"
    "{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n' }}"
    + _PARTS
    + "{{ '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)

# Of the from-scratch presets' tokenizer, which has these tokens.
PLAIN = (
    "{{ '<|begin|>' }}{% for message in messages %}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}{{ '<image>' }}{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}"
    "{{ '<|answer|>' if message['role'] == 'user' else '<|end|>' }}{% endfor %}"
)

# Known to end, so they need no trial (see `granvit.loading.chat_template`).
OWN_TEMPLATES = (CHATML, LLAMA3, PLAIN)


def template_for(vocabulary: dict[str, int], own: str | None) -> tuple[str, str | None]:
    """The template for a tokenizer, told from its special tokens, and the token that ends a turn.

    A template that already shows an image (as the presets' does) is kept; its end token is the tokenizer's own
    (None here).

    Raises:
        ValueError: neither ChatML nor Llama 3 tokens are in the vocabulary.
    """
    if isinstance(own, str) and "<image>" in own:
        return own, None
    if "<|im_start|>" in vocabulary:
        return CHATML, "<|im_end|>"
    if "<|start_header_id|>" in vocabulary:
        return LLAMA3, "<|eot_id|>"
    raise GranvitError("no chat template with an image is known for this tokenizer: it has no ChatML or Llama 3 tokens")
