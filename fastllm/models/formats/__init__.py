"""Models as other programs store them, to and from fastllm's settings and state_dicts; one file a format."""
