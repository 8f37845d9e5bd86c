"""Formulas as MathML, made when the site is built: browsers show them without a script, and without a network."""

import html

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxTranslator


def register(app: Sphinx) -> None:
    """Makes ``mathml`` a value of ``html_math_renderer``."""
    app.add_html_math_renderer("mathml", inline_renderers=(inline, None), block_renderers=(block, None))


def inline(translator: SphinxTranslator, node: nodes.Element) -> None:
    """Writes a formula within a line."""
    translator.body.append(rendered(node.astext(), "inline"))
    raise nodes.SkipNode


def block(translator: SphinxTranslator, node: nodes.Element) -> None:
    """Writes a formula on a line of its own, which scrolls by itself where a screen is narrow."""
    translator.body.append(f'<div class="formula">{rendered(node.astext(), "block")}</div>')
    raise nodes.SkipNode


def rendered(latex: str, display: str) -> str:
    """The MathML of a formula; its source stands in ``alttext``."""
    latex = " ".join(latex.split())
    found: str = convert(latex, display=display)
    return found.replace("<math ", f'<math alttext="{html.escape(latex, quote=True)}" ', 1)
