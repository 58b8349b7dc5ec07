// GGUF files as checkpoints: their tokenizers, and their weights against the checkpoints they were made from. Their numbers against
// PyTorch are in precision/cases.test.ts.
import { createHash } from "node:crypto";
import { readFileSync } from "node:fs";
import { fileURLToPath } from "node:url";
import { afterEach, describe, expect, test } from "vitest";
import { sizeOf } from "../src/backend.ts";
import { readConfig } from "../src/config.ts";
import { VernierError } from "../src/errors.ts";
import { openGguf } from "../src/gguf.ts";
import { type OpenModel, openModel, summarize } from "../src/inspect.ts";
import type { GptOssConfig } from "../src/models/gpt_oss.ts";
import type { LlamaConfig } from "../src/models/llama.ts";
import type { MoeConfig } from "../src/models/mixtral.ts";
import { loadChatTemplate } from "../src/text/chat-template.ts";
import { createTokenizer, loadTokenizer } from "../src/text/tokenizer.ts";
import { decodeWeight } from "../weights/decode.ts";
import { parseGguf } from "../weights/gguf.ts";
import { type GgufSpec, ggufFile, type TensorEntry, type Value } from "./weights/gguf-file.ts";
import { errorOf, memoryFiles } from "./weights/memory.ts";

const data = fileURLToPath(new URL("./data/", import.meta.url));
const FILES = ["llama-q8_0", "qwen3-q8_0", "gpt_oss-mxfp4"];

const opened: OpenModel[] = [];
afterEach(async () => {
  await Promise.all(opened.splice(0).map(({ checkpoint }) => checkpoint.close()));
});

async function open(path: string): Promise<OpenModel> {
  const model = await openModel({ kind: "path", path });
  opened.push(model);
  return model;
}

// ---------------------------------------------------------------------------------------------- tokenizers

describe.each(FILES)("%s", (name) => {
  const golden: { strings: string[]; ids: number[][]; metadata: Record<string, unknown> } = JSON.parse(
    readFileSync(`${data}gguf/${name}.json`, "utf8"),
  );

  test("its tokenizer gives the ids of the tokenizer it was made from, and its text back", async () => {
    const { files, config } = await open(`${data}gguf/${name}.gguf`);
    const tokenizer = await loadTokenizer(files, { vocabSize: config.vocabSize });
    for (const [i, text] of golden.strings.entries()) {
      expect(tokenizer.encode(text, { addSpecialTokens: false })).toEqual(golden.ids[i]);
    }
    expect(tokenizer.decode(tokenizer.encode("many  words, 1234 & ünï"))).toBe("many  words, 1234 & ünï");
    expect([tokenizer.idOf(tokenizer.bosToken!), tokenizer.idOf(tokenizer.eosToken!)]).toEqual([1, 2]);
    expect(tokenizer.encode("x").length).toBe(tokenizer.encode("x", { addSpecialTokens: false }).length);
  });

  test("its chat template is the one of the metadata", async () => {
    const { files } = await open(`${data}gguf/${name}.gguf`);
    const [bos, eos] =
      name === "llama-q8_0"
        ? ["<s>", "</s>"]
        : name === "qwen3-q8_0"
          ? ["<|im_start|>", "<|im_end|>"]
          : ["<|startoftext|>", "<|return|>"];
    const text = (await loadChatTemplate(files))!.render([{ role: "user", content: " hi " }], {
      addGenerationPrompt: true,
    });
    expect(text).toBe(`${bos}user\nhi${eos}\n${bos}assistant\n`);
  });
});

interface TokenizerJson {
  readonly added_tokens: readonly { id: number; content: string; special: boolean }[];
  readonly model: { readonly vocab: Record<string, number>; readonly merges: readonly (string | [string, string])[] };
}

