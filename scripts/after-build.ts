// What tsc does not do for dist/: copies the compiled kernels beside the code that loads them and makes the command runnable.
import { chmodSync, copyFileSync, readdirSync } from "node:fs";

const root = new URL("../", import.meta.url);
for (const folder of ["backends/cpu/", "src/precision/"]) {
  for (const name of readdirSync(new URL(folder, root)).filter((file) => file.endsWith(".wasm"))) {
    copyFileSync(new URL(folder + name, root), new URL(`dist/${folder}${name}`, root));
  }
}
chmodSync(new URL("dist/src/cli/main.js", root), 0o755);
