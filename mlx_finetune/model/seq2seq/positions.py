"""T5's relative positions: every distance between a key and a query belongs to one of a few buckets, each with a bias.

Raffel et al. 2019 (1910.10683), section 2.1, as transformers computes it: half of the buckets for single distances, the
other half for ranges that grow logarithmically up to ``max_distance``, and the last for everything beyond.
"""

import functools

import numpy as np
from numpy.typing import NDArray


@functools.lru_cache(maxsize=64)
def buckets(
    num_queries: int, num_keys: int, *, is_bidirectional: bool, num_buckets: int, max_distance: int
) -> NDArray[np.int32]:
    """The bucket of each (query, key), int32 (num_queries, num_keys); the last query stands where the last key does.

    Queries of a decoder are the last of its keys; in an encoder there are as many. Not to be written to.
    """
    queries = np.arange(num_keys - num_queries, num_keys)
    distances = np.arange(num_keys)[None] - queries[:, None]  # (Q, K): key minus query
    return bucket_of(
        distances, is_bidirectional=is_bidirectional, num_buckets=num_buckets, max_distance=max_distance
    ).astype(np.int32)


def bucket_of(
    distances: NDArray[np.int64], *, is_bidirectional: bool, num_buckets: int, max_distance: int
) -> NDArray[np.int64]:
    """The bucket of distances (key minus query). With ``is_bidirectional`` keys behind the query have half of them;
    without it they share bucket 0, and a mask hides them. Logarithms are those of float32, as in transformers.
    """
    first: NDArray[np.int64] = np.zeros_like(distances)
    if is_bidirectional:
        num_buckets //= 2
        first = np.where(distances > 0, num_buckets, 0)
        distances = np.abs(distances)
    else:
        distances = np.maximum(-distances, 0)
    num_exact = num_buckets // 2
    share = np.log(np.maximum(distances, 1).astype(np.float32) / np.float32(num_exact))
    share = share / np.float32(np.log(max_distance / num_exact)) * np.float32(num_buckets - num_exact)
    ranges = np.minimum(num_exact + share.astype(np.int64), num_buckets - 1)
    return first + np.where(distances < num_exact, distances, ranges)