/** The metadata that llama.cpp's converter makes of a tokenizer.json. */
function tokenizerMetadata({ added_tokens, model }: TokenizerJson, extra: Record<string, Value>): [string, Value][] {
  const tokens: string[] = [];
  const types: number[] = [];
  for (const [token, id] of Object.entries(model.vocab))
    [tokens[id], types[id]] = [token, /^<0x..>$/.test(token) ? 6 : 1];
  for (const { id, content, special } of added_tokens) {
    [tokens[id], types[id]] = [content, content === "<unk>" ? 2 : special ? 3 : 4];
  }
  const metadata: Record<string, Value> = {
    ...LLAMA,
    "llama.vocab_size": ["u32", tokens.length],
    "tokenizer.ggml.tokens": ["array", "string", tokens],
    "tokenizer.ggml.token_type": ["array", "i32", types],
    ...extra,
  };
  return Object.entries(metadata);
}

const pairOf = (merge: string | [string, string]) =>
  typeof merge === "string" ? (merge.split(" ") as [string, string]) : merge;

async function tokenizerOf(metadata: [string, Value][]) {
  const { files, checkpoint } = await openGguf(memoryFiles({ "m.gguf": ggufFile({ metadata }) }), "m.gguf");
  const { vocab_size } = JSON.parse(await textOf(files, "config.json"));
  await checkpoint.close();
  return {
    tokenizer: await loadTokenizer(files, { vocabSize: vocab_size }),
    json: JSON.parse(await textOf(files, "tokenizer.json")),
  };
}

/** The fields without which `tokenizers` (Python) 0.23 refuses a component of tokenizer.json, by its type. */
const REQUIRED: Record<string, readonly string[]> = {
  ...{ NFC: [], Prepend: ["prepend"], Replace: ["pattern", "content"], ByteFallback: [], Fuse: [] },
  ...{ Strip: ["content", "start", "stop"], Split: ["pattern", "behavior", "invert"], BPE: ["vocab", "merges"] },
  ByteLevel: ["add_prefix_space", "trim_offsets"],
  TemplateProcessing: ["single", "pair", "special_tokens"],
};
const ADDED = ["id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"];

/** The components of a tokenizer.json, those in sequences one by one. */
function components(json: unknown): Record<string, unknown>[] {
  const one = json as Record<string, Record<string, unknown>[]> | null;
  if (one === null) return [];
  const inner = one.normalizers ?? one.pretokenizers ?? one.decoders;
  return inner === undefined ? [one] : inner.flatMap(components);
}

test.each(["gpt-2", "qwen2", "llama-bpe", "gpt-4o", "tekken", "SentencePiece"])(
  "%s: tokenizer.json has what Python's tokenizers requires, and ids that it keeps",
  async (pre) => {
    const original: TokenizerJson = readText("stories260k/tokenizer.json");
    const { json } = await tokenizerOf(
      tokenizerMetadata(original, {
        "tokenizer.ggml.model": ["string", pre === "SentencePiece" ? "llama" : "gpt2"],
        ...(pre !== "SentencePiece" && { "tokenizer.ggml.pre": ["string", pre] }),
        "tokenizer.ggml.merges": ["array", "string", original.model.merges.map((merge) => pairOf(merge).join(" "))],
        "tokenizer.ggml.scores": ["array", "f32", Object.keys(original.model.vocab).map(() => 0)],
        "tokenizer.ggml.bos_token_id": ["u32", 1],
        "tokenizer.ggml.eos_token_id": ["u32", 2],
        "tokenizer.ggml.add_bos_token": ["bool", true],
        "tokenizer.ggml.add_eos_token": ["bool", true],
      }),
    );
    const { normalizer, pre_tokenizer, decoder, post_processor, model } = json;
    const all = [normalizer, pre_tokenizer, decoder, post_processor, model].flatMap(components);
    expect(all.length).toBeGreaterThanOrEqual(4);
    for (const component of all) {
      const type = component.type as string;
      const missing = REQUIRED[type].filter((field) => component[field] === undefined);
      expect([type, missing]).toEqual([type, []]);
    }
    const around = (id: string, type_id: number) => [
      { SpecialToken: { id: "<s>", type_id } },
      { Sequence: { id, type_id } },
      { SpecialToken: { id: "</s>", type_id } },
    ];
    expect(post_processor.single).toEqual(around("A", 0));
    expect(post_processor.pair).toEqual([...around("A", 0), ...around("B", 1)]);
    // An added token that is not in the vocabulary gets the next free id there.
    for (const added of json.added_tokens) {
      expect(Object.keys(added).sort()).toEqual([...ADDED].sort());
      expect([added.content, model.vocab[added.content]]).toEqual([added.content, added.id]);
    }
  },
);

