// Makes a fresh clone ready to run: installs the packages and compiles the kernels, each only when it is needed. Runs on
// whatever Node (20 or newer) is there, before anything is installed: CommonJS, no packages, no TypeScript.
"use strict";

const { spawnSync } = require("node:child_process");
const { existsSync, readdirSync, readFileSync, statSync } = require("node:fs");
const { join } = require("node:path");

const root = join(__dirname, "..");

/** What package-lock.json wants that node_modules does not have; packages for other systems are optional and may lack. */
function missingPackage() {
  const installedFile = join(root, "node_modules", ".package-lock.json");
  if (!existsSync(installedFile)) return "node_modules";
  const wanted = JSON.parse(readFileSync(join(root, "package-lock.json"), "utf8")).packages;
  const installed = JSON.parse(readFileSync(installedFile, "utf8")).packages;
  for (const [path, { version, optional }] of Object.entries(wanted)) {
    if (path !== "" && !optional && installed[path]?.version !== version) return path;
  }
  return undefined;
}

/** No compiled kernels, or a source that is newer. */
function kernelsAreStale() {
  const times = (folder, end) =>
    readdirSync(join(root, folder))
      .filter((file) => file.endsWith(end))
      .map((file) => statSync(join(root, folder, file)).mtimeMs);
  return [
    ["kernels/wasm", "backends/cpu"],
    ["kernels/precision", "src/precision"],
  ].some(([sources, output]) => {
    const built = times(output, ".wasm");
    return built.length === 0 || Math.max(...times(sources, ".ts")) > Math.min(...built);
  });
}

function npm(...args) {
  const cli = process.env.npm_execpath; // set by npm: the npm that runs us
  const [command, rest] = cli ? [process.execPath, [cli, ...args]] : ["npm", args];
  const { status, error } = spawnSync(command, rest, { cwd: root, stdio: "inherit", shell: !cli && process.platform === "win32" });
  if (error) throw error;
  if (status !== 0) process.exit(status ?? 1);
}

const missing = missingPackage();
if (missing !== undefined) {
  process.stderr.write(`first run: installing packages (${missing} is missing or old)\n`);
  npm("ci", "--no-audit", "--no-fund", "--ignore-scripts=false");
}
if (kernelsAreStale()) {
  process.stderr.write("first run: compiling kernels\n");
  npm("run", "-s", "build:kernels");
}
