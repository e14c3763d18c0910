"""An independent, slow statement of the method in float64, from the formulas alone; shares no code with the product."""

import math

import numpy as np


def coefficients(query, keys, projection, *, heads=1, activation="softmax", reduction="mean"):
    """Return c [B, N] for query [B, Q], keys [N, K], projection [K, Q] or None."""
    query, keys = np.asarray(query, np.float64), np.asarray(keys, np.float64)
    basis_size, key_dim = keys.shape
    width = key_dim // heads
    result = np.zeros((len(query), basis_size))
    for sample, embedding in enumerate(query):
        projected = embedding if projection is None else np.asarray(projection, np.float64) @ embedding
        per_head = []
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            scores = [float(np.dot(projected[part], key[part])) / math.sqrt(width) for key in keys]
            if activation == "softmax":
                shifted = [math.exp(score - max(scores)) for score in scores]
                per_head.append([value / sum(shifted) for value in shifted])
            else:
                per_head.append([math.tanh(score) for score in scores])
        for adapter in range(basis_size):
            values = [head[adapter] for head in per_head]
            if reduction == "mean":
                result[sample, adapter] = sum(values) / heads
            else:
                low = 0.0 if activation == "softmax" else -1.0
                result[sample, adapter] = min(1.0, max(low, sum(values)))
    return result


def delta(lora_a, lora_b, mix):
    """Return Σ_n mix[n] · (A_n B_n)ᵀ, [out, in], for the file's A [N, in, r] and B [N, r, out]."""
    lora_a, lora_b = np.asarray(lora_a, np.float64), np.asarray(lora_b, np.float64)
    total = np.zeros((lora_b.shape[2], lora_a.shape[1]))
    for a, b, c in zip(lora_a, lora_b, np.asarray(mix, np.float64), strict=True):
        for rank in range(a.shape[1]):
            total += c * np.outer(b[rank], a[:, rank])
    return total


def layer_output(x, weight, bias, lora_a, lora_b, mixes, *, strength=1.0, lora_bias=None):
    """Return the adapted Linear's output for x [B, ..., in] with one mix a sample, mixes [B, N]."""
    x = np.asarray(x, np.float64)
    result = []
    for sample, mix in zip(x, np.asarray(mixes, np.float64), strict=True):
        full = np.asarray(weight, np.float64) + strength * delta(lora_a, lora_b, mix)
        y = sample @ full.T + np.asarray(bias, np.float64)
        if lora_bias is not None:
            y = y + strength * mix @ np.asarray(lora_bias, np.float64)
        result.append(y)
    return np.stack(result)
