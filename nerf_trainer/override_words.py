"""Names that look like numbers: what Hydra's grammar would read as one is quoted before Hydra reads it.

CO3D's sequences have names such as 397_49943_98337, for Hydra the number 3974994398337.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from antlr4 import CommonTokenStream, InputStream, ParserRuleContext
from hydra.core.override_parser.overrides_visitor import HydraErrorListener
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser

_LIKE_A_NUMBER = re.compile(r"[1-9][0-9]*(_[0-9]+)+")
_OF_NUMBERS = re.compile(r"(range|interval)\b")
"""Hydra's functions that take numbers alone."""


def with_quoted_names(word: str) -> str:
    """The override with every value, or element of one, that is digits with underscores between them in quotes.

    Hydra then gives a text, from which OmegaConf makes a number where the option is one. What Hydra can't read stays as
    it is, and so do the keys of dictionaries, which can't be quoted.
    """
    return _with_values(word, lambda text: f"'{text}'" if _LIKE_A_NUMBER.fullmatch(text) else text)


def as_typed(words: Iterable[str], typed: Sequence[str]) -> list[str]:
    """Overrides as Hydra answers them, without the quotes that `with_quoted_names` put into the `typed` ones."""

    def unquoted(text: str) -> str:
        return text[1:-1] if text[0] == "'" and _LIKE_A_NUMBER.fullmatch(text[1:-1]) else text

    return [word if word in typed else _with_values(word, unquoted) for word in words]


def _with_values(word: str, changed: Callable[[str], str]) -> str:
    """The override, each of the single values in it replaced by what `changed` makes of its text."""
    if not re.search(r"[0-9]_[0-9]", word):
        return word
    lexer = OverrideLexer(InputStream(word))
    stream = CommonTokenStream(lexer)
    parser = OverrideParser(stream)
    for reader in (lexer, parser):
        reader.removeErrorListeners()
        reader.addErrorListener(HydraErrorListener())
    try:
        values = list(_values(parser.override()))
    except HydraException:
        return word
    for value in reversed(values):
        text, (first, _) = value.getText(), value.getSourceInterval()
        start = stream.tokens[first or 0].start or 0
        word = word[:start] + changed(text.strip(" \t")) + word[start + len(text) :]
    return word


def _values(node: ParserRuleContext) -> Iterator[ParserRuleContext]:
    """The single values below a node of the grammar, but for arguments that have to be numbers."""
    if isinstance(node, OverrideParser.PrimitiveContext):
        yield node
    elif not (isinstance(node, OverrideParser.FunctionContext) and _OF_NUMBERS.match(node.getText())):
        for child in node.getTypedRuleContexts(ParserRuleContext):
            yield from _values(child)
