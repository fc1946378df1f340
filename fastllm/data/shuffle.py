"""A random order of n things that is computed, not stored: element i of a permutation, for any i at any time.

A Feistel network mixes the two halves of a number's bits with keyed hashes; it is a bijection whatever the hash. What
it sends beyond n goes through it again until it falls below (Black and Rogaway, "Ciphers with arbitrary finite
domains", 2002): the domain has less than 4 n numbers, so that takes less than 4 turns on average.
"""

import numpy as np

_ROUNDS = 6
_U64 = np.uint64


class Permutation:
    """A permutation of range(n).

    Args:
        n: how many.
        key: chooses the permutation; non-negative numbers.

    Example:
        >>> sorted(Permutation(5, (1, 2))(np.arange(5)).tolist())
        [0, 1, 2, 3, 4]
    """

    def __init__(self, n: int, key: tuple[int, ...]) -> None:
        self.n = n
        self._bits = _U64(max(1, (max(n - 1, 1).bit_length() + 1) // 2))  # of a half
        self._keys = np.random.SeedSequence(key).generate_state(_ROUNDS, _U64)

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Return where indices in [0, n) go, int64."""
        places = self._mix(indices.astype(_U64))
        while (outside := places >= _U64(self.n)).any():
            places[outside] = self._mix(places[outside])
        return places.astype(np.int64)

    def _mix(self, values: np.ndarray) -> np.ndarray:
        bits = self._bits
        mask = (_U64(1) << bits) - _U64(1)
        left, right = values >> bits, values & mask
        for key in self._keys:
            left, right = right, left ^ (_hash(right ^ key) & mask)
        return left << bits | right


def _hash(values: np.ndarray) -> np.ndarray:
    """Mix 64 bits (the finaliser of SplitMix64: Steele et al., OOPSLA 2014); products wrap."""
    values = (values ^ (values >> _U64(30))) * _U64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> _U64(27))) * _U64(0x94D049BB133111EB)
    return values ^ (values >> _U64(31))
