"""What `python -m benchmarks.shape` counts."""

from __future__ import annotations

from benchmarks.shape import Constructor, Function, measured

SOURCE = """
from collections.abc import Callable
from dataclasses import dataclass, field

Send = Callable[[bytes], None]


class Part:
    def __init__(self, send: Send, names: list[str], *, now: Callable[[], int]) -> None:
        self.own = 0

    async def long(self) -> None:
        other.own = 1
        other.hook = self.long
        other.count += 1


@dataclass
class Data:
    one: int
    two: int = field(init=False)


class Bare:
    pass
"""


def test_functions_constructors_and_late_attributes_are_counted() -> None:
    shape = measured([("a.py", SOURCE)])
    assert (shape.files, shape.lines) == (1, 25)
    assert max(shape.functions) == Function(4, "a.py::Part.long")
    assert shape.constructors == [
        Constructor(3, 2, "a.py::Part", is_data=False),
        Constructor(1, 0, "a.py::Data", is_data=True),
    ]
    # `own` is an attribute of a class of the same file, `count` is no assignment.
    assert shape.late == ["a.py:14: other.hook"]
