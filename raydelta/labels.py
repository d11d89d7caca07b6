"""Label sets: which images are behind a label budget. Seeded, nested, spread over the sequences.

The order is drawn once per seed; the validation images are its first ones, the training budgets follow. So the 14
training images are the first 14 of the 37, and every budget is validated on the same images.
"""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from raydelta.config import LabelConfig
from raydelta.errors import UserError


def order_labels(labelled: Sequence[tuple[str, str]], seed: int) -> list[str]:
    """All labelled images in the order in which they would be bought: sequences in turn, seeded within each.

    Args:
        labelled: (id, sequence) of every image that has a label.
    """
    generator = np.random.default_rng([seed, 0x1ABE1])
    by_sequence: dict[str, list[str]] = defaultdict(list)
    for name, sequence in sorted(labelled):
        by_sequence[sequence].append(name)
    queues = [list(generator.permutation(by_sequence[sequence])) for sequence in sorted(by_sequence)]
    queues = [queues[index] for index in generator.permutation(len(queues))]
    longest = max(map(len, queues), default=0)
    return [str(queue[turn]) for turn in range(longest) for queue in queues if turn < len(queue)]


def choose_labels(
    labelled: Sequence[tuple[str, str]], config: LabelConfig, seed: int, budget: int | None = None
) -> tuple[list[str], list[str]]:
    """The ids of the training labels and of the validation labels.

    Args:
        budget: in place of ``labels.budget``; -1 for all that validation leaves.

    Raises:
        UserError: the set has fewer labels than asked for.
    """
    budget = config.budget if budget is None else budget
    order = order_labels(labelled, seed)
    if config.validation + max(0, budget) > len(order):
        raise UserError(
            f"labels.budget = {budget} and labels.validation = {config.validation} ask for more labels than the "
            f"training split has ({len(order)}); lower one of them"
        )
    validation, rest = order[: config.validation], order[config.validation :]
    return rest if budget < 0 else rest[:budget], validation