const readText = (path: string) => JSON.parse(readFileSync(`${data}text/${path}`, "utf8"));

test.each([
  ["gpt2", "gpt-2"],
  ["llama3", "llama-bpe"],
  ["qwen2", "qwen2"],
  ["qwen2", "deepseek-r1-qwen"],
  ["o200k", "gpt-4o"],
])("tokenizers of kind %s (%s): 1,500 texts give the ids of the original", async (name, pre) => {
  const original: TokenizerJson = readText(`tokenizers/${name}/tokenizer.json`);
  const golden: { ids: number[][]; ids_add_special_tokens: number[][] } = readText(`tokenizers/${name}/goldens.json`);
  const strings: string[] = readText("tokenizers/strings.json");
  const { tokenizer } = await tokenizerOf(
    tokenizerMetadata(original, {
      "tokenizer.ggml.model": ["string", "gpt2"],
      "tokenizer.ggml.pre": ["string", pre],
      "tokenizer.ggml.merges": ["array", "string", original.model.merges.map((merge) => pairOf(merge).join(" "))],
      "tokenizer.ggml.bos_token_id": ["u32", 0],
    }),
  );
  for (const [i, ids] of golden.ids.entries()) {
    expect([strings[i], tokenizer.encode(strings[i], { addSpecialTokens: false })]).toEqual([strings[i], ids]);
  }
  for (const [i, ids] of golden.ids_add_special_tokens.entries()) expect(tokenizer.encode(strings[i])).toEqual(ids);
});

test("tekken: 1,500 texts give the ids of Hugging Face's tokenizers with the expression of Mistral's tekken.json", async () => {
  const original: TokenizerJson = readText("tokenizers/o200k/tokenizer.json");
  const strings: string[] = readText("tokenizers/strings.json");
  const { tokenizer, json } = await tokenizerOf(
    tokenizerMetadata(original, {
      "tokenizer.ggml.model": ["string", "gpt2"],
      "tokenizer.ggml.pre": ["string", "tekken"],
      "tokenizer.ggml.merges": ["array", "string", original.model.merges.map((merge) => pairOf(merge).join(" "))],
      "tokenizer.ggml.bos_token_id": ["u32", 0],
    }),
  );
  const ids = strings.map((text) => tokenizer.encode(text, { addSpecialTokens: false }));
  // Computed by tokenizers (Python) with the vocabulary of the test's o200k, that expression, and ignore_merges.
  expect(createHash("sha256").update(JSON.stringify(ids)).digest("hex")).toBe(
    "78039df7396ee05b0c42dc719671c62545e8d753f1aa19c659fcdd15c96417f0",
  );
  expect(json.model.ignore_merges).toBe(true);
  expect(tokenizer.encode("a")).toEqual([0, ...tokenizer.encode("a", { addSpecialTokens: false })]);
});

test("SentencePiece: merges are made from scores, and 1,500 texts give the ids of the converted tokenizer", async () => {
  const original: TokenizerJson = readText("stories260k/tokenizer.json");
  const { merges, vocab } = original.model;
  const rank = new Map<string, number>();
  for (const merge of merges) {
    const token = pairOf(merge).join("");
    if (!rank.has(token)) rank.set(token, rank.size);
  }
  const scores: number[] = [];
  for (const [token, id] of Object.entries(vocab)) scores[id] = -(rank.get(token) ?? 1e6);
  const { tokenizer, json } = await tokenizerOf(
    tokenizerMetadata(original, {
      "tokenizer.ggml.model": ["string", "llama"],
      "tokenizer.ggml.scores": ["array", "f32", scores],
      "tokenizer.ggml.bos_token_id": ["u32", 1],
    }),
  );
  // Ways to make the same token have the same score: their order is nobody's.
  const made: [string, string][] = json.model.merges;
  expect(made.map((pair) => pair.join(""))).toEqual(merges.map((merge) => pairOf(merge).join("")));
  expect(new Set(made.map(String))).toEqual(new Set(merges.map((merge) => String(pairOf(merge)))));
  const wanted = createTokenizer(original, {}, { vocabSize: scores.length });
  for (const text of readText("tokenizers/strings.json")) {
    expect([text, tokenizer.encode(text)]).toEqual([text, wanted.encode(text)]);
    expect(tokenizer.decode(tokenizer.encode(text))).toBe(wanted.decode(wanted.encode(text)));
  }
});

