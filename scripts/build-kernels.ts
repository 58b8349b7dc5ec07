// Compiles kernels/wasm (AssemblyScript) into the four variants that the cpu backend chooses from: with shared memory and
// threads or without, with relaxed SIMD or plain SIMD128. Does nothing when they are newer than their sources. Node only.
import { readdirSync, statSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = new URL("../", import.meta.url);
const sources = new URL("kernels/wasm/", root);
const output = new URL("backends/cpu/", root);

const SHARED = ["--enable", "threads", "--sharedMemory", "--maximumMemory", "65536"];
const RELAXED = ["--enable", "relaxed-simd"];
const VARIANTS: Record<string, string[]> = {
  "threads-relaxed": [...SHARED, ...RELAXED],
  "threads-simd": SHARED,
  "single-relaxed": RELAXED,
  "single-simd": [],
};

const modified = (file: URL | string) => statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0;
const newest = Math.max(
  modified(fileURLToPath(import.meta.url)),
  ...readdirSync(sources)
    .filter((name) => name.endsWith(".ts"))
    .map((name) => modified(new URL(name, sources))),
);

for (const [variant, flags] of Object.entries(VARIANTS)) {
  const file = new URL(`kernels.${variant}.wasm`, output);
  if (modified(file) > newest) continue;
  // Loaded only when there is something to compile: it takes longer than to find out.
  const { default: asc } = await import("assemblyscript/asc");
  const entry = fileURLToPath(new URL("program.ts", sources));
  const { error, stderr } = await asc.main([
    entry,
    ...["--outFile", fileURLToPath(file), "--runtime", "stub", "--importMemory", "--noAssert"],
    // Nothing but the exports and arithmetic: no runtime call may abort, no data may be written by an instance.
    ...["--use", "abort=", "-O3", "--converge", "--disableWarning", "112", "--enable", "simd", ...flags],
  ]);
  if (error !== null) {
    process.stderr.write(stderr.toString());
    throw error;
  }
  const bytes = statSync(file).size;
  process.stdout.write(`kernels.${variant}.wasm ${(bytes / 1024).toFixed(1)} KiB\n`);
}
