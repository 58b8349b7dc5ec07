"""A compact gpt-oss model whose arithmetic equals Hugging Face's GptOssForCausalLM.

Differences from the Hugging Face code are only in how the work is laid out: the experts work on
tokens sorted by expert, and their weights are kept as [expert, out, in], the order MXFP4 blocks use,
with all gate rows before all up rows (export.py interleaves them).
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class Config:
    vocab_size: int = 2048
    hidden_size: int = 192
    intermediate_size: int = 192
    num_hidden_layers: int = 4
    num_attention_heads: int = 6
    num_key_value_heads: int = 3
    head_dim: int = 32
    num_local_experts: int = 8
    num_experts_per_tok: int = 2
    sliding_window: int = 64
    rope_theta: float = 150000.0
    rope_factor: float = 8.0
    rope_beta_fast: float = 32.0
    rope_beta_slow: float = 1.0
    rope_original_positions: int = 512
    rms_norm_eps: float = 1e-5
    swiglu_alpha: float = 1.702
    swiglu_limit: float = 7.0
    router_aux_loss_coef: float = 0.01


# --------------------------------------------------------------------------- MXFP4


def mxfp4_round(weight):
    """Round the last axis to MXFP4 in blocks of 32. Returns (values, exponents).

    `values` are exact E2M1 numbers (0, .5, 1, 1.5, 2, 3, 4, 6 and negatives),
    and the weight they stand for is values * 2**exponent, per block.
    """
    blocks = weight.float().unflatten(-1, (-1, 32))
    peak = blocks.abs().amax(-1, keepdim=True).clamp_min(2.0**-100)
    exponent = torch.floor(torch.log2(peak / 7.0)) + 1  # the largest value lands in (3.5, 7]
    scaled = blocks * torch.exp2(-exponent)
    size = scaled.abs()
    step = torch.where(size < 2, 0.5, torch.where(size < 4, 1.0, 2.0))
    values = (torch.round(scaled / step) * step).clamp(-6, 6)
    return values, exponent


def mxfp4_fake(weight):
    """The weight as it reads back from MXFP4; gradients pass straight through."""
    with torch.no_grad():
        values, exponent = mxfp4_round(weight)
        delta = (values * torch.exp2(exponent)).flatten(-2) - weight
    return weight + delta


# --------------------------------------------------------------------------- layers


class SwiGLU(torch.autograd.Function):
    """(clamp(up) + 1) * gate * sigmoid(alpha * gate) with its gradient written out, to save passes over memory."""

    @staticmethod
    def forward(ctx, hidden, alpha, limit):
        gate, up = hidden.chunk(2, -1)
        clamped = gate.clamp(max=limit)
        sigmoid = torch.sigmoid(clamped * alpha)
        up1 = up.clamp(-limit, limit).add_(1)
        ctx.save_for_backward(hidden, sigmoid)
        ctx.alpha, ctx.limit = alpha, limit
        return clamped.mul_(sigmoid).mul_(up1)

    @staticmethod
    def backward(ctx, grad):
        hidden, sigmoid = ctx.saved_tensors
        gate, up = hidden.chunk(2, -1)
        limit = ctx.limit
        clamped = gate.clamp(max=limit)
        up1 = up.clamp(-limit, limit).add_(1)
        out = torch.empty_like(hidden)
        left, right = out.chunk(2, -1)
        torch.mul(clamped, sigmoid, out=right)
        # d gate: up1 * (sigmoid + alpha * clamped * sigmoid * (1 - sigmoid))
        torch.mul(right, (1 - sigmoid).mul_(ctx.alpha), out=left)
        left.add_(sigmoid).mul_(up1).mul_(grad).mul_(gate <= limit)
        right.mul_(grad).mul_(up.abs() <= limit)
        return out, None, None


class RMSNorm(nn.Module):
    def __init__(self, size, eps):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x):
        return F.rms_norm(x, x.shape[-1:], self.weight, self.eps)


def yarn_frequencies(c):
    """Inverse frequencies and the factor on cos and sin (YaRN, truncate: false)."""
    dim, base, length = c.head_dim, c.rope_theta, c.rope_original_positions
    plain = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float) / dim)

    def turn_dim(turns):
        return dim * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(base))

    low = max(turn_dim(c.rope_beta_fast), 0)
    high = min(turn_dim(c.rope_beta_slow), dim - 1)
    ramp = ((torch.arange(dim // 2, dtype=torch.float) - low) / (high - low)).clamp(0, 1)
    frequencies = plain / c.rope_factor * ramp + plain * (1 - ramp)
    return frequencies, 0.1 * math.log(c.rope_factor) + 1.0


def rotate(x, cos, sin):
    a, b = x.chunk(2, dim=-1)
    return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)


def attend(q, k, v, sinks, scale, window=None):
    """Causal attention with one learned sink logit per head, on [n, heads, length, dim].

    The sink is an extra first key that scores exactly `sinks[head]` and whose value is zero:
    queries carry a constant 1 in an extra dimension, and only the sink key reads it.
    """
    n, heads, length, dim = q.shape
    pad = 8
    q = torch.cat((q, q.new_ones(n, heads, length, 1), q.new_zeros(n, heads, length, pad - 1)), -1)
    sink = torch.cat((sinks.new_zeros(heads, dim), (sinks / scale)[:, None], sinks.new_zeros(heads, pad - 1)), -1)
    k = torch.cat((sink.expand(n, -1, -1)[:, :, None], F.pad(k, (0, pad))), 2)
    v = F.pad(v, (0, pad, 1, 0))
    position = torch.arange(length)
    gap = position[:, None] - position[None]
    allowed = F.pad((gap >= 0) & (gap < window) if window else gap >= 0, (1, 0), value=True)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, scale=scale)[..., :dim]


class Attention(nn.Module):
    def __init__(self, c, sliding):
        super().__init__()
        self.c, self.window = c, c.sliding_window if sliding else None
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size)
        self.sinks = nn.Parameter(torch.zeros(c.num_attention_heads))

    def forward(self, x, cos, sin):
        c = self.c
        n, length, _ = x.shape
        q, k, v = (p(x).view(n, length, -1, c.head_dim).transpose(1, 2) for p in (self.q_proj, self.k_proj, self.v_proj))
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        repeat = c.num_attention_heads // c.num_key_value_heads
        k, v = k.repeat_interleave(repeat, 1), v.repeat_interleave(repeat, 1)
        out = attend(q, k, v, self.sinks, c.head_dim**-0.5, self.window)
        return self.o_proj(out.transpose(1, 2).reshape(n, length, -1))


class Experts(nn.Module):
    def __init__(self, c):
        super().__init__()
        e, h, i = c.num_local_experts, c.hidden_size, c.intermediate_size
        self.c = c
        self.router_weight = nn.Parameter(torch.empty(e, h))
        self.router_bias = nn.Parameter(torch.zeros(e))
        self.gate_up_proj = nn.Parameter(torch.empty(e, 2 * i, h))
        self.gate_up_proj_bias = nn.Parameter(torch.zeros(e, 2 * i))
        self.down_proj = nn.Parameter(torch.empty(e, h, i))
        self.down_proj_bias = nn.Parameter(torch.zeros(e, h))
        self.quantised = False

    def forward(self, x):
        c = self.c
        shape = x.shape
        x = x.flatten(0, -2)
        logits = F.linear(x, self.router_weight, self.router_bias)
        top, chosen = logits.topk(c.num_experts_per_tok, dim=-1)
        weights = top.softmax(-1)
        chosen = chosen.flatten()
        counts = torch.bincount(chosen, minlength=c.num_local_experts)
        self.balance = c.num_local_experts * (counts / chosen.numel() * logits.softmax(-1).mean(0)).sum()
        gate_up, down = self.gate_up_proj, self.down_proj
        if self.quantised:
            gate_up, down = mxfp4_fake(gate_up), mxfp4_fake(down)
        order = chosen.argsort(stable=True)
        token = order // c.num_experts_per_tok
        outputs = []
        for e, part in enumerate(x.index_select(0, token).split(counts.tolist())):
            hidden = F.linear(part, gate_up[e], self.gate_up_proj_bias[e])
            hidden = SwiGLU.apply(hidden, c.swiglu_alpha, c.swiglu_limit)
            outputs.append(F.linear(hidden, down[e], self.down_proj_bias[e]))
        out = torch.cat(outputs) * weights.flatten()[order, None]
        return torch.zeros_like(x).index_add(0, token, out).view(shape)


class Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        self.input_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.self_attn = Attention(c, sliding=index % 2 == 0)
        self.post_attention_layernorm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.mlp = Experts(c)

    def forward(self, x, cos, sin):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        return x + self.mlp(self.post_attention_layernorm(x))


class Model(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.embed_tokens = nn.Embedding(c.vocab_size, c.hidden_size)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c.num_hidden_layers))
        self.norm = RMSNorm(c.hidden_size, c.rms_norm_eps)
        self.lm_head = nn.Linear(c.hidden_size, c.vocab_size, bias=False)
        self.reset()

    @torch.no_grad()
    def reset(self):
        deep = (2 * self.c.num_hidden_layers) ** -0.5
        for name, p in self.named_parameters():
            if name.endswith("bias"):
                p.zero_()
            elif p.dim() > 1:
                std = 1.0 if "embed" in name else 0.02 if "router" in name else p.shape[-1] ** -0.5 * 0.6
                p.normal_(0, std * (deep if "o_proj" in name or "down_proj" in name else 1))
        # Aligned at the start (though untied), so that copying a word needs no learned translation.
        self.lm_head.weight.copy_(self.embed_tokens.weight * 0.02)

    def quantise(self, on):
        for layer in self.layers:
            layer.mlp.quantised = on

    def forward(self, ids):
        """The state after the last norm for [documents, length] ids, and the balance loss."""
        frequencies, factor = yarn_frequencies(self.c)
        angle = torch.arange(ids.shape[1], dtype=torch.float)[:, None] * frequencies
        cos, sin = angle.cos() * factor, angle.sin() * factor
        x = self.embed_tokens(ids)
        for layer in self.layers:
            x = layer(x, cos, sin)
        return self.norm(x), sum(layer.mlp.balance for layer in self.layers) / len(self.layers)
