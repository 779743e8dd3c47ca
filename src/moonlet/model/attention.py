"""Multi-head latent attention (DeepSeek-V2, arXiv 2405.04434, section 2.1), plain and absorbed.

Both forms compute the same function. The plain form expands the latent into keys and values for
every head, which is cheap when there are many queries; the absorbed form folds that expansion into
the query and the output, so that attention runs on the cached latent itself, which is cheap when a
few queries meet a long past. `forward` takes whichever needs fewer multiplications.

    x -> q_a -> norm -> q_b -> [q_nope | q_rope]           (or x -> q_proj without a query latent)
    x -> kv_a -> [latent | k_rope],  latent -> norm        (the pair is what the cache holds)
    plain:     latent -> kv_b -> [k_nope | v];  softmax([q_nope|q_rope] . [k_nope|k_rope]) v
    absorbed:  q_nope W_k -> q_latent;  softmax([q_latent|q_rope] . [latent|k_rope]) latent -> W_v

Shapes: B sequences, T new tokens, S visible positions, D hidden_size, H heads, C kv_lora_rank,
N qk_nope_head_dim, R qk_rope_head_dim, O v_head_dim, L = C + R.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moonlet.config import ModelConfig
from moonlet.model.cache import Past
from moonlet.model.layers import RMSNorm
from moonlet.model.rotary import rotate

_QUERY_CHUNK = 512  # bounds the logits that tracking materialises


class LatentAttention(nn.Module):
    """One attention layer.

    With `track_max_logit` set, training forwards keep the running maximum of the scaled logits of
    each head in `max_logit` [H], which QK-Clip reads and resets.
    """

    def __init__(self, config: ModelConfig, layer_idx: int) -> None:
        super().__init__()
        self.layer_idx = layer_idx
        self.num_heads = config.num_attention_heads
        self.kv_lora_rank = config.kv_lora_rank
        self.qk_nope_head_dim = config.qk_nope_head_dim
        self.qk_rope_head_dim = config.qk_rope_head_dim
        self.v_head_dim = config.v_head_dim
        self.scale = config.softmax_scale
        self.track_max_logit = False
        self.max_logit: Tensor | None = None

        hidden, q_out = config.hidden_size, self.num_heads * config.qk_head_dim
        self.q_lora_rank = config.q_lora_rank
        if config.q_lora_rank is None:
            self.q_proj = nn.Linear(hidden, q_out, bias=False)
        else:
            self.q_a_proj = nn.Linear(hidden, config.q_lora_rank, bias=False)
            self.q_a_layernorm = RMSNorm(config.q_lora_rank, config.latent_norm_eps)
            self.q_b_proj = nn.Linear(config.q_lora_rank, q_out, bias=False)
        self.kv_a_proj_with_mqa = nn.Linear(hidden, config.latent_size, bias=False)
        self.kv_a_layernorm = RMSNorm(config.kv_lora_rank, config.latent_norm_eps)
        kv_out = self.num_heads * (config.qk_nope_head_dim + config.v_head_dim)
        self.kv_b_proj = nn.Linear(config.kv_lora_rank, kv_out, bias=False)
        self.o_proj = nn.Linear(self.num_heads * config.v_head_dim, hidden, bias=False)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: tuple[Tensor, Tensor],
        past: Past,
        absorbed: bool | None = None,
    ) -> Tensor:
        """x_BTD -> [B, T, D]. `rotation`: cos, sin [B, T, R/2]. `absorbed` forces one of the forms."""
        cos, sin = rotation
        q_nope_BHTN, q_rope_BHTR = self._queries(x_BTD, cos, sin)
        latent_BSL = past.update(self.layer_idx, self._latent(x_BTD, cos, sin))
        if absorbed is None:
            absorbed = not self.training and self._absorbed_is_cheaper(
                x_BTD.shape[1], latent_BSL.shape[1]
            )
        form = self._absorbed if absorbed else self._plain
        out_BHTO = form(q_nope_BHTN, q_rope_BHTR, latent_BSL, past.mask)
        return self.o_proj(out_BHTO.transpose(1, 2).flatten(2))

    def _queries(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
        if self.q_lora_rank is None:
            q = self.q_proj(x_BTD)
        else:
            q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x_BTD)))
        q_BHTd = q.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        nope, rope = q_BHTd.split((self.qk_nope_head_dim, self.qk_rope_head_dim), dim=-1)
        return nope, rotate(rope, cos[:, None], sin[:, None])

    def _latent(self, x_BTD: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """What the cache keeps: the normed latent and the rotated shared key, [B, T, C + R]."""
        latent, k_rope = self.kv_a_proj_with_mqa(x_BTD).split(
            (self.kv_lora_rank, self.qk_rope_head_dim), dim=-1
        )
        return torch.cat((self.kv_a_layernorm(latent), rotate(k_rope, cos, sin)), dim=-1)

    def _plain(
        self, q_nope: Tensor, q_rope: Tensor, latent_BSL: Tensor, mask: Tensor | None
    ) -> Tensor:
        latent, k_rope = latent_BSL.split((self.kv_lora_rank, self.qk_rope_head_dim), dim=-1)
        kv_BHSd = self.kv_b_proj(latent).unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        k_nope, v_BHSO = kv_BHSd.split((self.qk_nope_head_dim, self.v_head_dim), dim=-1)
        k_rope = k_rope[:, None].expand(-1, self.num_heads, -1, -1)
        q, k = torch.cat((q_nope, q_rope), dim=-1), torch.cat((k_nope, k_rope), dim=-1)
        if self.track_max_logit and self.training:
            self._record_max_logit(q.detach(), k.detach(), mask)
        return attend(q, k, v_BHSO, mask, self.scale)

    def _absorbed(
        self, q_nope: Tensor, q_rope: Tensor, latent_BSL: Tensor, mask: Tensor | None
    ) -> Tensor:
        w_kv_HdC = self.kv_b_proj.weight.unflatten(0, (self.num_heads, -1))
        w_k_HNC, w_v_HOC = w_kv_HdC.split((self.qk_nope_head_dim, self.v_head_dim), dim=1)
        q_BHTL = torch.cat((q_nope @ w_k_HNC, q_rope), dim=-1)
        # All heads share one key and value, so heads become queries: no copy of the latent per head.
        batch, heads, new, _ = q_BHTL.shape
        if mask is None and new > 1:
            mask = torch.ones(new, new, dtype=torch.bool, device=q_BHTL.device).tril()[None, None]
        if mask is not None:
            mask = mask.expand(batch, heads, new, -1).flatten(1, 2)[:, None]
        key_B1SL = latent_BSL[:, None]
        # The value is the latent part of the key; attending over all of it saves a copy.
        out = attend(
            q_BHTL.flatten(1, 2)[:, None], key_B1SL, key_B1SL, mask, self.scale, causal=False
        )
        out_BHTC = out[..., : self.kv_lora_rank].unflatten(2, (heads, new))[:, 0]
        return out_BHTC @ w_v_HOC.mT

    def _absorbed_is_cheaper(self, new: int, visible: int) -> bool:
        """Compares multiplications per head: expand S latents once, or fold T queries and outputs."""
        c, r = self.kv_lora_rank, self.qk_rope_head_dim
        n, o = self.qk_nope_head_dim, self.v_head_dim
        plain = visible * c * (n + o) + new * visible * (n + r + o)
        absorbed = new * c * (n + o) + new * visible * (2 * c + r)
        return absorbed < plain

    @torch.no_grad()
    def _record_max_logit(self, q_BHTd: Tensor, k_BHSd: Tensor, mask: Tensor | None) -> None:
        """Exact maxima by a second pass over the logits without values, in chunks of queries."""
        new, visible = q_BHTd.shape[2], k_BHSd.shape[2]
        if mask is None:
            mask = torch.ones(new, visible, dtype=torch.bool, device=q_BHTd.device).tril(
                visible - new
            )[None, None]
        largest = q_BHTd.new_full((self.num_heads,), -torch.inf, dtype=torch.float32)
        for start in range(0, new, _QUERY_CHUNK):
            rows = slice(start, start + _QUERY_CHUNK)
            logits = (q_BHTd[:, :, rows] @ k_BHSd.mT).float() * self.scale
            logits = logits.masked_fill(~mask[:, :, rows], -torch.inf)
            largest = torch.maximum(largest, logits.amax((0, 2, 3)))
        self.max_logit = (
            largest if self.max_logit is None else torch.maximum(self.max_logit, largest)
        )


def attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, causal: bool | None = None
) -> Tensor:
    """softmax(q k^T * scale) v. `mask`: True where a key is visible; None with several queries is causal.

    The CPU's fused kernel only exists for equal head widths, so the narrower side is padded with
    zeros: the plain path is six times slower.
    """
    if causal is None:
        causal = mask is None and q.shape[2] > 1
    width, v_width = q.shape[-1], v.shape[-1]
    if width > v_width:
        v = F.pad(v, (0, width - v_width))
    elif width < v_width:
        q, k = F.pad(q, (0, v_width - width)), F.pad(k, (0, v_width - width))
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal, scale=scale)
    return out[..., :v_width]
