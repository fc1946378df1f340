"""Text from a model: sampling, one sequence streamed or many in a batch, and beam search.

`generate` and `generate_batch` take and give ids, `stream_text`, `generate_text` and `iterate_texts` text;
`beam_search` and `beam_search_batch` find the likeliest sequences.
"""

from fastllm.generation.beam import Beam, beam_search, beam_search_batch
from fastllm.generation.decoding import Generation, generate, generate_batch
from fastllm.generation.sampling import Sampling
from fastllm.generation.text import generate_text, iterate_texts, stream_text

__all__ = [
    "Beam",
    "Generation",
    "Sampling",
    "beam_search",
    "beam_search_batch",
    "generate",
    "generate_batch",
    "generate_text",
    "iterate_texts",
    "stream_text",
]
