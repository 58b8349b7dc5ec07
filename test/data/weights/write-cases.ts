// Writes mutated files, each after its length (u32, little endian), for make_verdicts.py.
//   node write-cases.ts <seed> <count> <file>
import { writeFileSync } from "node:fs";
import { mutatedFile } from "../../weights/mutate.ts";

const [seed, count] = process.argv.slice(2, 4).map(Number);
const parts: Uint8Array[] = [];
for (let i = 0; i < count; i++) {
  const bytes = mutatedFile(seed + i);
  parts.push(new Uint8Array(new Uint32Array([bytes.length]).buffer), bytes);
}
writeFileSync(process.argv[4], Buffer.concat(parts));
