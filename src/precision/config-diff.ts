// Two models' config.json, key by key: what a dump was made with, and what is compared with it. Knows no architecture.

/** One value, by its path in the file: `rope_scaling.factor`. Undefined where only the other side has it. */
export interface ConfigEntry {
  readonly name: string;
  readonly reference?: string;
  readonly here?: string;
  /** Both sides have it, with other values. */
  readonly differs: boolean;
}

/** @param reference undefined: a dump that does not say; all entries are then the other side's. */
export function compareConfigs(reference: unknown, here: unknown): ConfigEntry[] {
  const [theirs, mine] = [new Map(leaves(reference)), new Map(leaves(here))];
  return Array.from(new Set([...mine.keys(), ...theirs.keys()]), (name) => {
    const [other, own] = [theirs.get(name), mine.get(name)];
    const differs = other !== undefined && own !== undefined && !same(other, own);
    return {
      name,
      ...(other !== undefined && { reference: String(other) }),
      ...(own !== undefined && { here: String(own) }),
      differs,
    };
  });
}

/**
 * Whether a model with another value computes something else: sizes, layers, positions, norms, activations, experts and formats. The
 * rest of a config.json (dtypes, ids of special tokens, versions, training) may differ.
 */
export function isDecisive(name: string): boolean {
  return /^(vocab_size|hidden_size|(moe_|shared_expert_)?intermediate_size|num_(hidden_layers|attention_heads|key_value_heads|local_experts|experts|experts_per_tok)|head_dim|hidden_act|hidden_activation|rms_norm_eps|rope_theta|rope_local_base_freq|(rope_scaling|rope_parameters)\.(rope_theta|factor|rope_type|type|beta_\w+|attention_factor|low_freq_factor|high_freq_factor|original_max_position_embeddings|truncate|mscale\w*)|partial_rotary_factor|sliding_window|use_sliding_window|layer_types|no_rope_layers|attn_logit_softcapping|final_logit_softcapping|query_pre_attn_scalar|norm_topk_prob|decoder_sparse_step|mlp_only_layers|swiglu_limit|attention_bias|mlp_bias|tie_word_embeddings|quantization_config\..*)$/.test(
    name,
  );
}

type Leaf = string | number | boolean | null;

/** GGUF files have their numbers in f32. */
function same(a: Leaf, b: Leaf): boolean {
  return typeof a === "number" && typeof b === "number" ? Math.fround(a) === Math.fround(b) : a === b;
}

/** `{ a: { b: [1, 2] } }` → [["a.b", "1, 2"]] */
function leaves(value: unknown, path = ""): [string, Leaf][] {
  if (value === undefined) return [];
  if (Array.isArray(value)) {
    const scalars = value.every((item) => typeof item !== "object" || item === null);
    return [[path, scalars ? value.join(", ") : JSON.stringify(value)]];
  }
  if (typeof value === "object" && value !== null) {
    return Object.entries(value).flatMap(([name, item]) => leaves(item, path === "" ? name : `${path}.${name}`));
  }
  return [[path, value as Leaf]];
}
