"""One file a foreign format: what others store of a model, to and from settings and weights of ours."""
