"""The licence that a model card states: one that the hub knows by name, or another with the place of its text."""

from __future__ import annotations

import re
from dataclasses import dataclass
from difflib import get_close_matches

from granvit.errors import ExportError

# What the hub takes in a card's front matter (huggingface.co/docs/hub/repositories-licenses, August 2026).
HUB = tuple(
    """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m bigscience-bloom-rail-1.0 bigcode-openrail-m
    afl-3.0 artistic-2.0 bsl-1.0 bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5
    cc-by-3.0 cc-by-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0 gpl-3.0
    lgpl lgpl-2.1 lgpl-3.0 isc h-research intel-research lppl-1.3c ms-pl apple-ascl apple-amlr mpl-2.0 odc-by odbl
    openmdw-1.0 openmdw-1.1 openrail++ osl-3.0 postgresql ofl-1.1 ncsa unlicense zlib pddl lgpl-lr deepfloyd-if-license
    fair-noncommercial-research-license llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 grok2-community gemma unknown
    """.split()
)
OTHER = "other"
_WAY = f"any other is --license {OTHER} --license-name NAME --license-link URL"
_NAME = re.compile(r"\w[\w .+-]{0,99}")
_LINK = re.compile(r"https?://[^\s<>()\[\]\"'\\]{1,500}")


@dataclass(frozen=True)
class Licence:
    """A licence as the hub knows it.

    Attributes:
        id: its name there, or "other".
        name, link: of another one what it is called, and where its text is.
    """

    id: str
    name: str = ""
    link: str = ""


def licence_of(text: str | None, name: str | None = None, link: str | None = None) -> Licence | None:
    """The licence of that name, in whatever case; None where none is stated.

    Raises:
        ExportError: the hub knows no such licence, another one has no `name` or `link`, or one that is none.
    """
    given = text.strip().lower() if text is not None else None
    if given != OTHER:
        for option, value in (("name", name), ("link", link)):
            if value is not None:
                raise ExportError(f"--license-{option} {value!r}: only with --license {OTHER}")
    if given is None:
        return None
    if given in HUB:
        return Licence(given)
    if given != OTHER:
        near = get_close_matches(given, HUB, 3)
        meant = f"did you mean {', '.join(near)}? " if near else ""
        raise ExportError(f"--license {text!r}: the hub knows no such licence; {meant}{_WAY}")
    for option, value, pattern in (("name", name, _NAME), ("link", link, _LINK)):
        if value is None:
            raise ExportError(f"--license {OTHER}: --license-{option} is missing")
        if not pattern.fullmatch(value):
            wanted = "a name of letters, digits, blanks and .+-" if pattern is _NAME else "an address, https://..."
            raise ExportError(f"--license-{option} {value!r}: {wanted} is expected")
    assert name is not None and link is not None
    return Licence(OTHER, name, link)