test("GG16 a vocabulary that contradicts itself", async () => {
  const spm = (changes: Record<string, Value>): GgufSpec => {
    const metadata: Record<string, Value> = {
      ...LLAMA,
      "tokenizer.ggml.model": ["string", "llama"],
      "tokenizer.ggml.tokens": ["array", "string", ["<unk>", "<s>", "▁", "a", "▁a"]],
      "tokenizer.ggml.scores": ["array", "f32", [0, 0, -1, -2, -3]],
      "tokenizer.ggml.token_type": ["array", "i32", [2, 3, 1, 1, 1]],
      ...changes,
    };
    return { metadata: Object.entries(metadata) };
  };
  const load = async (changes: Record<string, Value>) => {
    const files = memoryFiles({ "m.gguf": ggufFile(spm(changes)) });
    const { files: made } = await openGguf(files, "m.gguf");
    return loadTokenizer(made, { vocabSize: 5 });
  };
  const good = await load({ "tokenizer.ggml.bos_token_id": ["u32", 1] });
  expect(good.encode("a a")).toEqual([1, 4, 4]);
  expect(good.decode([4, 4])).toBe("a a");
  const cases: [Record<string, Value>, string, string][] = [
    [{ "tokenizer.ggml.scores": ["array", "f32", [0, 0]] }, "TOK_VOCAB", "2 entries for 5 tokens"],
    [{ "tokenizer.ggml.token_type": ["array", "i32", [2, 3, 1]] }, "TOK_VOCAB", "3 entries for 5 tokens"],
    [{ "tokenizer.ggml.token_type": ["array", "i32", [2, 3, 1, 1, 7]] }, "TOK_VOCAB", "token 4 has type 7"],
    [
      {
        "tokenizer.ggml.tokens": ["array", "string", ["a", "a", "b", "c", "d"]],
        "tokenizer.ggml.token_type": ["array", "i32", [1, 1, 1, 1, 1]],
      },
      "TOK_VOCAB",
      '"a" has the ids 0 and 1',
    ],
    [{ "tokenizer.ggml.tokens": ["array", "i32", [1]] }, "TOK_CONFIG", "expected a list of strings"],
    [{ "tokenizer.ggml.bos_token_id": ["u32", 5] }, "TOK_ID_RANGE", "tokenizer.ggml.bos_token_id"],
    [{ "tokenizer.ggml.eos_token_id": ["u32", 4_000_000_000] }, "TOK_ID_RANGE", "tokenizer.ggml.eos_token_id"],
    [{ "tokenizer.ggml.model": ["string", "bert"] }, "TOK_CONFIG", '"bert" is not supported'],
    [
      { "tokenizer.ggml.model": ["string", "gpt2"], "tokenizer.ggml.merges": ["array", "string", ["a b"]] },
      "TOK_MERGE",
      '"b" is not in the vocabulary',
    ],
    [
      { "tokenizer.ggml.model": ["string", "gpt2"], "tokenizer.ggml.pre": ["string", "viking"] },
      "TOK_CONFIG",
      '"viking" is not supported',
    ],
  ];
  for (const [changes, code, text] of cases) {
    const error = await errorOf(() => load(changes));
    expect([error.code, error.message]).toEqual([code, expect.stringContaining(text)]);
  }
});

// ---------------------------------------------------------------------------------------------- metadata

const LLAMA: Record<string, Value> = {
  "general.architecture": ["string", "llama"],
  "llama.block_count": ["u32", 1],
  "llama.context_length": ["u32", 64],
  "llama.embedding_length": ["u32", 8],
  "llama.feed_forward_length": ["u32", 16],
  "llama.attention.head_count": ["u32", 2],
  "llama.attention.head_count_kv": ["u32", 1],
  "llama.attention.layer_norm_rms_epsilon": ["f32", 1e-5],
  "llama.vocab_size": ["u32", 5],
};

