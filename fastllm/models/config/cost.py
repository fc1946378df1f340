"""What a model costs, counted by block and by token; train/estimate.py makes FLOPs, bytes and seconds of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class BlockCost:
    """What blocks of one kind cost, each of them.

    Args:
        count: how many there are.
        parameters: numbers in a block.
        matrices: those of them that a token is multiplied with.
        attention: channels that attention multiplies scores with times the tokens that a token sees, on average.
        kept_float32: numbers that a block keeps of a token for its backward in float32.
        kept: those that it keeps in the precision of matrix products.
    """

    count: int
    parameters: int
    matrices: int
    attention: float
    kept_float32: int
    kept: int


@dataclass(frozen=True)
class Cost:
    """What a model costs.

    Of an encoder-decoder a token is one of the target with one of the source: sentences are about as long as their
    translations.

    Args:
        context_length: T.
        channels: C, of the residual stream.
        blocks: the kinds of blocks.
        other_parameters: numbers outside of blocks.
        output_matrix: numbers that a token is multiplied with for its logits.
    """

    context_length: int
    channels: int
    blocks: tuple[BlockCost, ...]
    other_parameters: int
    output_matrix: int

    @property
    def parameters(self) -> int:
        """Return how many numbers are trained."""
        return sum(block.count * block.parameters for block in self.blocks) + self.other_parameters

    @property
    def n_layer(self) -> int:
        """Return how many blocks there are, of all kinds."""
        return sum(block.count for block in self.blocks)
