"""Conditions in containerd's language: the cases are those of its own tests, and some that break others' parsers."""

from __future__ import annotations

from functools import partial

import pytest

from pagepool.snapshotter.filters import FilterInvalidError, parse_filters

_OBJECTS: tuple[dict[str, str], ...] = (
    {"name": "foo", "labels.foo": "true"},
    {"name": "bar"},
    {"name": "foo", "labels.foo": "present", "labels.more complex label": "present"},
    {"name": "bar", "labels.bar": "true"},
    {"name": "fooer", 'labels.more complex label with \\ and "': "present"},
    {"name": "fooer", 'labels.more complex label with \\ and ".post': "present"},
    {"name": "baz", "other": "too complex, yo"},
    {"name": "bazo", "other": "abc"},
    {"name": "compound", "labels.foo": "omg_asdf.asdf-qwer"},
)


def _meant(*texts: str) -> list[int]:
    is_meant = parse_filters(texts)
    return [number for number, one in enumerate(_OBJECTS) if is_meant(partial(_field, one))]


def _field(one: dict[str, str], path: tuple[str, ...]) -> str | None:
    return one.get(".".join(path))


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("", list(range(9))),
        ("name", list(range(9))),
        ("labels.foo", [0, 2, 8]),
        ("labels.foo,name", [0, 2, 8]),
        ("labels.foo==true", [0]),
        ("labels.foo==omg_asdf.asdf-qwer", [8]),
        ("name==bar", [1, 3]),
        ("name!=bar", [0, 2, 4, 5, 6, 7, 8]),
        ("name==bar,labels.bar", [3]),
        ('other=="too complex, yo"', [6]),
        ("other~=[abc]+,name!=foo", [6, 7]),
        ("other~=/[abc]+/,name!=foo", [6, 7]),
        ("other~=/[abc]{1,2}/,name!=foo", [6, 7]),
        ("other~=|^abc$|", [7]),
        (r'other~=/[abc]{0,1}"\//,name!=foo', []),
        ("name==bar,labels.bar==true", [3]),
        ("name==bar,labels.bar==wrong", []),
        ('name==foo,labels."more complex label"', [2]),
        (r'labels."more complex label with \\ and \""==present', [4]),
        (r'labels."more complex label with \\ and \"".post==present', [5]),
        (r'name=="\x66o\157"', [0, 2]),
        ("name == foo , labels.foo", [0, 2]),
        ('name==""', []),
        ("other!=abc", [0, 1, 2, 3, 4, 5, 6, 8]),
        (r"other~=|^a\wc$|", [7]),
        ('other!=""', [6, 7]),
        ("other~=|^$|,name==bar", [1, 3]),
    ],
)
def test_what_is_meant(text: str, meant: list[int]) -> None:
    assert _meant(text) == meant


def test_one_of_several_is_enough() -> None:
    assert _meant("name==baz", "labels.foo==true") == [0, 6]
    assert _meant() == list(range(9))


@pytest.mark.parametrize(
    "text",
    [
        "labels.|foo|==omg_asdf.asdf-qwer",
        r'labels.?"more complex label with \\ and \"".post==present',
        "name==foo,",
        "labels.",
        "image~=,id?=?fbaq",
        "labels.ns/key==value",
        "labels.key==/value",
        "name=foo",
        "name==",
        "name==foo bar",
        "other~=/(/",
        r'name=="\q"',
        r'name=="\UFFFFFFFF"',
        'name=="foo',
        ",",
    ],
)
def test_what_cannot_be_understood_is_named(text: str) -> None:
    with pytest.raises(FilterInvalidError) as caught:
        parse_filters([text])
    assert caught.value.value == text