test.each<[id: string, change: Record<string, Value>, code: string, text: string]>([
  ["GG14 unknown", { "general.architecture": ["string", "rwkv6"] }, "GG_ARCH", '"rwkv6". Supported: llama'],
  ["GG14 of a type of its own", { "general.architecture": ["u32", 1] }, "GG_ARCH", "missing. Supported: llama"],
  ["GG14 of 1 MB", { "general.architecture": ["string", "x".repeat(1e6)] }, "GG_ARCH", "Supported: llama"],
  [
    "GG15 no layers",
    { "llama.block_count": ["u32", 0] },
    "CFG_RANGE",
    "llama.block_count: expected a whole number from 1 to 4096",
  ],
  ["GG15 2^32 − 1 layers", { "llama.block_count": ["u32", 2 ** 32 - 1] }, "CFG_RANGE", "llama.block_count"],
  ["GG15 layers in words", { "llama.block_count": ["string", "two"] }, "CFG_TYPE", "llama.block_count"],
  ["GG15 heads", { "llama.attention.head_count": ["u32", 3] }, "CFG_RANGE", "llama.attention.head_count"],
  ["GG15 no kv heads", { "llama.attention.head_count_kv": ["u32", 0] }, "CFG_RANGE", "llama.attention.head_count_kv"],
  [
    "GG15 kv heads",
    { "llama.attention.head_count": ["u32", 4], "llama.attention.head_count_kv": ["u32", 3] },
    "CFG_RANGE",
    "a divisor of head_count 4",
  ],
  ["GG15 odd rope", { "llama.rope.dimension_count": ["u32", 3] }, "CFG_RANGE", "llama.rope.dimension_count"],
  ["GG15 huge rope", { "llama.rope.dimension_count": ["u32", 2 ** 31] }, "CFG_RANGE", "llama.rope.dimension_count"],
  ["GG15 context 2^32", { "llama.context_length": ["u64", 2 ** 32] }, "CFG_RANGE", "llama.context_length"],
  ["GG18 a part", { "split.count": ["u16", 65_535] }, "GG_SPLIT", "one of 65535 parts"],
])("%s", async (_, change, code, text) => {
  const files = memoryFiles({ "m.gguf": ggufFile({ metadata: Object.entries({ ...LLAMA, ...change }) }) });
  const error = await errorOf(() => openGguf(files, "m.gguf"));
  expect([error.code, error.file]).toEqual([code, "m.gguf"]);
  expect(error.message).toContain(text);
  expect(error.message.length).toBeLessThan(400);
});

test("GG17 tensors that are not what the metadata says", async () => {
  const embedding = { name: "token_embd.weight", ne: [8, 4], bytes: new Uint8Array(128) };
  const files = memoryFiles({ "m.gguf": ggufFile({ metadata: Object.entries(LLAMA), tensors: [embedding] }) });
  const { files: made, checkpoint } = await openGguf(files, "m.gguf");
  const { architecture, config } = readConfig(JSON.parse(await textOf(made, "config.json")));
  const table = architecture.tensors(config);
  const rows = await errorOf(() => checkpoint.source("model.embed_tokens.weight", table["model.embed_tokens.weight"]));
  expect([rows.code, rows.tensor]).toEqual(["MODEL_SHAPE", "model.embed_tokens.weight"]);
  const gone = await errorOf(() => checkpoint.source("model.norm.weight", table["model.norm.weight"]));
  expect([gone.code, gone.tensor]).toEqual(["MODEL_TENSOR_MISSING", "model.norm.weight"]);
});

async function textOf(files: OpenModel["files"], name: string): Promise<string> {
  const file = await files.open(name);
  return new TextDecoder().decode(await file.read(0, file.size));
}

