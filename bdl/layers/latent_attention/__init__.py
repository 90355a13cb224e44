"""Attention whose alignment is a latent variable."""

from bdl.layers.latent_attention import alignment
from bdl.layers.latent_attention.latent_alignment import LatentAlignment
from bdl.layers.latent_attention.latent_attention import LatentAttention
from bdl.layers.latent_attention.latent_multi_head_attention import LatentMultiHeadAttention

__all__ = ["LatentAlignment", "LatentAttention", "LatentMultiHeadAttention", "alignment"]
