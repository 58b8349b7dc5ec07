#!/usr/bin/env bash
# Optional: builds @tensorflow/tfjs-node, on which the tfjs backend runs natively, where its own installer cannot download
# its library: against the TensorFlow library inside the Python wheel tensorflow-cpu. Run it after `npm ci`, which removes
# what it built; docs/tfjs.md says more.
#
#   scripts/build-tfjs-node.sh
#
# Needs x86_64 Linux, node with its headers, npm, python3 with pip, g++ and make. Downloads 0.4 GB, leaves 0.9 GB in
# node_modules, takes about a minute. Ends with an error and changes nothing of the project when a step fails.
set -euo pipefail
cd "$(dirname "$0")/.."

ADDON_VERSION=4.22.0
LIBRARY_VERSION=2.21.0
TARGET=$PWD/node_modules/@tensorflow/tfjs-node

if [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
  echo "build-tfjs-node: only x86_64 Linux has been tried; elsewhere use: npm install @tensorflow/tfjs-node@$ADDON_VERSION" >&2
  exit 1
fi
if [ ! -d node_modules/@tensorflow/tfjs-core ]; then
  echo "build-tfjs-node: run npm ci first" >&2
  exit 1
fi

# Everything is built in a place of its own: npm would tidy up this project's node_modules.
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT
cd "$SCRATCH"
PACKAGE=node_modules/@tensorflow/tfjs-node

# 1. The package, without its install script: that is what downloads.
echo '{ "private": true }' >package.json
npm install --ignore-scripts --no-audit --no-fund "@tensorflow/tfjs-node@$ADDON_VERSION"

# 2. The library and its C headers. A wheel is a zip file: the version of Python here does not matter.
python3 -m pip download --quiet --no-cache-dir --no-deps --only-binary=:all: --python-version 3.11 --implementation cp --abi cp311 \
  --platform manylinux_2_27_x86_64 --dest . "tensorflow-cpu==$LIBRARY_VERSION"
python3 - "$PACKAGE/deps" <<'PYTHON'
import glob, os, shutil, sys, zipfile

deps = sys.argv[1]
HEADERS = ("c/", "core/platform/ctstring")
KEEP = tuple(f"tensorflow/include/tensorflow/{path}" for path in HEADERS) + (
    "tensorflow/include/tsl/platform/ctstring", "tensorflow/include/xla/tsl/c/")
LIBRARIES = ("tensorflow/libtensorflow_cc.so.2", "tensorflow/libtensorflow_framework.so.2")

with zipfile.ZipFile(glob.glob("tensorflow_cpu-*.whl")[0]) as wheel:
    for name in wheel.namelist():
        if name in LIBRARIES:
            target = f"{deps}/lib/{os.path.basename(name)}"
        elif name.startswith(KEEP) and not name.endswith("/"):
            target = f"{deps}/{name.removeprefix('tensorflow/')}"
        else:
            continue
        os.makedirs(os.path.dirname(target), exist_ok=True)
        with wheel.open(name) as source, open(target, "wb") as file:
            shutil.copyfileobj(source, file, 1 << 22)
PYTHON

# 3. The names that the linker and the install script look for; it downloads nothing when the second one is there.
(
  cd "$PACKAGE/deps/lib"
  ln -sf libtensorflow_cc.so.2 libtensorflow.so
  ln -sf libtensorflow_cc.so.2 libtensorflow.so.2.9.1
  ln -sf libtensorflow_framework.so.2 libtensorflow_framework.so
)
strip --strip-unneeded "$PACKAGE/deps/lib/libtensorflow_cc.so.2" || true # 788 → 557 MiB

# 4. The addon. Node-API is stable, so the headers of any node on the path will do; one without headers would download them.
HEADERS=
while read -r node; do
  prefix=$(dirname "$(dirname "$(realpath "$node")")")
  if [ -f "$prefix/include/node/node_api.h" ]; then
    HEADERS=$prefix
    break
  fi
done < <(type -ap node)
if [ -n "$HEADERS" ]; then export npm_config_nodedir=$HEADERS; fi
npm_config_build_from_source=true npm rebuild --foreground-scripts @tensorflow/tfjs-node

# 5. Into the project, with its own dependencies inside of it; but tfjs-core, which holds the engine, may be there only once.
rm -rf "$TARGET" node_modules/@tensorflow/tfjs-core node_modules/@tensorflow/tfjs-backend-cpu
mv "$PACKAGE" "$TARGET"
mkdir -p "$TARGET/node_modules"
cp -an node_modules/. "$TARGET/node_modules/"
cd "$(dirname "$TARGET")/../.."

# 6. It loads: with the two helpers that Node 23 removed and this package still calls.
node -e '
  const util = require("node:util");
  util.isNullOrUndefined ??= (value) => value === null || value === undefined;
  util.isArray = Array.isArray;
  process.env.TF_CPP_MIN_LOG_LEVEL = "3";
  const tf = require("@tensorflow/tfjs-node");
  const product = tf.matMul([[1, 2]], [[3], [4]]).dataSync()[0];
  if (product !== 11) throw new Error(`1·3 + 2·4 = ${product}`);
  console.log(`tfjs-node ${tf.version["tfjs-node"]} on TensorFlow ${tf.backend().binding.TF_Version}: ready`);
'