test("a folder with one GGUF file is that file; of several one must be named", async () => {
  const bytes = ggufFile({ metadata: Object.entries(LLAMA) });
  const blob = (names: string[]) =>
    ({ kind: "blobs", blobs: new Map(names.map((name) => [name, new Blob([bytes])])) }) as const;
  const model = await openModel(blob(["m.gguf"]));
  expect([model.architecture.modelType, model.config.hiddenSize]).toEqual(["llama", 8]);
  const error = await errorOf(() => openModel(blob(["a.gguf", "b.GGUF"])));
  expect([error.code, error.message]).toEqual(["OPTION_RANGE", expect.stringContaining('"a.gguf", "b.GGUF"')]);
});

test("1,000 files with a damaged header: a model that holds together, or a typed error", async () => {
  const original = new Uint8Array(readFileSync(`${data}gguf/qwen3-q8_0.gguf`));
  const bytes = original.slice();
  const header = parseGguf(original, original.length)!;
  const end = Math.min(...[...header.tensors.values()].map(({ byteOffset }) => byteOffset));
  const codes = new Map<string, number>();
  let state = 1;
  const next = () => {
    state = (Math.imul(state, 1_664_525) + 1_013_904_223) >>> 0;
    return state >>> 8;
  };
  for (let round = 0; round < 1000; round++) {
    // Mostly numbers of the metadata before the vocabulary, and of the tensors after it.
    const at = Array.from({ length: 1 + (next() % 2) }, () => (next() % 3 === 0 ? next() % end : next() % 1500));
    for (const byte of at) bytes[byte] = [0, 1, 0x7f, 0xff, next() & 0xff][next() % 5];
    let code = "ok";
    try {
      const model = await openModel({ kind: "blobs", blobs: new Map([["m.gguf", new Blob([bytes])]]) });
      summarize(model);
      await loadTokenizer(model.files, { vocabSize: model.config.vocabSize });
    } catch (error) {
      if (!(error instanceof VernierError)) throw error;
      expect(error.message.length).toBeLessThan(1000);
      code = error.code;
    }
    codes.set(code, (codes.get(code) ?? 0) + 1);
    for (const byte of at) bytes[byte] = original[byte];
  }
  expect(codes.get("ok")).toBeGreaterThan(50);
  expect([...codes.keys()].filter((code) => /^(GG|CFG|TOK|MODEL)_/.test(code)).length).toBeGreaterThan(8);
  // FILE_MISSING: the key of the tokenizer is damaged, so there is none.
  expect([...codes.keys()].filter((code) => !/^(ok$|GG_|CFG_|TOK_|MODEL_|FILE_MISSING)/.test(code))).toEqual([]);
});

// ---------------------------------------------------------------------------------------------- architectures

