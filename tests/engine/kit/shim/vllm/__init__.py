"""Not vLLM. SGLang on a platform it has no kernels for takes one operator from a package of this name."""

__version__ = "0.0.0+stand.in"
