"""The arithmetic of TAM (Li et al., "Token Activation Map to Visually Explain Multimodal LLMs", ICCV 2025).

The activation of a token over the visual tokens is the part of its logit that each of them alone would give: their
last hidden states times the token's row of the output layer. Two corrections follow. Estimated causal inference takes
away what earlier tokens explain. The rank Gaussian filter removes single noisy cells.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F

WINDOW = 3


def activations(states: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """Activation of K tokens over V states, negative ones as 0: (K, V) float32.

    Args:
        states: (V, C) last hidden states, after the final norm.
        rows: (K, C) rows of the output layer.
    """
    return (rows.float() @ states.float().T).clamp(min=0)


def without_interference(activation: torch.Tensor, earlier: torch.Tensor, relevance: torch.Tensor) -> torch.Tensor:
    """Estimated causal inference: the activation without what the earlier tokens explain, negative values as 0.

    The interference is the mean of the earlier tokens' activations, weighted by their relevance. It is subtracted after
    scaling by the factor that brings it closest to the activation (least squares).

    Args:
        activation: (V,) of the explained token, >= 0.
        earlier: (J, V) of the earlier tokens, >= 0.
        relevance: (J,) activation of the explained token at the places of the earlier ones, >= 0.

    Returns:
        (V,); the activation itself if no earlier token has any relevance or activation.
    """
    # Not divided by the sum of the weights: the scaling takes care of it.
    interference = relevance @ earlier
    power = interference @ interference
    if not power > 0:
        return activation
    return (activation - interference * (activation @ interference / power)).clamp(min=0)


def explained(place: int, ids: torch.Tensor, seen: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
    """`without_interference` for one of K tokens in the order of the text: (V,).

    Earlier tokens equal to it are left out: their activations are the same, so nothing would be left of it.

    Args:
        place: index of the token.
        ids: (K,) int64.
        seen: (K, V) activations over the visual tokens.
        heard: (K, K) activations of each token (rows) at the places of all (columns).
    """
    earlier = (ids[:place] != ids[place]).nonzero()[:, 0]
    return without_interference(seen[place], seen[earlier], heard[place, earlier])


def rank_gaussian_filter(maps: torch.Tensor, window: int = WINDOW) -> torch.Tensor:
    """Each cell becomes a weighted mean of its neighbourhood's values in order of size.

    The weight falls with the distance in rank from the median, as a Gaussian whose deviation is the neighbourhood's
    coefficient of variation: nearly the median where values are alike, nearer to the mean where they differ.

    Args:
        maps: (T, h, w) float32, >= 0. At the border the outermost values are repeated.
        window: odd width of the neighbourhood.

    Returns:
        (T, h, w) float32; 0 where the whole neighbourhood is.
    """
    reach = window // 2
    padded = F.pad(maps[:, None], (reach,) * 4, mode="replicate")
    cells = F.unfold(padded, window).transpose(1, 2).sort(dim=-1).values
    mean = cells.mean(dim=-1, keepdim=True)
    spread = cells.std(dim=-1, keepdim=True, correction=0) / mean
    rank = torch.arange(window**2, dtype=torch.float32, device=maps.device) - window**2 // 2
    # A tiny deviation leaves the median alone.
    weights = torch.exp(-(rank**2) / (2 * spread.clamp(min=1e-3) ** 2))
    filtered = (cells * weights).sum(dim=-1) / weights.sum(dim=-1)
    return torch.where(mean[..., 0] > 0, filtered, 0.0).reshape(maps.shape)
