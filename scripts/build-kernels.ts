// Compiles AssemblyScript: kernels/wasm into the four variants that the cpu backend chooses from (with shared memory and threads
// or without, with relaxed SIMD or plain SIMD128), and kernels/precision into what the precision tools measure with. Leaves alone
// what is newer than its sources. Node only.
import { readdirSync, statSync } from "node:fs";
import { fileURLToPath } from "node:url";

const root = new URL("../", import.meta.url);

const SHARED = ["--enable", "threads", "--sharedMemory", "--maximumMemory", "65536"];
const RELAXED = ["--enable", "relaxed-simd"];
/** By where they go: the entry, and flags. */
const MODULES: Record<string, readonly [entry: string, flags: readonly string[]]> = {
  "backends/cpu/kernels.threads-relaxed.wasm": ["kernels/wasm/program.ts", [...SHARED, ...RELAXED]],
  "backends/cpu/kernels.threads-simd.wasm": ["kernels/wasm/program.ts", SHARED],
  "backends/cpu/kernels.single-relaxed.wasm": ["kernels/wasm/program.ts", RELAXED],
  "backends/cpu/kernels.single-simd.wasm": ["kernels/wasm/program.ts", []],
  "src/precision/measure.wasm": ["kernels/precision/measure.ts", []],
};

const modified = (file: URL | string) => statSync(file, { throwIfNoEntry: false })?.mtimeMs ?? 0;

/** When this script or any source beside `entry` was changed last. */
function newest(entry: string): number {
  const folder = new URL("./", new URL(entry, root));
  const names = readdirSync(folder).filter((name) => name.endsWith(".ts"));
  return Math.max(modified(fileURLToPath(import.meta.url)), ...names.map((name) => modified(new URL(name, folder))));
}

for (const [output, [source, flags]] of Object.entries(MODULES)) {
  const file = new URL(output, root);
  if (modified(file) > newest(source)) continue;
  // Loaded only when there is something to compile: it takes longer than to find out.
  const { default: asc } = await import("assemblyscript/asc");
  const { error, stderr } = await asc.main([
    fileURLToPath(new URL(source, root)),
    ...["--outFile", fileURLToPath(file), "--runtime", "stub", "--importMemory", "--noAssert"],
    // Nothing but the exports and arithmetic: no runtime call may abort, no data may be written by an instance.
    ...["--use", "abort=", "-O3", "--converge", "--disableWarning", "112", "--enable", "simd", ...flags],
  ]);
  if (error !== null) {
    process.stderr.write(stderr.toString());
    throw error;
  }
  const bytes = statSync(file).size;
  process.stdout.write(`${output} ${(bytes / 1024).toFixed(1)} KiB\n`);
}