/** A checkpoint as llama.cpp's converter would write it, in f32. Written from the formulas, not from src/gguf.ts. */
async function converted(folder: string): Promise<{ hf: OpenModel; gguf: Uint8Array<ArrayBuffer> }> {
  const hf = await open(folder);
  const type = hf.architecture.modelType;
  const names: Record<string, string> = {
    mixtral: "llama",
    qwen3_moe: "qwen3moe",
    gpt_oss: "gpt-oss",
    gemma3_text: "gemma3",
  };
  const arch = names[type] ?? type;
  // What the architectures read, defaults filled in; a tiny config.json leaves most of it out.
  const config = hf.config as LlamaConfig & Partial<GptOssConfig & MoeConfig>;
  const { numAttentionHeads: heads, numKeyValueHeads: kvHeads } = config;
  const rope = config.rope ?? config.ropes.full_attention ?? config.ropes.default;
  const metadata: [string, Value][] = [["general.architecture", ["string", arch]]];
  const put = (key: string, valueType: "u32" | "f32", value: number | undefined) => {
    if (value !== undefined) metadata.push([`${arch}.${key}`, [valueType, value]]);
  };
  put("block_count", "u32", config.numHiddenLayers);
  put("context_length", "u32", config.maxPositionEmbeddings);
  put("embedding_length", "u32", config.hiddenSize);
  put("feed_forward_length", "u32", config.intermediateSize);
  put("attention.head_count", "u32", heads);
  put("attention.head_count_kv", "u32", kvHeads);
  put("attention.key_length", "u32", config.headDim);
  put("attention.layer_norm_rms_epsilon", "f32", config.norm?.eps ?? config.rmsNormEps);
  put("rope.freq_base", "f32", rope.theta);
  put("rope.dimension_count", "u32", rope.rotaryDim);
  put(
    "attention.sliding_window",
    "u32",
    config.windows.find((window) => window !== undefined),
  );
  put("expert_count", "u32", config.numExperts);
  put("expert_used_count", "u32", config.numExpertsPerTok);
  put(
    "expert_feed_forward_length",
    "u32",
    type === "gpt_oss" ? config.intermediateSize : config.expertIntermediateSize,
  );
  put("attn_logit_softcapping", "f32", config.attentionSoftcap);
  put("final_logit_softcapping", "f32", config.finalLogitSoftcapping);
  put("vocab_size", "u32", config.vocabSize);
  const full = config.windows.indexOf(undefined) + 1;
  put("attention.sliding_window_pattern", "u32", type === "gemma3_text" ? full : undefined);
  const { scaling } = rope;
  if (scaling.kind === "linear" || scaling.kind === "yarn") {
    metadata.push([`${arch}.rope.scaling.type`, ["string", scaling.kind]]);
    put("rope.scaling.factor", "f32", scaling.factor);
  }
  if ("originalMaxPositions" in scaling)
    put("rope.scaling.original_context_length", "u32", scaling.originalMaxPositions);

  const tensors: TensorEntry[] = [];
  const add = (name: string, shape: readonly number[], values: Float32Array) =>
    void tensors.push({ name, ne: shape.toReversed(), bytes: new Uint8Array(values.slice().buffer) });
  if (scaling.kind === "longrope") {
    add("rope_factors_long.weight", [scaling.longFactor.length], Float32Array.from(scaling.longFactor));
    add("rope_factors_short.weight", [scaling.shortFactor.length], Float32Array.from(scaling.shortFactor));
  }
  const merged = new Map<string, { shape: number[]; values: Float32Array[] }>();
  for (const { name, shape } of hf.checkpoint.tensors.values()) {
    const transposed = /experts\.(gate_up|down)_proj$/.test(name);
    const own = transposed ? [shape[0], shape[2], shape[1]] : shape;
    let values = await decodeWeight(hf.checkpoint.source(name, { shape: own, transposed }));
    const stem = name.replace("model.layers.", "blk.");
    const expert = /^(blk\.\d+)\..*experts\.(\d+)\.(\w+)\.weight$/.exec(stem);
    if (expert !== null) {
      const part = { w1: "gate", w3: "up", w2: "down", gate_proj: "gate", up_proj: "up", down_proj: "down" }[
        expert[3]
      ]!;
      const key = `${expert[1]}.ffn_${part}_exps.weight`;
      const all = merged.get(key) ?? { shape: [...shape], values: [] };
      all.values[Number(expert[2])] = values;
      merged.set(key, all);
      continue;
    }
    const packed = /^(blk\.\d+)\.mlp\.experts\.(gate_up|down)_proj(_bias)?$/.exec(stem);
    if (packed !== null) {
      const leaf = packed[3] === undefined ? "weight" : "bias";
      if (packed[2] === "down") add(`${packed[1]}.ffn_down_exps.${leaf}`, own, values);
      else {
        const columns = leaf === "bias" ? 1 : own[2];
        for (const [side, part] of ["gate", "up"].entries()) {
          const rows = Array.from({ length: own[0] * own[1] }, (_, row) => row).filter((row) => row % 2 === side);
          const half = rows.flatMap((row) => [...values.subarray(row * columns, (row + 1) * columns)]);
          add(`${packed[1]}.ffn_${part}_exps.${leaf}`, [own[0], own[1] / 2, ...own.slice(2)], Float32Array.from(half));
        }
      }
      continue;
    }
    if ((arch === "llama" || arch === "mistral") && /[qk]_proj/.test(name)) {
      values = permuted(values, shape, name.includes("q_proj") ? heads : kvHeads);
    }
    if (arch.startsWith("gemma") && name.endsWith("norm.weight")) values = values.map((value) => value + 1);
    add(ggufName(stem, arch), shape, values);
  }
  for (const [name, { shape, values }] of merged) {
    add(name, [values.length, ...shape], Float32Array.from(values.flatMap((part) => [...part])));
  }
  return { hf, gguf: ggufFile({ metadata, tensors }) };
}

