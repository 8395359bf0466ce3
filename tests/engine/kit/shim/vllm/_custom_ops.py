"""The one operator SGLang asks of vLLM on CPU, written in plain torch."""


def rotary_embedding(positions, query, key, head_size, cos_sin_cache, is_neox, *_ignored, **_also_ignored):
    """Rotate `query` and `key` (or `key=None`) in place by their positions.

    query, key: [tokens, heads * head_size]. cos_sin_cache: [positions, rotary_dim], cosines in the first half of a row
    and sines in the second. is_neox pairs element i with i + rotary_dim / 2, otherwise 2i with 2i + 1.
    """
    angles = cos_sin_cache[positions.reshape(-1)]
    half = angles.shape[-1] // 2
    for states in (query, key):
        if states is None:
            continue
        cos, sin = (part.unsqueeze(1).to(states.dtype) for part in (angles[:, :half], angles[:, half:]))
        heads = states.view(angles.shape[0], -1, head_size)[..., : 2 * half]
        left = heads[..., :half] if is_neox else heads[..., 0::2]
        right = heads[..., half:] if is_neox else heads[..., 1::2]
        # Both products are computed before either half is overwritten.
        turned_left, turned_right = left * cos - right * sin, right * cos + left * sin
        left.copy_(turned_left)
        right.copy_(turned_right)
