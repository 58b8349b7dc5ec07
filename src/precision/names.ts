// Dumps of transformers 4 in the names and shapes of 5, which are this project's. Renames and leaves out; derives no values.
import type { Manifest } from "./reference.ts";

/** Keys without their step, or what they end in, and what they are in 5: nothing, or several where one tensor stands for them. */
type Rule = readonly [from: RegExp, to: readonly string[]];

/** 4 has a module for each expert and none for all; its gate is a linear layer. What the block reads and returns is the experts'. */
const BLOCK_OF_EXPERTS: readonly Rule[] = [
  [/\.(mlp|block_sparse_moe)(\.experts\.\d+\..*|:out\.1)$/, []],
  [/\.(mlp|block_sparse_moe)\.gate:in$/, [".mlp.gate:in", ".mlp.experts:in"]],
  [/\.(mlp|block_sparse_moe)\.gate:out(\.0)?$/, [".mlp.gate:out.0"]],
  [/\.(mlp|block_sparse_moe):out$/, [".mlp.experts:out", ".mlp:out"]],
  [/\.block_sparse_moe\b/, [".mlp"]],
];

/** By model type; the first rule that matches counts. */
const RULES: Readonly<Record<string, readonly Rule[]>> = {
  // Scales what the embedding returned.
  gemma2: [
    [/^model\.embed_tokens:out$/, []],
    [/^model\.layers\.0:in$/, ["model.embed_tokens:out", "model.layers.0:in"]],
  ],
  gemma3_text: [
    [/^model\.rotary_emb:(\w+)$/, ["model.rotary_emb:$1.full_attention"]],
    [/^model\.rotary_emb_local:(\w+)$/, ["model.rotary_emb:$1.sliding_attention"]],
  ],
  // The router returns weights with zeros between them, then experts.
  gpt_oss: [
    [/\.mlp(\.router:out\.0|:out\.1)$/, []],
    [/\.router:out\.1$/, [".router:out.2"]],
  ],
  mixtral: BLOCK_OF_EXPERTS,
  qwen3_moe: BLOCK_OF_EXPERTS,
};

/** What 4 has no tensor of, by model type. */
const LACKING: Readonly<Record<string, RegExp>> = {
  gpt_oss: /\.mlp(\.router:out\.[01]|:out\.1)$/,
  mixtral: /\.mlp\.gate:out\.[12]$/,
  qwen3_moe: /\.mlp\.gate:out\.[12]$/,
};

export interface Modern {
  readonly manifest: Manifest;
  /** Whether the producer has no tensor like it (a key without its step), so that none is missing. */
  readonly lacks: (key: string) => boolean;
  /** What was done, for people. */
  readonly notes: readonly string[];
}

/** Tensors keep the names under which they are stored: `alias_of`. */
export function modern(manifest: Manifest): Modern {
  const { model_type = "" } = manifest;
  const version = madeWith4(manifest);
  const rules = RULES[model_type];
  if (version === undefined || rules === undefined) return { manifest, lacks: () => false, notes: [] };
  const order: string[] = [];
  const tensors: Record<string, Manifest["tensors"][string]> = {};
  const changes = new Set<string>();
  const gated = new Set<string>();
  for (const full of manifest.order) {
    const at = full.indexOf("/") + 1;
    const [step, key] = [full.slice(0, at), full.slice(at)];
    const [from, to] = rules.find(([from]) => from.test(key)) ?? [/$/, [""]];
    for (const name of to.map((replacement) => step + key.replace(from, replacement))) {
      if (name.endsWith(".experts:in")) gated.add(name.replace(/:in$/, ":out"));
      // Some layers have no experts.
      if (name.endsWith(".experts:out") && !gated.has(name)) continue;
      order.push(name);
      const entry = manifest.tensors[full];
      if (entry !== undefined)
        tensors[name] = { ...entry, shape: flat(name, entry.shape), alias_of: entry.alias_of ?? full };
      if (name !== full) changes.add(`${everywhere(key)} is ${everywhere(name.slice(at))}`);
    }
    if (to.length === 0) changes.add(`${everywhere(key)} is left out`);
  }
  return {
    manifest: { ...manifest, order, tensors },
    lacks: (key) => LACKING[model_type]?.test(key) ?? false,
    notes: changes.size === 0 ? [] : [`the dump is of transformers ${version}: ${[...changes].join(", ")}`],
  };
}

/** Why such a dump is of another model than its config.json says, or undefined. */
export function unreadConfig(manifest: Manifest, config: unknown): string | undefined {
  const version = madeWith4(manifest);
  if (version === undefined || typeof config !== "object" || config === null) return undefined;
  if (!("rope_parameters" in config) || "rope_theta" in config) return undefined;
  return `transformers ${version}, which made the dump, does not read rope_parameters of config.json and took defaults of its own: make it with transformers 5, or of a config.json with rope_theta and rope_scaling`;
}

function madeWith4({ producer }: Manifest): string | undefined {
  const version = producer?.transformers;
  return typeof version === "string" && version.startsWith("4.") ? version : undefined;
}

/** Routers and experts read rows of tokens in 5, [T, D]; in 4 some read [1, T, D]. */
function flat(name: string, shape: readonly number[]): readonly number[] {
  return /\.mlp\.(router|gate|experts):/.test(name) && shape.length === 3 && shape[0] === 1 ? shape.slice(1) : shape;
}

const everywhere = (key: string) => key.replace(/layers\.\d+\./, "layers.*.").replace(/experts\.\d+\..*/, "experts.*");