/** W.reshape(H, 2, D / 2, in).swapaxes(1, 2) */
function permuted(values: Float32Array, shape: readonly number[], heads: number): Float32Array {
  const columns = sizeOf(shape) / shape[0];
  const half = shape[0] / heads / 2;
  const out = new Float32Array(values.length);
  let to = 0;
  for (let h = 0; h < heads; h++) {
    for (let i = 0; i < half; i++) {
      for (let s = 0; s < 2; s++, to += columns) {
        const from = ((h * 2 + s) * half + i) * columns;
        out.set(values.subarray(from, from + columns), to);
      }
    }
  }
  return out;
}

function ggufName(name: string, arch: string): string {
  const gemma = arch.startsWith("gemma");
  const names: [RegExp, string][] = [
    [/^model\.embed_tokens/, "token_embd"],
    [/^model\.norm/, "output_norm"],
    [/^lm_head/, "output"],
    [/input_layernorm/, "attn_norm"],
    [/post_attention_layernorm/, gemma || arch === "gpt-oss" ? "post_attention_norm" : "ffn_norm"],
    [/pre_feedforward_layernorm/, "ffn_norm"],
    [/post_feedforward_layernorm/, "post_ffw_norm"],
    [/self_attn\.o_proj/, "attn_output"],
    [/self_attn\.sinks$/, "attn_sinks.weight"],
    [/self_attn\.([qkv]|qkv)_proj/, "attn_$1"],
    [/self_attn\.([qk])_norm/, "attn_$1_norm"],
    [/(mlp|block_sparse_moe)\.(gate|router)\./, "ffn_gate_inp."],
    [/mlp\.gate_up_proj/, "ffn_up"],
    [/mlp\.(gate|up|down)_proj/, "ffn_$1"],
  ];
  return names.reduce((result, [from, to]) => result.replace(from, to), name);
}

const ARCHITECTURES = ["gemma2", "gemma3_text", "gpt_oss", "mistral", "mixtral", "phi3", "qwen2", "qwen3", "qwen3_moe"];

test.each(ARCHITECTURES)("%s: the checkpoint that was converted comes back, config and every value", async (name) => {
  const { hf, gguf } = await converted(`${data}models/${name}`);
  const model = await openModel({ kind: "blobs", blobs: new Map([["m.gguf", new Blob([gguf])]]) });
  opened.push(model);
  expect(model.architecture.modelType).toBe(hf.architecture.modelType);
  // llama.cpp has no key for the one, which follows from the sizes of the released models, nor for windows and unnormalised
  // experts of Qwen.
  const unknown = {
    attentionScale: undefined,
    ...(name.startsWith("qwen") && { windows: undefined, normTopkProb: undefined }),
  };
  expect({ ...model.config, ...unknown }).toEqual({ ...hf.config, ...unknown });
  // For other engines, where it is written to a folder: the class, and floats that look like floats.
  const { architectures } = hf.configJson as { architectures: string[] };
  expect(model.configJson).toMatchObject({ architectures, torch_dtype: "float32" });
  const text = await textOf(model.files, "config.json");
  for (const [, value] of text.matchAll(/softcapping":([^,}]+)/g)) expect(value).toMatch(/^\d+\.\d+$/);
  const table = hf.architecture.tensors(hf.config);
  expect(model.architecture.tensors(model.config)).toEqual(table);
  for (const [tensor, spec] of Object.entries(table)) {
    const [got, expected] = await Promise.all(
      [model, hf].map(({ checkpoint }) => decodeWeight(checkpoint.source(tensor, spec))),
    );
    // Gemma: 1 + w was rounded to f32 before one was subtracted again.
    const exact = got.every((value, i) => value === expected[i] || Math.abs(value - expected[i]) < 2 ** -23);
    expect([tensor, exact]).toEqual([tensor, true]);
    if (!/norm/.test(tensor)) expect([tensor, got.every((value, i) => value === expected[i])]).toEqual([tensor, true]);
  }
  expect(model.checkpoint.unused([]).filter((unused) => unused.startsWith("blk"))).toEqual([]);
});
