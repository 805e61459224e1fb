"""The objects of mounted trees."""

from __future__ import annotations

from pagepool.node.inuse import ObjectsInUse


def test_objects_are_in_use_as_long_as_a_tree_has_them() -> None:
    """However many have one; and what was removed stays until it is settled."""
    objects = ObjectsInUse()
    objects.add("one", [b"a", b"b"])
    objects.add("two", [b"b", b"c"])
    assert [name in objects for name in (b"a", b"b", b"c", b"d")] == [True, True, True, False]
    objects.remove("one")
    assert b"a" in objects
    objects.settle()
    assert [name in objects for name in (b"a", b"b", b"c")] == [False, True, True]
    objects.remove("two")
    objects.add("two", [])  # known: not looked at
    objects.settle()
    assert b"b" in objects
    objects.remove("two")
    objects.remove("two")
    objects.remove("never")
    objects.settle()
    assert len(objects) == 0
    objects.add("two", [b"c"])
    assert b"c" in objects
