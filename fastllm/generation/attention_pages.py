"""Pictures of where a translation looks: a matrix by matplotlib, and a page of HTML that needs nothing else."""

import html
import json
from collections.abc import Sequence
from pathlib import Path

from fastllm.errors import UserError, UserImportError
from fastllm.files import write_atomically, write_text
from fastllm.generation.translation import Alignment, Translation

_END, _SPACE = "⏎", "␣"  # shown for the token that ends a sentence, and for one that is a space


def draw_attention(translation: Translation, path: Path) -> None:
    """Draw a translation's alignments, a matrix for each part, the target's tokens downwards; by path's suffix.

    Raises:
        UserError: matplotlib is missing, or cannot write such a file.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserImportError("attention: pictures need matplotlib: pip install 'fastllm[train]'") from error
    parts = translation.alignments
    _require(parts)
    sizes = [(len(part.source), len(part.target)) for part in parts]
    width = 2.2 + 0.34 * max(columns for columns, _ in sizes)
    heights = [1.6 + 0.26 * rows for _, rows in sizes]
    figure = Figure(figsize=(width, sum(heights)), layout="constrained")
    axes = figure.subplots(len(parts), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axis, part in zip(axes, parts, strict=True):
        axis.imshow(part.weights.numpy(), cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.set_xticks(range(len(part.source)), [_label(token) for token in part.source], rotation=60, ha="left")
        axis.set_yticks(range(len(part.target)), [_label(token) for token in part.target])
        axis.xaxis.tick_top()
        axis.tick_params(length=0, labelsize=8)
        for text in (*axis.get_xticklabels(), *axis.get_yticklabels()):
            text.set_parse_math(False)
    kind = path.suffix[1:].lower()
    try:
        write_atomically(path, lambda temporary: figure.savefig(temporary, dpi=130, format=kind or "png"))
    except ValueError as error:
        raise UserError(f"attention: cannot draw {path}: {error}") from error


def write_page(translation: Translation, path: Path) -> None:
    """Write a page of HTML that shows a translation: pointing at a word lights up where it looks."""
    _require(translation.alignments)
    write_text(path, page(translation))


def page(translation: Translation) -> str:
    """Return that page."""
    parts = "\n".join(_part(number, part) for number, part in enumerate(translation.alignments))
    weights = json.dumps(
        [[[round(weight, 4) for weight in row] for row in part.weights.tolist()] for part in translation.alignments]
    )
    return _PAGE.format(title=html.escape(translation.source[:80]), parts=parts, weights=weights)


def _part(number: int, part: Alignment) -> str:
    source = _tokens(part.source, number, "s")
    target = _tokens(part.target, number, "t")
    head = "".join(f"<th><span>{_escaped(token)}</span></th>" for token in part.source)
    rows = "\n".join(
        f"<tr><th>{_escaped(token)}</th>"
        + "".join(f'<td style="--w:{weight:.3f}" title="{weight:.1%}"></td>' for weight in row)
        + "</tr>"
        for token, row in zip(part.target, part.weights.tolist(), strict=True)
    )
    return (
        f'<section><p class="text" lang="">{source}</p>\n<p class="text">{target}</p>\n'
        f"<table><tr><th></th>{head}</tr>\n{rows}</table></section>"
    )


def _tokens(tokens: Sequence[str], part: int, side: str) -> str:
    return "".join(
        f'<span class="token" tabindex="0" data-part="{part}" data-side="{side}" data-i="{i}">{_escaped(token)}</span>'
        for i, token in enumerate(tokens)
    )


def _escaped(token: str) -> str:
    return html.escape(_label(token))


def _label(token: str) -> str:
    """Return a token as it is shown: the space in front is told from none."""
    if token.startswith("<|") and token.endswith("|>"):
        return _END
    return (token.strip() and token.replace(" ", "\N{NO-BREAK SPACE}")) or _SPACE


def _require(parts: Sequence[Alignment]) -> None:
    if not parts:
        raise UserError("attention: the translation has no alignments: translate a text with alignments=True")


_PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
  body {{ font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 70rem; padding: 0 1rem; color: #1a2230;
         background: #fff }}
  .text {{ font-size: 1.35rem; margin: .2rem 0; white-space: pre-wrap }}
  .token {{ --w: 0; border-radius: .25rem; padding: .1rem 0; cursor: default;
           background: rgb(49 130 189 / calc(var(--w) * 100%)) }}
  .token:hover, .token:focus {{ outline: 2px solid #e6550d; outline-offset: 1px }}
  table {{ border-collapse: collapse; margin: 1.5rem 0; font-size: .85rem }}
  th {{ font-weight: 400; text-align: right; padding: 0 .4rem; white-space: pre }}
  tr:first-child th span {{ writing-mode: vertical-rl; transform: rotate(180deg) }}
  td {{ width: 1.6rem; height: 1.4rem; border: 1px solid #eef1f5;
       background: rgb(49 130 189 / calc(var(--w) * 100%)) }}
  .hint {{ color: #5b6675 }}
</style>
<p class="hint">Point at a word of the translation to see where the model looked when it wrote it, or at a word of the
source to see what looked at it.</p>
{parts}
<script>
  const weights = {weights};
  const tokens = [...document.querySelectorAll('.token')];
  function light(token) {{
    const {{part, side, i}} = token ? token.dataset : {{}};
    for (const other of tokens) {{
      let w = 0;
      if (token && other.dataset.part === part && other.dataset.side !== side)
        w = side === 't' ? weights[part][i][other.dataset.i] : weights[part][other.dataset.i][i];
      other.style.setProperty('--w', w);
    }}
  }}
  for (const token of tokens) {{
    for (const begin of ['mouseenter', 'focus']) token.addEventListener(begin, () => light(token));
    for (const end of ['mouseleave', 'blur']) token.addEventListener(end, () => light(null));
  }}
</script>
</html>
"""
