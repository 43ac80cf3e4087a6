import pytest
import torch

from kvpolicy.pipeline.doubts import Doubt, Doubts


def refused(name):
    def refuse():
        raise ValueError(name)

    return refuse


@pytest.mark.parametrize("faulty", ["half", "float", "double"])
def test_numbers_of_several_dtypes_are_read_together(faulty):
    doubts = Doubts()
    for name, dtype in (
        ("double", torch.float64),
        ("half", torch.float32),
        ("float", torch.float64),
    ):
        number = torch.tensor(torch.nan if name == faulty else 1.0, dtype=dtype)
        doubts.note(Doubt(number, refused(name)), urgent=True)
    with pytest.raises(ValueError, match=faulty):
        doubts.settle()
    doubts.settle()
