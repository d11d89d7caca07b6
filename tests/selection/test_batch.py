import numpy as np
import pytest

from raydelta.data.shards import Sample
from raydelta.errors import UserError
from raydelta.selection.batch import (
    CELLS_PER_IMAGE,
    choose_batch,
    choose_typical,
    density,
    k_medoids,
    stride_over_time,
    whiten,
)
from raydelta.selection.select import sequence_places


def stride(drives: list[int], count: int, labelled: tuple[int, ...] = (), seed: int = 0) -> list[int]:
    """Chosen frames of drives of these lengths, in the order of time."""
    sequences = np.repeat(np.arange(len(drives)), drives)
    has = np.isin(np.arange(len(sequences)), labelled)
    return sorted(image for image, _ in stride_over_time(sequences, has, count, seed))


def test_a_stride_cuts_a_drive_into_equal_spans_and_takes_their_middles() -> None:
    assert stride([90], 3) == [14, 44, 74]
    assert stride([9], 9) == list(range(9))


def test_every_drive_gets_a_label_and_long_ones_more() -> None:
    found = stride([60, 30, 10], 10)
    assert [sum(low <= frame < high for frame in found) for low, high in ((0, 60), (60, 90), (90, 100))] == [6, 3, 1]
    assert [frame // 100 for frame in stride([100, 100, 100], 3)] == [0, 1, 2]
    assert len(stride([1, 1, 1, 1000], 4)) == 4
    assert {min(frame, 3) for frame in stride([1, 1, 1, 1000], 4)} == {0, 1, 2, 3}


def test_a_stride_goes_into_the_gaps_between_the_labels_that_there_are() -> None:
    assert stride([90], 2, labelled=(14,)) == [44, 74]
    found = stride([50, 50], 2, labelled=(5, 25, 45))
    assert all(frame >= 50 for frame in found), "the other drive has none yet"


def test_a_stride_never_takes_what_is_labelled_and_stops_at_the_end_of_the_pool() -> None:
    rest = [frame for frame in range(20) if frame not in (3, 7)]
    assert stride([20], 18, labelled=(3, 7)) == rest
    with pytest.raises(UserError, match="count = 19, but the pool has 18 photographs"):
        stride([20], 19, labelled=(3, 7))


def groups(sizes: list[int], distance: float = 50.0) -> np.ndarray:
    random = np.random.default_rng(0)
    return np.concatenate([random.normal(distance * index, 1, (size, 3)) for index, size in enumerate(sizes)])


def test_typical_ones_come_from_every_cluster_that_of_the_largest_first() -> None:
    features = groups([10, 30, 20])
    chosen = [image for image, _ in choose_typical(features, [], 3, 0)]
    assert [0 if image < 10 else 1 if image < 40 else 2 for image in chosen] == [1, 2, 0]


def test_a_typical_one_lies_in_the_middle_of_its_cluster_and_no_outlier_is_taken() -> None:
    features = np.concatenate([groups([40]), [[30.0, 0, 0]]])
    ((chosen, _),) = choose_typical(features, [], 1, 0)
    centre = np.linalg.norm(features[:40] - features[:40].mean(0), axis=1)
    assert chosen < 40
    assert centre[chosen] < np.median(centre)


def test_clusters_that_have_a_label_are_left_alone() -> None:
    features = groups([20, 20, 20])
    chosen = [image for image, _ in choose_typical(features, [5, 25], 1, 0)]
    assert chosen[0] >= 40
    many = choose_typical(features, [5, 25], 58, 0)
    assert len({image for image, _ in many} | {5, 25}) == 60, "no image twice, none that is labelled"


def test_images_that_all_look_alike_are_chosen_without_repetition() -> None:
    chosen = choose_typical(np.ones((8, 4)), [2], 7, 0)
    assert sorted(image for image, _ in chosen) == [0, 1, 3, 4, 5, 6, 7]


def test_whitened_features_have_unit_variance_whatever_the_scale() -> None:
    random = np.random.default_rng(0)
    points = whiten(random.normal(size=(200, 5)) * [1, 10, 100, 1e3, 1e4])
    assert np.allclose(points.std(0), 1)
    assert np.allclose(points.T @ points / 200, np.eye(points.shape[1]), atol=1e-9)


def test_density_is_highest_where_points_crowd() -> None:
    found = density(np.concatenate([groups([30]), [[40.0, 40, 40]]]))
    assert found.argmin() == 30


def test_medoids_settle_where_the_weighted_cost_is_least() -> None:
    points = np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [12.0]])
    medoids, clusters = k_medoids(points, np.ones(6), 2, [], 0)
    assert sorted(medoids.tolist()) == [1, 4]
    assert len(set(clusters[:3].tolist())) == len(set(clusters[3:].tolist())) == 1


def cells(
    scores: np.ndarray, count: int, sequences: list[int], window: int = 1, **more: object
) -> list[tuple[int, int]]:
    places = np.arange(len(scores))
    return choose_batch(scores, np.array(sequences), places, count, window, 0, grid=(4, 2), **more)  # type: ignore[arg-type]


def test_an_image_gives_no_more_cells_than_its_quota_while_others_have_some() -> None:
    scores = np.ones((4, 8))
    scores[0] = 9
    chosen = cells(scores, 8, [0, 1, 2, 3])
    assert sum(image == 0 for image, _ in chosen) == CELLS_PER_IMAGE
    assert len(set(cells(scores, 32, [0, 1, 2, 3]))) == 32, "when there are no others, the quota gives way"


def test_a_drive_gives_no_more_than_twice_its_share() -> None:
    scores = np.ones((20, 8))
    scores[:5] = 9
    chosen = cells(scores, 16, [0] * 5 + [1] * 15)
    assert sum(image < 5 for image, _ in chosen) == 8


def test_cells_beside_a_chosen_one_in_neighbouring_frames_are_redundant() -> None:
    scores = np.zeros((2, 8))
    scores[0, 0], scores[1] = 9, [8, 7, 1, 2, 6, 5, 0.5, 0.1]
    assert cells(scores, 2, [0, 0], window=2) == [(0, 0), (1, 3)], "0, 1, 4 and 5 show the same"
    assert cells(scores, 2, [0, 0], window=1) == [(0, 0), (1, 0)]
    assert cells(scores, 2, [0, 1], window=2) == [(0, 0), (1, 0)], "another drive is no neighbour"


def test_cells_that_are_bought_are_not_proposed_again() -> None:
    scores, bought = np.arange(16.0).reshape(2, 8), np.zeros((2, 8), dtype=bool)
    bought[1, 7] = True
    assert cells(scores, 1, [0, 1], bought=bought) == [(1, 6)]


def test_places_are_those_of_the_sorted_ids_of_each_sequence() -> None:
    samples = [Sample("b2", "b", True), Sample("a9", "a", False), Sample("b1", "b", True)]
    assert sequence_places(samples) == {"a9": (0, 0), "b1": (1, 0), "b2": (1, 1)}
