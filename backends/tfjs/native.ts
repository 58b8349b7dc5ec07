// Loads @tensorflow/tfjs-node, the native library of TensorFlow.js. Node only.
import util from "node:util";

/** Not a literal: bundlers must not look for the package, and the compiler need not know its types. */
const PACKAGE = "@tensorflow/tfjs-node";

/** Registers the backend `tensorflow` with tfjs-core. Throws what the loader throws when the package or its library is not there. */
export async function loadNative(): Promise<void> {
  // The package calls two helpers that Node 23 removed, or warns about; docs/tfjs.md.
  const helpers: { isNullOrUndefined?: (value: unknown) => boolean; isArray: (value: unknown) => boolean } = util;
  helpers.isNullOrUndefined ??= (value) => value === null || value === undefined;
  helpers.isArray = Array.isArray;
  // Read by the library when it is loaded: 3 leaves errors, but not the line on how it was compiled. What it says of oneDNN on
  // stderr comes before it reads this.
  process.env.TF_CPP_MIN_LOG_LEVEL ??= "3";
  await import(PACKAGE);
}
