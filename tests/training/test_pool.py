import pytest
import torch
from torch import Tensor

from raydelta.training.pool import ImagePool


def numbered(*numbers: int) -> Tensor:
    return torch.tensor(numbers, dtype=torch.float32).view(-1, 1, 1, 1).expand(-1, 3, 2, 2).contiguous()


def numbers_in(images: Tensor) -> list[int]:
    return images[:, 0, 0, 0].int().tolist()


def test_a_pool_of_no_size_hands_back_what_it_gets() -> None:
    pool = ImagePool(0)
    assert numbers_in(pool.exchange(numbered(1, 2))) == [1, 2]
    assert pool.images is None


def test_a_pool_keeps_what_it_gets_until_it_is_full() -> None:
    pool = ImagePool(5)
    assert numbers_in(pool.exchange(numbered(1, 2))) == [1, 2]
    assert numbers_in(pool.exchange(numbered(3, 4))) == [3, 4]
    returned = numbers_in(pool.exchange(numbered(5, 6)))
    assert returned[0] == 5
    assert len(pool.images) == 5
    assert sorted([*numbers_in(pool.images), returned[1]]) == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("size", [1, 3, 8])
def test_a_pool_never_grows_beyond_its_size_and_loses_and_doubles_nothing(size: int) -> None:
    torch.manual_seed(0)
    pool, handed_back = ImagePool(size), []
    for step in range(30):
        fakes = numbered(3 * step, 3 * step + 1, 3 * step + 2)
        returned = pool.exchange(fakes)
        assert returned.shape == fakes.shape
        assert len(pool.images) <= size
        handed_back += numbers_in(returned)
    # Those that fill the pool are handed back at once as well.
    assert sorted(handed_back + numbers_in(pool.images)) == sorted([*range(90), *range(size)])


def test_half_of_what_a_full_pool_hands_back_is_older() -> None:
    torch.manual_seed(0)
    pool = ImagePool(10)
    pool.exchange(numbered(*range(10)))
    older = 0
    for step in range(1, 101):
        fakes = list(range(10 * step, 10 * step + 10))
        returned = numbers_in(pool.exchange(numbered(*fakes)))
        older += sum(number < fake for number, fake in zip(returned, fakes, strict=True))
    assert 0.42 < older / 1000 < 0.58


def test_what_a_pool_holds_is_its_own() -> None:
    pool = ImagePool(2)
    fakes = numbered(1, 2)
    pool.exchange(fakes).zero_()
    assert numbers_in(pool.images) == [1, 2]
