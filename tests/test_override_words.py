"""Digits with underscores are quoted for Hydra and shown as they were typed."""

import pytest

from nerf_trainer.override_words import as_typed, with_quoted_names


@pytest.mark.parametrize(
    ("word", "quoted"),
    [
        ("name=397_49943_98337", "name='397_49943_98337'"),
        ("+a.b_1_2=1_0", "+a.b_1_2='1_0'"),
        ("a=[1_2,x,[3_4], 5]", "a=['1_2',x,['3_4'], 5]"),
        ("a={b:1_2,c:{d: 3_4}}", "a={b:'1_2',c:{d: '3_4'}}"),
        ("a=1_2,3,x,4_5_6", "a='1_2',3,x,'4_5_6'"),
        ("a=choice(1_2, 3)", "a=choice('1_2', 3)"),
        ("a=tag(b,choice(1_2,3))", "a=tag(b,choice('1_2',3))"),
    ],
)
def test_digits_with_underscores_are_names(word: str, quoted: str) -> None:
    assert with_quoted_names(word) == quoted
    assert with_quoted_names(quoted) == quoted
    assert as_typed([quoted], [word]) == [word]
    assert as_typed([quoted], [quoted]) == [quoted], "quotes that were typed are not ours to take away"


@pytest.mark.parametrize(
    "word",
    [
        "a='1_2'",
        "a='x,1_2,3'",
        'a="[1_2]"',
        "a=runs/1_2",
        "a=1_2-x",
        "a=x1_2y",
        "a=x:1_2",
        "a=1_2\\,3_4",
        "a=${b:1_2}",
        "a=-1_000",
        "a=1_0.5",
        "a={1_2: 3}",
        "a=range(1_0,2_0)",
        "a=shuffle(interval (1_0,2_0))",
        "1_2",
        "a=[1_2",
    ],
)
def test_nothing_else_is(word: str) -> None:
    """Texts that hold such digits are texts to Hydra already; these numbers are no names; keys can't be quoted."""
    assert with_quoted_names(word) == word
