"""Text from a model: sampling, one sequence streamed or many in a batch, beam search, and conversations.

`generate` and `generate_batch` take and give ids, `stream_text`, `generate_text` and `iterate_texts` text;
`beam_search` and `beam_search_batch` find the likeliest sequences; `Chat` is a conversation with an instruct model.
"""

from fastllm.generation.beam import Beam, beam_search, beam_search_batch
from fastllm.generation.chat import Chat
from fastllm.generation.decoding import Generation, generate, generate_batch
from fastllm.generation.sampling import Sampling
from fastllm.generation.text import generate_text, iterate_texts, stream_text

__all__ = [
    "Beam",
    "Chat",
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
