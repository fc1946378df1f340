"""Text from a model: sampling, one sequence streamed or many in a batch, beam search, and conversations.

`generate` and `generate_batch` take and give ids, `stream_text`, `generate_text` and `iterate_texts` text;
`beam_search` and `beam_search_batch` find the likeliest sequences; `Chat` is a conversation with an instruct model;
`translate` is for encoder-decoders.
"""

from fastllm.generation.beam import Beam, beam_search, beam_search_batch
from fastllm.generation.chat import Chat
from fastllm.generation.decoding import Generation, generate, generate_batch
from fastllm.generation.sampling import Sampling
from fastllm.generation.scoring import score
from fastllm.generation.text import generate_text, iterate_texts, stream_text
from fastllm.generation.translation import Alignment, Translation, iterate_translations, translate

__all__ = [
    "Alignment",
    "Beam",
    "Chat",
    "Generation",
    "Sampling",
    "Translation",
    "beam_search",
    "beam_search_batch",
    "generate",
    "generate_batch",
    "generate_text",
    "iterate_texts",
    "iterate_translations",
    "score",
    "stream_text",
    "translate",
]
