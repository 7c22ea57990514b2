"""An untrusted chat template is rendered once in a sandboxed process with limits, before it is rendered here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Mapping
from functools import cache
from typing import Any

from granvit.errors import GranvitError

# A template is a program: nested loops, or a text repeated a billion times, would never end or take all memory.
_SECONDS = 5
_MEMORY = 512_000_000
_LONGEST = 1_000_000
_WAIT = 120  # for the process to start at all, on a busy machine

_CHILD = """
import json, math, resource, sys, time
given = json.load(sys.stdin)
sys.path[:] = given["path"]
from transformers.utils.chat_template_utils import render_jinja_template
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize() if sys.platform == "linux" else 1 << 40
resource.setrlimit(resource.RLIMIT_AS, (used + given["memory"],) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + given["seconds"],) * 2)
try:
    longest = 0
    for prompt in (True, False):
        texts, _ = render_jinja_template(
            given["conversations"], chat_template=given["template"], add_generation_prompt=prompt, **given["tokens"]
        )
        longest = max(longest, *map(len, texts))
    print(json.dumps({"characters": longest}))
except MemoryError:
    print(json.dumps({"memory": True}))
except Exception as error:
    print(json.dumps({"error": " ".join(f"{type(error).__name__}: {error}".split())[:300]}))
"""


class TemplateError(GranvitError):
    """A chat template that does not end, grows without bounds or cannot be rendered."""


def check_template(template: Any, tokens: Mapping[str, str], where: str) -> None:
    """Render a question about a picture with a checkpoint's template, in bounded time and memory.

    Args:
        template: one template, or several by their names, as tokenizers and processors hold them.
        tokens: special tokens by name, which templates refer to ("bos_token": "<s>").
        where: what the error names.

    Raises:
        TemplateError: it takes more than five seconds or 512 MB, gives more than a million characters, or fails.
    """
    named = tuple(sorted((name, token) for name, token in tokens.items() if isinstance(token, str)))
    for one in template.values() if isinstance(template, dict) else [template]:
        fault = _fault(one, named) if isinstance(one, str) else "is no text"
        if fault is not None:
            raise TemplateError(f"{where}: chat_template {fault}")


@cache
def _fault(template: str, tokens: tuple[tuple[str, str], ...]) -> str | None:
    """What is wrong with a template; None where nothing is."""
    content = [{"type": "image"}, {"type": "text", "text": "What is this?"}]
    given = {
        "path": [entry for entry in sys.path if entry],
        "template": template,
        "conversations": [[{"role": "user", "content": content}]],
        "tokens": dict(tokens),
        "seconds": _SECONDS,
        "memory": _MEMORY,
    }
    try:
        done = subprocess.run(
            [sys.executable, "-I", "-c", _CHILD], input=json.dumps(given).encode(), capture_output=True, timeout=_WAIT
        )
    except subprocess.TimeoutExpired:
        return f"could not be rendered within {_WAIT} s"
    lines = done.stdout.decode(errors="replace").splitlines()
    if done.returncode < 0 or not lines:
        return f"does not end within {_SECONDS} s and {_MEMORY // 10**6} MB"
    said = json.loads(lines[-1])
    if "error" in said:
        return f"cannot be rendered: {said['error']}"
    if "memory" in said or said["characters"] > _LONGEST:
        return f"gives more than {_LONGEST:,} characters, or needs more than {_MEMORY // 10**6} MB"
    return None
