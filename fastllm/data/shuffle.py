"""A random order of n things, as a function from index to place: a huge one takes no memory.

Up to STORED of them are shuffled and kept. More are permuted by a Feistel network, which mixes the two halves of a
number's bits with keyed hashes, and is a bijection whatever the hash; four rounds with good hashes leave no pattern
(Luby and Rackoff, 1988). What it sends beyond n goes through it again until it falls below (Black and Rogaway,
"Ciphers with arbitrary finite domains", 2002): the domain has at most 4 n numbers, so that takes at most 4 turns on
average. With few bits it would favour some orders, hence the table.
"""

import numpy as np

STORED = 1 << 16
_ROUNDS = 4
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
        seeds = np.random.SeedSequence(key)
        self._table = np.random.Generator(np.random.PCG64(seeds)).permutation(n) if n <= STORED else None
        self._bits = _U64(((n - 1).bit_length() + 1) // 2)  # of a half
        self._keys = seeds.generate_state(_ROUNDS, _U64)

    def __call__(self, indices: np.ndarray) -> np.ndarray:
        """Return where indices in [0, n) go, int64."""
        if self._table is not None:
            return self._table[indices]
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
