"""Real SGLang workers on a machine without a GPU: the environment, the tiny model, and the processes."""
