"""Who draws the trials of a sweep: Ray Tune's searchers, by their names."""

import importlib.util
import sys
from typing import Any

from raydelta.errors import UserError
from raydelta.search_space import Space


def make_searcher(space: Space, seed: int, fits: int) -> Any:
    """The searcher that a space names.

    Args:
        fits: trials at once, as many as the cluster runs or the space allows; 0: no limit.

    Raises:
        UserError: its package is not installed.
    """
    from ray.tune.search import ConcurrencyLimiter
    from ray.tune.search.basic_variant import BasicVariantGenerator

    if space.algorithm == "random":
        return BasicVariantGenerator(max_concurrent=fits, random_state=seed)
    start, concurrent = learning_pace(space, fits)
    check_searcher(space)
    if space.algorithm == "optuna":
        import optuna
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        searcher = OptunaSearch(sampler=optuna.samplers.TPESampler(seed=seed, n_startup_trials=start))
    else:
        from ray.tune.search.hyperopt import HyperOptSearch

        searcher = HyperOptSearch(n_initial_points=start, random_state_seed=seed)
    drawn = f"{start} of {space.trials} trials at random before it learns, {concurrent} at once"
    sys.stderr.write(f"sweep        {space.algorithm} draws {drawn}\n")
    return ConcurrencyLimiter(searcher, max_concurrent=concurrent)


def check_searcher(space: Space) -> None:
    """Check that the searcher of a space is installed.

    Raises:
        UserError: it is not.
    """
    if space.algorithm == "hyperopt" and importlib.util.find_spec("hyperopt") is None:
        raise UserError("algorithm: hyperopt: the package is not installed; pip install 'raydelta[hyperopt]'")


def learning_pace(space: Space, fits: int) -> tuple[int, int]:
    """How many trials a searcher draws at random before it learns, and how many it runs at once.

    What runs at once has not learned from each other: on a large cluster every trial would else be drawn before the
    first result.

    Args:
        fits: trials that the cluster runs at once; ``space.concurrent`` counts before it.
    """
    start = max(2, space.trials // 4)
    return start, fits if space.concurrent else max(1, min(fits, start))
